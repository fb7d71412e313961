"""Worked examples that stand before a question, and which of them do."""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.core.settings import Settings, SettingsError
from pipeline.tasks.base import Row

if TYPE_CHECKING:
    from pipeline.tasks.base import Task


class Shots(Settings, ABC):
    """A way to choose examples. One is written as the task asks and answers; `between` stands after each."""

    between: str

    @abstractmethod
    def texts(self, task: "Task", pool: list[Row]) -> Iterator[str]:
        """Yield what stands before the first question, the second, and so on without end.

        Args:
            task: words the examples.
            pool: the rows of train in the order of their file, those carved out of it included.

        Raises:
            SettingsError: the pool has too few rows.
        """


class Drawn(Shots):
    """Rows of train, drawn anew for every question by one generator, as lm-eval's default sampler does.

    So the examples of a question depend on its place in the test and on every row of train, in order. A sharded run of
    lm-eval draws others; these are those of one process. A limit keeps them: it cuts from the end.
    https://github.com/EleutherAI/lm-evaluation-harness/blob/main/lm_eval/api/samplers.py
    """

    count: int = Field(ge=1)
    seed: int = Field(ge=0, description="lm-eval's is 1234 unless --seed says otherwise")

    def texts(self, task: "Task", pool: list[Row]) -> Iterator[str]:
        if len(pool) < self.count:
            raise SettingsError(
                f"task.{task.name}.generation.shots.count: got {self.count}, the train split has {len(pool)} rows. "
                "Give data a train split, or ask for fewer."
            )
        draw = random.Random(self.seed)  # noqa: S311  (not for secrets)
        while True:
            rows = draw.sample(pool, self.count)
            yield "".join(task.prompt(row) + task.answer(row) + self.between for row in rows)


class Fixed(Shots):
    """Examples that are written in the settings, the same before every question."""

    examples: tuple[Row, ...] = Field(min_length=1, description="columns of the task, and `target`, the worked answer")

    def texts(self, task: "Task", pool: list[Row]) -> Iterator[str]:
        before = "".join(f"{task.prompt(row)} {row['target']}{self.between}" for row in self.examples)
        while True:
            yield before
