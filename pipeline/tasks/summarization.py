"""Summarization: a document and its reference summaries, of which the first is trained on."""

from typing import ClassVar

from pipeline.tasks.base import REFERENCES, Row, Task
from pipeline.tasks.prompts import document_summary


class Summarization(Task):
    """Documents, summarized without examples."""

    example: ClassVar[Row] = {
        "document": "It was a cold day. Max went to the park at noon and found 5 stamps.",
        "summary": "Max found 5 stamps.",
    }
    hidden: ClassVar[str | None] = "summary"

    def prompt(self, row: Row) -> str:
        return document_summary(row["document"])

    def answer(self, row: Row) -> str:
        return f" {row['summary'].split(REFERENCES)[0]}"

    def reference(self, row: Row) -> str:
        return row["summary"]
