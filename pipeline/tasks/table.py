"""Rows from files with columns of their own: a map of the columns, a check of every value, shares carved out of train.

A value must be text or a whole number, and not empty unless the source says otherwise; what is not is named by file,
row and column, never dropped.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.core.settings import SettingsError
from pipeline.tasks.base import REFERENCES, DataSource, Row, Split

Raw = dict[str, Any]
"""A row as its file has it."""


class Table(DataSource):
    """Files, one or more a split; dev and test may be carved out of train."""

    columns: dict[str, str | tuple[str, ...]] = Field(
        min_length=1,
        description="a column of the task -> a column of the files, or several: those that a file has are references",
    )
    lists: dict[str, Literal["sentences", "references"]] = Field(
        default={}, description="a column of the task whose values are lists -> what its parts are"
    )
    empty: Literal["refuse", "keep"] = Field(default="refuse", description="what to do about an empty value")
    key: str = Field(description="the task's column by which rows of two splits are compared")
    carve: dict[Literal["dev", "test"], float] = Field(
        description="shares of train, by a hash of `key`: the same rows for ever, and equal rows stay together"
    )

    @abstractmethod
    def held(self) -> tuple[Split, ...]:
        """Return the splits that have files of their own."""

    @abstractmethod
    def read(self, split: Split) -> Iterable[tuple[Path, list[Raw]]]:
        """Return the files of one split, each with its rows.

        Raises:
            SettingsError: a file is missing or broken; the message names it and says what to do.
        """

    @model_validator(mode="after")
    def _columns_are_known(self) -> "Table":
        for place, named in (("key", [self.key]), ("lists", self.lists)):
            if unknown := [name for name in named if name not in self.columns]:
                raise ValueError(f"{place} must be one of columns ({', '.join(self.columns)}), got {unknown[0]!r}")
        return self

    @model_validator(mode="after")
    def _carve_fits(self) -> "Table":
        if twice := [split for split in self.carve if split in self.held()]:
            raise ValueError(f"carve: {twice[0]} has a file of its own; name it in one of the two")
        if self.carve and "train" not in self.held():
            raise ValueError("carve: needs files.train to carve from")
        if any(share <= 0 for share in self.carve.values()) or sum(self.carve.values()) >= 1:
            raise ValueError(f"carve: shares must be above 0 and sum to less than 1, got {self.carve}")
        return self

    @property
    def compared(self) -> str:
        return self.key

    @property
    def offered(self) -> tuple[str, ...]:
        return tuple(self.columns)

    def rows(self, split: Split) -> list[Row]:
        whole: Split = split if split in self.held() else "train"
        if split != whole and split not in self.carve:
            return []
        found: list[Row] = []
        for path, raws in self.read(whole) if whole in self.held() else ():
            before = len(found)
            found += [
                self._row(raw, f"{whole}-{before + index:05}", f"{path}: row {index}")
                for index, raw in enumerate(raws, 1)
            ]
        if whole != "train":
            return found
        part = [row for row in found if self._part(row) == split]
        if found and not part:
            raise SettingsError(
                f"data.carve: the {len(found)} rows of train leave {split} without any, got {self.carve}. Give more "
                "rows, or other shares."
            )
        return part

    def _part(self, row: Row) -> Split:
        """Return the split that a row of the train files belongs to."""
        place = int(hashlib.sha256(row[self.key].encode()).hexdigest(), 16) / 2**256
        test = self.carve.get("test", 0.0)
        return "test" if place < test else "dev" if place < test + self.carve.get("dev", 0.0) else "train"

    def _row(self, raw: Raw, name: str, where: str) -> Row:
        row = {"id": name}
        for ours, theirs in self.columns.items():
            asked = (theirs,) if isinstance(theirs, str) else theirs
            if not (there := [column for column in asked if column in raw]):
                raise SettingsError(
                    f"{where} has no column {' or '.join(map(repr, asked))}. It has: {', '.join(raw)}. "
                    f"Mend data.columns.{ours}."
                )
            row[ours] = REFERENCES.join(
                self._text(raw[column], ours, f"{where}, column {column!r}") for column in there
            )
        return row

    def _text(self, value: object, ours: str, where: str) -> str:
        """Return one value as text; a list where the settings say that there is one. Blank sentences add nothing."""
        if ours in self.lists and isinstance(value, list):
            if self.lists[ours] == "sentences":
                value = [one for one in value if not isinstance(one, str) or one.strip()]
            between = {"sentences": " ", "references": REFERENCES}[self.lists[ours]]
            if value:
                return between.join(self._text(one, "", where) for one in value)
            value = None
        if value is None or (isinstance(value, str) and not value.strip() and self.empty == "refuse"):
            raise SettingsError(f"{where}: is empty. Fill it in, or remove the row.")
        if isinstance(value, bool) or not isinstance(value, str | int):
            kind = type(value).__name__
            raise SettingsError(f"{where}: must be text or a whole number, got {value!r} ({kind}).")
        if REFERENCES in str(value):
            raise SettingsError(f"{where}: holds the character U+001E, which stands between references. Remove it.")
        return str(value)
