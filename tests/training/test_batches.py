"""The cut of a step into parts changes neither loss nor gradients, and no row loses its labels in silence."""

from functools import partial

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.core.settings import SettingsError
from pipeline.steps.train import IGNORED, forward
from pipeline.training import batches
from pipeline.training.batches import Example

CPU = torch.device("cpu")


class Letters:
    """A tokenizer of single characters: BOS 1, EOS 2, then code points."""

    bos_token_id, eos_token_id = 1, 2

    def encode(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return [3 + ord(letter) % 60 for letter in text]

    def decode(self, token_ids, *, skip_special_tokens):
        raise AssertionError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=512,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


def rows_with(labelled):
    """Rows of different lengths, of which the last `n` tokens carry a loss."""
    draw = torch.Generator().manual_seed(1)
    rows = []
    for n in labelled:
        ids = torch.randint(3, 64, (n + 5,), generator=draw).tolist()
        rows.append(Example(ids, len(ids) - n))
    return rows


def loss_and_gradient(model, rows, micro):
    model.zero_grad()
    total = 0.0
    for part in batches.parts(rows, micro, 0, CPU):
        loss = forward(model, part).cross_entropy(part.labels_BT) * part.share
        loss.backward()
        total += float(loss.detach())
    return total, torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_the_split_of_a_step_changes_neither_loss_nor_gradients(model, micro):
    rows = rows_with([1, 0, 7, 200, 3, 0, 40, 12])
    whole, whole_gradient = loss_and_gradient(model, rows, 8)
    loss, gradient = loss_and_gradient(model, rows, micro)
    assert loss == pytest.approx(whole, rel=1e-6)  # the loss itself is taken in fp32
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-5, atol=1e-8)


def test_the_loss_is_the_mean_over_tokens_and_not_a_mean_of_means(model):
    rows = rows_with([1, 0, 7, 200])
    loss, _ = loss_and_gradient(model, rows, 1)
    per_token, means = [], []
    for row in rows:
        part = batches.collate([row], 1.0, 0, CPU)
        logits = model(input_ids=part.ids_BT).logits[0].detach().float()
        each = torch.nn.functional.cross_entropy(logits, part.labels_BT[0], ignore_index=IGNORED, reduction="none")
        per_token += each[part.labels_BT[0] != IGNORED].tolist()
        means.append(float(each.sum()) / max(1, row.labelled()))
    assert loss == pytest.approx(sum(per_token) / len(per_token), rel=1e-5)
    assert abs(loss - sum(means) / len(means)) > 0.1


def test_labels_are_the_next_tokens_of_the_answer_and_of_nothing_else():
    examples = batches.encode(Letters(), [("r", "ab", ("cd",))], max_length=99, loss_on="answer").rows
    part = batches.collate(examples, 1.0, 0, CPU)
    a, b, c, d = (3 + ord(letter) % 60 for letter in "abcd")
    assert part.ids_BT.tolist() == [[1, a, b, c, d]]
    assert part.labels_BT.tolist() == [[IGNORED, IGNORED, c, d, 2]]


def test_all_tokens_but_the_first_carry_a_loss_when_asked():
    examples = batches.encode(Letters(), [("r", "ab", ("cd",))], max_length=99, loss_on="all").rows
    assert examples[0].labelled() == 5


def test_truncated_rows_are_counted():
    found = batches.encode(Letters(), [("r", "ab", ("cdef",)), ("s", "a", ("b",))], max_length=5, loss_on="answer")
    assert found.truncated == 1
    assert [len(row.ids) for row in found.rows] == [5, 4]


@pytest.mark.parametrize(
    ("prompt", "answer", "why"), [("a" * 40, "b", "its prompt has 41 tokens"), ("a", "  ", "its answer is empty")]
)
def test_a_row_without_a_label_is_refused_by_name(prompt, answer, why):
    with pytest.raises(SettingsError, match=f"'row-7' has no labelled token: {why}"):
        batches.encode(Letters(), [("row-7", prompt, (answer,))], max_length=20, loss_on="answer")


def test_every_epoch_holds_every_row_once_and_has_its_own_order():
    indices = batches.order(0, rows=10, batch_size=4)
    seen = [i for step in range(5) for i in indices(step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_the_order_of_a_step_does_not_depend_on_the_steps_before_it():
    forwards = batches.order(3, rows=7, batch_size=4)
    assert [forwards(step) for step in range(6)][5] == batches.order(3, rows=7, batch_size=4)(5)
    assert batches.order(4, rows=7, batch_size=4)(5) != forwards(5)


def test_partial_is_how_a_run_forwards(model):
    part = batches.collate(rows_with([3]), 1.0, 0, CPU)
    assert partial(forward, model)(part).logits().shape == (1, 7, 64)
