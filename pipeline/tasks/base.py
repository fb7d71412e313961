"""What a task is: rows from a source, a prompt and an answer for each, how replies are made, and how they are scored.

Nothing here loads torch: tasks are read by every plan and by scoring.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.core.settings import BUILT, Built, Settings, digest

Row = dict[str, str]
"""Columns of one row by name; every row has an `id`."""

REFERENCES = "\x1e"
"""Stands between the references of a row that has several: ASCII's record separator, which no text holds."""

SHOTS = "shots"
"""The column that holds what stands before a row's prompt, where a generation has worked examples."""

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


class DataSource(Settings, ABC):
    """Where rows come from."""

    license: str
    overlap: Literal["refuse", "record"] = "refuse"
    """What to do about test rows that are in train as well. They are counted either way."""

    @property
    @abstractmethod
    def source(self) -> str:
        """What a table says of where the rows come from."""

    @property
    @abstractmethod
    def compared(self) -> str:
        """The column by which rows of two splits are compared."""

    @property
    @abstractmethod
    def offered(self) -> tuple[str, ...]:
        """The columns of its rows, beside `id`."""

    @abstractmethod
    def rows(self, split: Split) -> list[Row]:
        """Return the rows of one split in their order; empty if there is no such split.

        Raises:
            SettingsError: a setting, or a value of a row, cannot be used; the message names file, row and column.
        """

    def paths(self) -> list[Path]:
        """Return the files that are read and that no revision pins: their contents decide the rows."""
        return []


class Generation(Settings):
    """What is asked of the model, every field of it; `id` names it in tables."""

    kind: ClassVar[str]

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    split: Literal["dev", "test"]
    limit: int | None = Field(ge=1, description="rows, from the first; null for all")
    batch_size: int = Field(ge=1, description="rows of one forward; kernels, hence last bits, depend on it")


class Rule(Settings, ABC):
    """Turns one item of an evaluation (a reply, or a chunk's log-likelihood) into a number."""

    reads: ClassVar[str]
    """The kind of generation whose items it reads."""
    unit: ClassVar[str]
    better: ClassVar[Literal["higher", "lower"]]
    aggregate: ClassVar[Literal["mean", "exp-mean"]] = "mean"
    compares: ClassVar[bool] = True
    """Whether it needs the reference of an item; chunks of joined texts have none."""

    @property
    @abstractmethod
    def id(self) -> str:
        """The rule's name in records and tables."""

    def weight(self, item: dict[str, Any], reference: str) -> float:
        """Return how much the item counts in the mean."""
        return 1.0

    @abstractmethod
    def value(self, item: dict[str, Any], reference: str) -> float | None:
        """Return the item's number in the rule's unit, or None where nothing could be extracted (it then counts 0)."""


class Chat(Settings):
    """Asks through the chat template of the model's tokenizer: the prompt is the user's turn, the answer the model's.

    The worked examples of a question stand in the same turn.
    """

    system: str | None = Field(default=None, description="the system's turn; null for none, or the template's own")


class Task(Settings, ABC):
    """One task. Training reads prompt and answer alone, so the other parts may be left out of its settings."""

    name: str = ""
    role: Literal["other", "retention"] = "other"
    chat: Chat | None = Field(
        default=None, description="how an instruction model is asked; adds to the generation's id"
    )
    data: Annotated[DataSource | None, BUILT] = None
    generation: Annotated[Generation | None, BUILT] = None
    scoring: tuple[Built[Rule], ...] = ()

    example: ClassVar[Row]
    """One real row. It documents the columns, and the contract tests run on it."""
    hidden: ClassVar[str | None]
    """The column that the prompt must not depend on; None where nothing is asked."""

    @abstractmethod
    def prompt(self, row: Row) -> str:
        """Return what the model reads."""

    @abstractmethod
    def answer(self, row: Row) -> str:
        """Return what the model should go on with, from its first space on."""

    @abstractmethod
    def reference(self, row: Row) -> str:
        """Return what scoring rules compare with."""

    def choices(self, row: Row) -> tuple[str, ...]:
        """Return the answers that there are to choose from, the right one first; it alone where nothing is chosen."""
        return (self.answer(row),)

    def question(self, row: Row) -> str:
        """Return all that the model reads in an evaluation: the worked examples, if any, and the prompt."""
        return row.get(SHOTS, "") + self.prompt(row)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that its rows must have."""
        return tuple(self.example)

    @field_validator("generation")
    @classmethod
    def _chat_is_another_protocol(cls, generation: Generation | None, info: ValidationInfo) -> Generation | None:
        """Have the generation's id say that, and by which system's turn, the prompt is put into a chat."""
        chat: Chat | None = info.data.get("chat")
        if generation is None or chat is None:
            return generation
        suffix = "-chat" + (f"-{digest(chat.system)}" if chat.system is not None else "")
        return generation.model_copy(update={"id": generation.id.removesuffix(suffix) + suffix})

    @model_validator(mode="after")
    def _chat_fits(self) -> "Task":
        asked = self.generation is None or self.generation.kind in ("replies", "answers")
        if self.chat and (self.hidden is None or not asked):
            raise ValueError("chat: must be null, for nothing is asked that a model could reply to")
        return self

    @model_validator(mode="after")
    def _columns_fit(self) -> "Task":
        if self.data and (missing := [column for column in self.columns if column not in self.data.offered]):
            raise ValueError(f"data: must give the column {missing[0]!r}, it gives {', '.join(self.data.offered)}")
        return self

    @model_validator(mode="after")
    def _rules_fit(self) -> "Task":
        ids = [rule.id for rule in self.scoring]
        if len(set(ids)) < len(ids):
            raise ValueError(f"scoring: every rule may be named once, got {', '.join(ids)}")
        for rule in self.scoring if self.generation else ():
            assert self.generation is not None
            if rule.reads != self.generation.kind:
                raise ValueError(
                    f"scoring: {rule.id} reads the items of a {rule.reads} generation, got a {self.generation.kind} one"
                )
        return self
