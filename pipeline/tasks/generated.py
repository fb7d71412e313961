"""The demo's rows: generated, the same for ever, split by a hash that keeps test out of train."""

from collections.abc import Callable, Iterator
from typing import Literal

from pydantic import Field

from pipeline.core.settings import SettingsError
from pipeline.tasks.base import DataSource, Row, Split
from pipeline.tasks.demo_choices import choices
from pipeline.tasks.demo_corpus import lines
from pipeline.tasks.demo_documents import documents
from pipeline.tasks.demo_problems import problems

Generator = Callable[[str, int], Iterator[Row]]

GENERATORS: dict[str, tuple[tuple[str, ...], Generator]] = {
    "story": (("question", "answer"), lambda split, seed: problems("story", split, seed)),
    "shift": (("question", "answer"), lambda split, seed: problems("shift", split, seed)),
    "choice": (("question", "choices", "answer"), choices),
    "document": (("document", "summary"), documents),
    "line": (("text",), lines),
}
"""Each kind's columns, of which the first tells rows apart, and its endless stream of rows."""

PATIENCE = 10_000
"""Draws in a row that bring nothing new, after which a generator is taken to be exhausted."""


class Generated(DataSource):
    """Rows drawn without repetition."""

    kind: Literal["story", "shift", "choice", "document", "line"]
    seed: int = Field(ge=0)
    train: int = Field(ge=0, description="rows")
    dev: int = Field(ge=0, description="rows")
    test: int = Field(ge=0, description="rows")

    @property
    def source(self) -> str:
        return f"generated ({self.kind}, seed {self.seed})"

    @property
    def compared(self) -> str:
        return self.offered[0]

    @property
    def offered(self) -> tuple[str, ...]:
        return GENERATORS[self.kind][0]

    def rows(self, split: Split) -> list[Row]:
        wanted = {"train": self.train, "dev": self.dev, "test": self.test}[split]
        stream = GENERATORS[self.kind][1](split, self.seed)
        found: dict[str, Row] = {}
        repeated = 0
        while len(found) < wanted:
            row = next(stream)
            repeated = repeated + 1 if row[self.compared] in found else 0
            found.setdefault(row[self.compared], row)
            if repeated == PATIENCE:
                raise SettingsError(
                    f"data.{split}: there are only {len(found)} distinct rows, got {wanted}. Ask for fewer."
                )
        return [{"id": f"{split}-{index:05}"} | row for index, row in enumerate(found.values())]
