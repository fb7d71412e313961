"""T-Few's losses against the equations of its paper, said slowly; parts of a step add up; fewer rows are the first."""

from functools import partial

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.core.settings import SettingsError, parse
from pipeline.quantization.nf4 import NF4
from pipeline.quantization.none import Dense
from pipeline.steps.train import forward, mean_loss
from pipeline.training import batches
from pipeline.training.batches import Example
from pipeline.training.settings import ChoiceLosses, Training
from tests.adapters import tiny
from tests.training.test_batches import Letters
from tests.training.test_loop import settings

CPU = torch.device("cpu")
BOTH = ChoiceLosses(unlikelihood=1.0, length_normalized=1.0)
PROMPT = 4
SIZES = ((3, 2, 5), (1, 4), (6, 1, 2, 3), (2, 2), (4, 1, 1))
"""Tokens of the right answer and of the wrong ones, for five questions."""


@pytest.fixture(params=range(3), ids="seed{}".format)
def model(request):
    torch.manual_seed(request.param)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    made = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():  # far from uniform, so that the terms differ
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return made


@pytest.fixture
def examples():
    draw = torch.Generator().manual_seed(1)

    def example(size, wrong=()):
        return Example(torch.randint(3, 64, (PROMPT + size,), generator=draw).tolist(), PROMPT, wrong)

    return [example(right, tuple(example(size) for size in wrong)) for right, *wrong in SIZES]


def papers(model, examples, losses=BOTH):
    """L_LM, L_UL and L_LN of the paper, a row and a token at a time."""
    log_p = {}
    for example in (one for row in examples for one in (row, *row.wrong)):
        logits = model(torch.tensor([example.ids])).logits[0].float().log_softmax(-1)
        log_p[id(example)] = [logits[t - 1, example.ids[t]] for t in range(PROMPT, len(example.ids))]
    right = [one for row in examples for one in log_p[id(row)]]
    wrong = [one for row in examples for other in row.wrong for one in log_p[id(other)]]
    language = -sum(right) / len(right)
    unlikelihood = -sum(torch.log(1 - one.exp()) for one in wrong) / len(wrong)
    normalized = 0
    for row in examples:
        betas = [torch.exp(sum(log_p[id(one)]) / len(log_p[id(one)])) for one in (row, *row.wrong)]
        normalized -= torch.log(betas[0] / sum(betas))
    return language + losses.unlikelihood * unlikelihood + losses.length_normalized * normalized / len(examples)


def ours(model, examples, micro, losses: ChoiceLosses | None = BOTH):
    model.zero_grad()
    total = 0.0
    for part in batches.parts(examples, micro, 0, CPU, losses):
        loss = forward(model, part).cross_entropy(part.labels_BT) * part.share
        loss.backward()
        total += float(loss.detach())
    return total, torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("losses", [BOTH, ChoiceLosses(unlikelihood=0.0, length_normalized=2.0),
                                    ChoiceLosses(unlikelihood=0.5, length_normalized=0.0)])  # fmt: skip
def test_loss_and_gradient_are_the_paper_s_however_the_step_is_cut(model, examples, losses):
    expected = papers(model, examples, losses)
    expected.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    for micro in (1, 2, 5):
        loss, own = ours(model, examples, micro, losses)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(own, gradient, rtol=1e-4, atol=1e-6)


def test_without_weights_it_is_the_cross_entropy_of_the_right_answers(model, examples):
    nothing = ChoiceLosses(unlikelihood=0.0, length_normalized=0.0)
    plain, gradient = ours(model, examples, 2, None)
    loss, own = ours(model, examples, 2, nothing)
    assert loss == pytest.approx(plain, rel=1e-6)
    torch.testing.assert_close(own, gradient, rtol=1e-5, atol=1e-8)
    assert mean_loss(model, batches.parts(examples, 2, 0, CPU)) == pytest.approx(plain, rel=1e-6)
    counted = [int((part.labels_BT >= 0).sum()) for part in batches.parts(examples, 2, 0, CPU, BOTH)]
    assert sum(counted) == sum(right for right, *_ in SIZES), "only right answers are labelled"


def test_a_wrong_answer_that_is_certain_still_has_a_gradient():
    part = batches.parts([Example([5, 6], 1, (Example([5, 7], 1),))], 1, 0, CPU, BOTH)[0]
    logits_BTV = torch.zeros(2, 1, 64, requires_grad=True)
    with torch.no_grad():
        logits_BTV[1, 0, 7] = 40.0  # p rounds to one in fp32
    loss = part.choices.loss(logits_BTV, torch.nn.Identity())
    loss.backward()
    assert loss.item() > 30
    assert logits_BTV.grad[1, 0, 7] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("path", tiny.ADAPTERS, ids=lambda path: path.stem)
def test_every_adapter_trains_on_choices_or_says_that_it_cannot(path):
    adapter = tiny.settings(path)
    base = tiny.base(NF4(block_size=64, double=True) if adapter.takes else Dense())
    method = tiny.place(adapter, base)
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, base.model.config.vocab_size, (6,), generator=draw).tolist() for _ in range(3)]
    question = [Example(ids[0], 3, (Example(ids[1], 3), Example(ids[2], 3)))]
    method.train()
    method.before_step(0)
    run = partial(forward, base.model)
    (plain,), (part,) = (batches.parts(question, 4, 0, CPU, losses) for losses in (None, BOTH))
    try:
        loss = method.loss(run, part)
    except SettingsError as error:
        assert "training.choice_losses: this adapter makes its loss of logits by itself" in str(error)  # noqa: PT017
        assert path.stem.startswith(("adamix", "meft"))
        return
    assert loss.item() > method.loss(run, plain).item() + 0.5
    loss.backward()
    method.after_backward(0)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_wrong_answers_are_encoded_like_right_ones():
    (row,) = batches.encode(Letters(), [("r", "ab", ("cd", "e"))], max_length=99, loss_on="answer").rows
    assert row.wrong[0].ids[:3] == row.ids[:3]
    assert (row.start, row.wrong[0].start, row.wrong[0].labelled()) == (3, 3, 2)
    with pytest.raises(SettingsError, match="'row-7' has no labelled token: its answer is empty"):
        batches.encode(Letters(), [("row-7", "a", ("b", " "))], max_length=20, loss_on="answer")


PAIRS = [(f"train-{n}", "q", ("a",)) for n in range(200)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_few_rows_are_the_first_of_more(seed):
    few, more = batches.few(PAIRS, 32, seed), batches.few(PAIRS, 128, seed)
    assert more[:32] == few
    assert sorted(batches.few(PAIRS, 200, seed)) == sorted(PAIRS)
    assert batches.few(PAIRS, "all", seed) == PAIRS
    assert batches.few(PAIRS, 32, seed + 1) != few, "a seed that does nothing"
    with pytest.raises(SettingsError, match=r"training.train_rows: got 201, train has 200 rows"):
        batches.few(PAIRS, 201, seed)


def test_choices_are_compared_on_answers_alone():
    node = settings().model_dump()
    with pytest.raises(SettingsError, match="choice_losses compare answers: loss_on must be answer, got all"):
        parse(Training, node | {"choice_losses": BOTH.model_dump(), "loss_on": "all"})
