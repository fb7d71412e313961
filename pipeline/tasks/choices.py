"""Questions with answers to choose from, of which one is right."""

from typing import ClassVar, Literal

from pipeline.core.settings import SettingsError
from pipeline.tasks.base import REFERENCES, Row, Task
from pipeline.tasks.prompts import question_answer


class Choices(Task):
    """A question, its choices, and the right one of them: its text, or its place counted from 0.

    The choices are not shown to the model: it is asked which of them it holds most probable.
    """

    example: ClassVar[Row] = {
        "question": "What do people use to absorb extra ink from a fountain pen?",
        "choices": REFERENCES.join(["shirt pocket", "calligrapher's hand", "inkwell", "blotter"]),
        "answer": "blotter",
    }
    hidden: ClassVar[str | None] = "answer"

    answers: Literal["text", "place"] = "text"

    def prompt(self, row: Row) -> str:
        return question_answer(row["question"])

    def answer(self, row: Row) -> str:
        return f" {self.reference(row)}"

    def reference(self, row: Row) -> str:
        if self.answers == "text":
            return row["answer"]
        offered, place = row["choices"].split(REFERENCES), row["answer"]
        if not (place.isdecimal() and int(place) < len(offered)):
            raise SettingsError(
                f"row {row.get('id')!r}: its answer must be the place of one of {len(offered)} choices, counted from "
                f"0, got {place!r}. Mend the data, or set answers=text."
            )
        return offered[int(place)]

    def choices(self, row: Row) -> tuple[str, ...]:
        offered, right = row["choices"].split(REFERENCES), self.reference(row)
        if right not in offered or len(set(offered)) < len(offered) or len(offered) < 2:  # noqa: PLR2004
            raise SettingsError(
                f"row {row.get('id')!r}: needs two or more choices, each once, and an answer that is one of them; got "
                f"{offered} and {right!r}. Mend the data."
            )
        return (f" {right}", *(f" {one}" for one in offered if one != right))
