"""Log-likelihoods of the answers to a task's prompts."""

from itertools import groupby
from typing import TYPE_CHECKING, Any

from pipeline.core.settings import SettingsError
from pipeline.evaluation.likelihood import finite_log_likelihoods
from pipeline.evaluation.windows import Window
from pipeline.steps.tokens import Tokenizer, answer_ids, prompt_ids, start_facts
from pipeline.tasks.base import Row, Task
from pipeline.tasks.generation import Answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Candidates:
    """Every prompt with every answer that there is to choose from, as tokens, made once for all states."""

    def __init__(self, task: Task, rows: list[Row], tokenizer: Tokenizer, context: int) -> None:
        """Tokenize every prompt and its answers.

        Raises:
            SettingsError: an answer is empty, or a prompt and an answer are longer than `context`, and the task does
                not cut such prompts.
        """
        assert isinstance(task.generation, Answers)
        self.task, self.settings, self.tokenizer = task, task.generation, tokenizer
        self.windows: list[Window] = []
        self.bytes: list[int] = []
        self.cut: dict[str, None] = {}
        for row in rows:
            prompt = prompt_ids(tokenizer, task.question(row), task.chat)
            for answer in task.choices(row):
                self.windows.append(self._window(row["id"], prompt, self._answer(row["id"], answer), context))
                self.bytes.append(len(answer.lstrip().encode()))  # without the space before it, as lm-eval counts

    def __len__(self) -> int:
        """Return the number of items of a state."""
        return len({window.item for window in self.windows})

    def decoding(self) -> dict[str, Any]:
        """Return what decides a likelihood and is no setting, for the record."""
        return start_facts(self.tokenizer, self.task.chat)

    def facts(self) -> dict[str, Any]:
        """Return what was counted, for the record."""
        return {"cut": list(self.cut)}

    def items(self, model: "PreTrainedModel") -> list[dict[str, Any]]:
        """Return, for every row, the log-likelihood in nats of each of its answers, the right one first.

        Raises:
            FloatingPointError: a log-likelihood is not a finite number.
        """
        found = finite_log_likelihoods(model, self.windows, self.settings.batch_size)
        answers = [
            (window.item, {"log_likelihood": one, "tokens": len(window.targets), "bytes": size})
            for window, one, size in zip(self.windows, found, self.bytes, strict=True)
        ]
        return [
            {"item": name, "answers": [answer for _, answer in group]}
            for name, group in groupby(answers, key=lambda pair: pair[0])
        ]

    def _answer(self, item: str, answer: str) -> list[int]:
        if not answer.strip():
            raise SettingsError(
                f"row {item!r}: an answer is empty, so it has no likelihood. Fill it in, or remove the row."
            )
        return answer_ids(self.tokenizer, answer, self.task.chat)

    def _window(self, item: str, prompt: list[int], answer: list[int], context: int) -> Window:
        ids = [*prompt, *answer[:-1]]
        if (over := len(ids) - context) > 0:
            if self.settings.too_long == "refuse" or over >= len(prompt):
                raise SettingsError(
                    f"{self.task.name}: row {item!r} is too long: its prompt has {len(prompt)} tokens, an answer "
                    f"{len(answer)}, the context {context}. Shorten or remove it, or cut the beginnings of prompts: "
                    f"task.{self.task.name}.generation.too_long=cut."
                )
            self.cut[item] = None
        kept = ids[max(over, 0) :]
        return Window(item, kept, answer, len(kept) - len(answer))
