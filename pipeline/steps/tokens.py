"""How a prompt and its answer become tokens: one rule for training and evaluation."""

from typing import Protocol

IGNORED = -100
"""The label of a position that has no target."""


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def decode(self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str: ...


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return BOS (where the tokenizer has one) and the prompt's tokens."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return start + tokenizer.encode(prompt, add_special_tokens=False)


def answer_ids(tokenizer: Tokenizer, answer: str) -> list[int]:
    """Return the answer's tokens and EOS. It is encoded apart from its prompt, as generation will see it."""
    assert tokenizer.eos_token_id is not None
    return [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
