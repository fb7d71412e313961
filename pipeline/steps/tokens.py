"""How a prompt and its answer become tokens: one rule for training and evaluation, with or without a chat template."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from jinja2 import TemplateError

from pipeline.core.settings import SettingsError
from pipeline.tasks.base import Chat

PROBE = ("the prompt goes here", "the answer goes here")

IGNORED = -100
"""The label of a position that has no target."""


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def decode(self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str: ...


def prompt_ids(tokenizer: Tokenizer, prompt: str, chat: Chat | None = None) -> list[int]:
    """Return BOS (where the tokenizer has one) and the prompt's tokens; in a chat, the template says what stands first.

    Raises:
        SettingsError: the tokenizer has no chat template, or its template refuses the system's turn.
    """
    if chat is not None:
        return tokenizer.encode(_rendered(tokenizer, chat.system, prompt), add_special_tokens=False)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return start + tokenizer.encode(prompt, add_special_tokens=False)


def answer_ids(tokenizer: Tokenizer, answer: str, chat: Chat | None = None) -> list[int]:
    """Return the answer's tokens. It is encoded apart from its prompt, as generation will see it.

    In a chat the answer is stripped, as most templates do.
    """
    said = answer if chat is None else _turn(tokenizer, chat.system).lead + answer.strip()
    return tokenizer.encode(said, add_special_tokens=False)


def ended_ids(tokenizer: Tokenizer, answer: str, chat: Chat | None = None) -> list[int]:
    """Return the answer's tokens and what ends it: EOS, or in a chat the end of the template's turn."""
    said = answer_ids(tokenizer, answer, chat)
    if chat is not None:
        return [*said, *_turn(tokenizer, chat.system).end]
    assert tokenizer.eos_token_id is not None
    return [*said, tokenizer.eos_token_id]


def stop_ids(tokenizer: Tokenizer, chat: Chat | None = None) -> frozenset[int]:
    """Return the tokens that end a reply: EOS, and in a chat what ends the template's turn."""
    eos = frozenset() if tokenizer.eos_token_id is None else frozenset([tokenizer.eos_token_id])
    return eos if chat is None else eos | {_turn(tokenizer, chat.system).end[-1]}


def start_facts(tokenizer: Any, chat: Chat | None) -> dict[str, Any]:
    """Return what decides how a prompt starts and is no setting, for the record."""
    if chat is None:
        return {"bos": tokenizer.bos_token_id}
    return {"bos": None, "chat_template": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()}


@dataclass(frozen=True)
class Turn:
    """What a template writes around the answer itself: white space before it, and the tokens after it."""

    lead: str
    end: tuple[int, ...]


@lru_cache(maxsize=8)
def _turn(tokenizer: Any, system: str | None) -> Turn:
    """Return what surrounds an answer.

    Raises:
        SettingsError: in training something else would precede an answer than in generation.
    """
    head, whole = (_rendered(tokenizer, system, *PROBE[:turns]) for turns in (1, 2))
    lead, answer, tail = whole.removeprefix(head).partition(PROBE[1])
    if not whole.startswith(head) or not answer or lead.strip():
        raise SettingsError(
            f"task.chat: the tokenizer's template opens a turn with {head[-40:]!r} and fills it as {whole[-80:]!r}: "
            "models would be trained on another opening than they are asked with. Mend the template, or set chat=null."
        )
    end = tokenizer.encode(tail.rstrip(), add_special_tokens=False)
    special = [index for index, token in enumerate(end) if token in tokenizer.all_special_ids]
    return Turn(lead, tuple(end[: special[0] + 1] if special else [*end, tokenizer.eos_token_id]))


def _rendered(tokenizer: Any, system: str | None, prompt: str, answer: str | None = None) -> str:
    """Return a chat as the template writes it, up to where the model's turn begins, or with its answer."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise SettingsError(
            "task.chat: the model's tokenizer has no chat template. Take an instruction model, or set chat=null."
        )
    said = {"system": system, "user": prompt, "assistant": answer}
    turns = [{"role": role, "content": text} for role, text in said.items() if text is not None]
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None)
    except TemplateError as error:
        raise SettingsError(f"task.chat: the tokenizer's template refuses the chat: {error}. Change it.") from None
