"""Replies to the prompts of a task."""

import functools
from typing import TYPE_CHECKING, Any

from pipeline.core.settings import SettingsError
from pipeline.steps.decode import DECODING, Reply, decode, highest
from pipeline.steps.sample import Sampler
from pipeline.steps.tokens import Tokenizer, prompt_ids, start_facts, stop_ids
from pipeline.tasks.base import Row, Task
from pipeline.tasks.generation import TOO_LONG, Replies, Sampled

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Questions:
    """The prompts of a task as tokens, made once for all states, and put to a model batch by batch."""

    def __init__(self, task: Task, rows: list[Row], tokenizer: Tokenizer, context: int) -> None:
        """Tokenize every prompt.

        Raises:
            SettingsError: a prompt and its reply do not fit into `context`, and the task does not count such rows.
        """
        assert isinstance(task.generation, Replies)
        self.settings, self.tokenizer, self.chat = task.generation, tokenizer, task.chat
        self.stop_ids = stop_ids(tokenizer, task.chat)
        self.names = [row["id"] for row in rows]
        self.prompts = [prompt_ids(tokenizer, task.question(row), task.chat) for row in rows]
        room = context - self.settings.max_new_tokens
        self.too_long = {index for index, prompt in enumerate(self.prompts) if len(prompt) > room}
        if self.too_long and self.settings.too_long == "refuse":
            first = min(self.too_long)
            raise SettingsError(
                f"{task.name}: {len(self.too_long)} of {len(rows)} prompts are too long, the first is row "
                f"{self.names[first]!r}: got {len(self.prompts[first])} tokens, allowed {room} (context {context} less "
                f"max_new_tokens {self.settings.max_new_tokens}). Shorten or remove them, or set "
                f"task.{task.name}.generation.too_long=count to count them as failed."
            )

    def __len__(self) -> int:
        """Return the number of items of a state."""
        return len(self.prompts)

    def decoding(self) -> dict[str, Any]:
        """Return every field that decides a reply and is no setting, for the record."""
        sampler = self._sampler([])
        return (
            DECODING
            | (sampler.decoding() if sampler else {})
            | {"stop_ids": sorted(self.stop_ids)}
            | start_facts(self.tokenizer, self.chat)
        )

    def facts(self) -> dict[str, Any]:
        """Return what was counted, for the record."""
        return {"too_long": [self.names[index] for index in sorted(self.too_long)]}

    def items(self, model: "PreTrainedModel") -> list[dict[str, Any]]:
        """Return one reply for every row, in order.

        Batches are fixed by the prompts and `batch_size` alone: neighbors in length, so that little is padding.
        """
        order = [index for index in range(len(self.prompts)) if index not in self.too_long]
        order.sort(key=lambda index: len(self.prompts[index]))
        replies: dict[int, Reply] = dict.fromkeys(self.too_long, Reply((), TOO_LONG))
        for start in range(0, len(order), self.settings.batch_size):
            batch = order[start : start + self.settings.batch_size]
            replies |= zip(batch, self._ask(model, batch), strict=True)
        return [
            {
                "item": self.names[index], "prompt_tokens": len(self.prompts[index]),
                "reply": self._text(reply), "tokens": len(reply.tokens), "stop": reply.stop,
            }
            for index, reply in sorted(replies.items())
        ]  # fmt: skip

    def _ask(self, model: "PreTrainedModel", batch: list[int]) -> list[Reply]:
        return decode(
            model,
            [self.prompts[index] for index in batch],
            max_new_tokens=self.settings.max_new_tokens,
            stop_ids=self.stop_ids,
            halted=self._halted if self.settings.stop else None,
            choose=self._sampler([self.names[index] for index in batch]) or highest,
        )

    def _sampler(self, names: list[str]) -> Sampler | None:
        """Return what draws the replies to the rows `names`; None where nothing is drawn."""
        asked = self.settings
        if not isinstance(asked, Sampled):
            return None
        return Sampler(asked.temperature, asked.top_k, asked.top_p, asked.seed, names)

    def _halted(self, tokens: list[int]) -> bool:
        if not self._may_end(tokens[-1]):  # decoding every reply at every token would take a third of the time
            return False
        text = self._decoded(tokens)
        return any(stop in text for stop in self.settings.stop)

    @functools.cache  # noqa: B019  (lives as long as the evaluation)
    def _may_end(self, token: int) -> bool:
        """Say whether a token can complete a stop string: it holds the last letter of one, or a part of a letter."""
        text = self._decoded([token])
        lasts = {stop[-1] for stop in self.settings.stop}
        return "\ufffd" in text or " " in lasts or any(last in text for last in lasts)

    def _text(self, reply: Reply) -> str:
        """Return a reply's text, cut before the first stop string."""
        text = self._decoded(reply.tokens)
        return text[: min((text.index(stop) for stop in self.settings.stop if stop in text), default=len(text))]

    def _decoded(self, tokens: list[int] | tuple[int, ...]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
