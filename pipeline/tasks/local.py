"""Rows of your own: json, jsonl, csv or parquet files and a map of their columns, read through `datasets`.

A value must be text or a whole number, and not empty; what is not is named by file, row and column, never dropped.
"""

import hashlib
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.core.settings import SettingsError
from pipeline.tasks.base import DataSource, Row, Split

READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
"""Endings, and the reader of `datasets` that each is for."""


class Local(DataSource):
    """Files on this machine, one a split; dev and test may be carved out of train."""

    files: dict[Split, str] = Field(min_length=1, description="paths, relative to the working directory")
    columns: dict[str, str] = Field(min_length=1, description="a column of the task -> a column of the files")
    key: str = Field(description="the task's column by which rows of two splits are compared")
    carve: dict[Literal["dev", "test"], float] = Field(
        description="shares of train, by a hash of `key`: the same rows for ever, and equal rows stay together"
    )

    @model_validator(mode="after")
    def _fits(self) -> "Local":
        if self.key not in self.columns:
            raise ValueError(f"key must be one of columns ({', '.join(self.columns)}), got {self.key!r}")
        if twice := [split for split in self.carve if split in self.files]:
            raise ValueError(f"carve: {twice[0]} has a file of its own; name it in one of the two")
        if self.carve and "train" not in self.files:
            raise ValueError("carve: needs files.train to carve from")
        if any(share <= 0 for share in self.carve.values()) or sum(self.carve.values()) >= 1:
            raise ValueError(f"carve: shares must be above 0 and sum to less than 1, got {self.carve}")
        for path in self.files.values():
            if Path(path).suffix not in READERS:
                raise ValueError(f"files: {path!r} must end in {', '.join(READERS)}")
        return self

    @property
    def source(self) -> str:
        return ", ".join(sorted(set(self.files.values())))

    @property
    def compared(self) -> str:
        return self.key

    @property
    def offered(self) -> tuple[str, ...]:
        return tuple(self.columns)

    def paths(self) -> list[Path]:
        return [Path(path) for path in self.files.values()]

    def rows(self, split: Split) -> list[Row]:
        whole = split if split in self.files else "train"
        if split != whole and split not in self.carve:
            return []
        path = Path(self.files[whole])
        rows = [
            self._row(raw, f"{whole}-{index:05}", f"{path}: row {index}")
            for index, raw in enumerate(self._read(path), 1)
        ]
        return [row for row in rows if self._part(row) == split] if whole == "train" else rows

    def _part(self, row: Row) -> Split:
        """Return the split that a row of the train file belongs to."""
        place = int(hashlib.sha256(row[self.key].encode()).hexdigest(), 16) / 2**256
        test = self.carve.get("test", 0.0)
        return "test" if place < test else "dev" if place < test + self.carve.get("dev", 0.0) else "train"

    def _read(self, path: Path) -> list[dict[str, Any]]:
        import datasets  # noqa: PLC0415  (a second; only where files are really read)
        from datasets.exceptions import DatasetGenerationError  # noqa: PLC0415

        if not path.is_file():
            raise SettingsError(f"data.files: there is no file {path} (looked for it in {Path.cwd()}).")
        # A csv value is the text that stands there: by default `datasets` makes 007 a 7 and NA a missing value.
        options = {"na_filter": False, "converters": dict.fromkeys(self.columns.values(), str)}
        reader = READERS[path.suffix]
        datasets.disable_progress_bars()
        with tempfile.TemporaryDirectory() as cache:
            try:
                table = datasets.load_dataset(
                    reader, data_files=str(path), split="train", cache_dir=cache, **options if reader == "csv" else {}
                )
            except DatasetGenerationError as error:
                raise SettingsError(f"{path}: cannot be read as {reader}: {error.__cause__ or error}") from None
            return table.to_list()

    def _row(self, raw: dict[str, Any], name: str, where: str) -> Row:
        row = {"id": name}
        for ours, theirs in self.columns.items():
            if theirs not in raw:
                raise SettingsError(
                    f"{where} has no column {theirs!r}. It has: {', '.join(raw)}. Mend data.columns.{ours}."
                )
            value = raw[theirs]
            if value is None or value == "":
                raise SettingsError(f"{where}, column {theirs!r}: is empty. Fill it in, or remove the row.")
            if isinstance(value, bool) or not isinstance(value, str | int):
                kind = type(value).__name__
                raise SettingsError(
                    f"{where}, column {theirs!r}: must be text or a whole number, got {value!r} ({kind})."
                )
            row[ours] = str(value)
        return row
