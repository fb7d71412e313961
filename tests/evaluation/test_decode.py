"""Greedy decoding against transformers' own, alone and in company; it stops where it must and asks no config."""

import pytest
import torch
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from pipeline.steps.decode import decode

VOCABULARY = 101
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
NARROW = SMALL | {"intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 128}
MODELS = {  # relative positions, absolute ones (gpt2), heads in groups
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**NARROW)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**NARROW)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4)
    ),  # true positions
    "falcon": lambda: FalconForCausalLM(FalconConfig(**SMALL, num_kv_heads=2, new_decoder_architecture=True)),
}
LENGTHS = (3, 17, 1, 9, 17, 5, 2)


@pytest.fixture(params=range(3), ids="seed{}".format)
def seed(request) -> int:
    torch.manual_seed(request.param)
    return request.param


@pytest.fixture(params=MODELS)
def model(request, seed):
    made = MODELS[request.param]().eval()
    with torch.no_grad():
        for parameter in made.parameters():  # far from uniform logits, so that no reply hangs on a rounding error
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return made


@pytest.fixture
def prompts(seed):
    return [torch.randint(3, VOCABULARY, (length,)).tolist() for length in LENGTHS]


def theirs(model, prompt, count):
    """transformers' greedy decoding of one prompt, without any padding."""
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": False}
    return tuple(
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, **options)[
            0, len(prompt) :
        ].tolist()
    )


def test_a_batch_gives_what_each_prompt_gives_alone(model, prompts):
    together = decode(model, prompts, max_new_tokens=12, stop_ids=frozenset())
    alone = [decode(model, [prompt], max_new_tokens=12, stop_ids=frozenset())[0] for prompt in prompts]
    assert together == alone
    assert [reply.tokens for reply in together] == [theirs(model, prompt, 12) for prompt in prompts]
    assert {reply.stop for reply in together} == {"length"}
    assert len({reply.tokens for reply in together}) > 3, "replies that are all the same show nothing"


def test_rows_that_end_early_leave_the_others_as_they_were(model, prompts):
    whole = decode(model, prompts, max_new_tokens=12, stop_ids=frozenset())
    ends = frozenset(reply.tokens[n] for n, reply in enumerate(whole[:3], start=1))
    cut = decode(model, prompts, max_new_tokens=12, stop_ids=ends)
    for before, after in zip(whole, cut, strict=True):
        first = next((n for n, token in enumerate(before.tokens) if token in ends), None)
        assert after.stop == ("length" if first is None else "eos")
        assert after.tokens == (before.tokens if first is None else before.tokens[: first + 1])
    assert {reply.stop for reply in cut} == {"length", "eos"} or all(reply.stop == "eos" for reply in cut)


def test_the_generation_config_is_never_asked(prompts):
    torch.manual_seed(0)
    model = MODELS["llama"]().eval()
    plain = decode(model, prompts, max_new_tokens=8, stop_ids=frozenset())
    model.generation_config.update(
        do_sample=True,
        temperature=5.0,
        top_k=3,
        repetition_penalty=9.0,
        min_new_tokens=1,
        eos_token_id=plain[0].tokens[1],
    )
    assert decode(model, prompts, max_new_tokens=8, stop_ids=frozenset()) == plain


def test_a_reply_can_be_halted():
    torch.manual_seed(0)
    model = MODELS["llama"]().eval()
    replies = decode(
        model, [[3, 4], [5]], max_new_tokens=6, stop_ids=frozenset(), halted=lambda tokens: len(tokens) == 2
    )
    assert [(len(reply.tokens), reply.stop) for reply in replies] == [(2, "stop"), (2, "stop")]


def test_logits_that_are_no_numbers_are_an_error():
    model = MODELS["llama"]().eval()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        decode(model, [[3, 4]], max_new_tokens=2, stop_ids=frozenset())
