"""Language modeling: plain texts, of which a model tells the log-likelihood."""

from typing import ClassVar

from pipeline.tasks.base import Row, Task


class LanguageModeling(Task):
    """Texts without a prompt."""

    example: ClassVar[Row] = {"text": " = Robert Boulter = "}
    hidden: ClassVar[str | None] = None

    def prompt(self, row: Row) -> str:
        return ""

    def answer(self, row: Row) -> str:
        return row["text"]

    def reference(self, row: Row) -> str:
        return row["text"]
