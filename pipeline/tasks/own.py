"""Rows of your own, worded by the settings: a task without code."""

from string import Formatter
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from pipeline.core.settings import Settings
from pipeline.tasks.base import REFERENCES, Row, Rule, Task


class Wording(Settings):
    """Texts in which {column} stands for a row's value, and {{ and }} for braces."""

    prompt: str
    answer: str
    reference: str

    @field_validator("prompt", "answer", "reference")
    @classmethod
    def _names_columns(cls, text: str) -> str:
        if odd := [name for name in fields(text) if not name.isidentifier()]:
            raise ValueError(f"{{{odd[0]}}} must name a column, such as {{question}}; write {{{{ and }}}} for braces")
        return text


class Own(Task):
    """Prompts and answers from the columns of a table."""

    example: ClassVar[Row] = {"question": "Who wrote Emma?", "answer": "Jane Austen"}
    hidden: ClassVar[str | None] = "answer"

    wording: Wording

    @field_validator("wording")
    @classmethod
    def _keeps_the_answer(cls, wording: Wording) -> Wording:
        if shown := fields(wording.prompt) & (fields(wording.answer) | fields(wording.reference)):
            raise ValueError(f"the prompt must not show {{{min(shown)}}}, which is the answer")
        return wording

    @property
    def columns(self) -> tuple[str, ...]:
        texts = (self.wording.prompt, self.wording.answer, self.wording.reference)
        return tuple(sorted(set().union(*map(fields, texts))))

    def prompt(self, row: Row) -> str:
        return self.wording.prompt.format_map(row)

    def answer(self, row: Row) -> str:
        """Return the answer; where a column has several references, by the first of them."""
        first = {column: value.split(REFERENCES)[0] for column, value in row.items()}
        return self.wording.answer.format_map(first)

    def reference(self, row: Row) -> str:
        return self.wording.reference.format_map(row)


def fields(text: str) -> set[str]:
    """Return the columns that a text names."""
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


class Exact(Rule):
    """Whether the reply is one of the references, but for white space at its ends."""

    reads: ClassVar[str] = "replies"
    unit: ClassVar[str] = "%"
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    @property
    def id(self) -> str:
        return "exact-match"

    def value(self, item: dict[str, Any], reference: str) -> float | None:
        reply = item["reply"].strip()
        return 100.0 * (reply in [one.strip() for one in reference.split(REFERENCES)]) if reply else None
