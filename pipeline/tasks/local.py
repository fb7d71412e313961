"""Rows of your own: json, jsonl, csv, parquet or txt files and a map of their columns.

The one column of a txt file is `text`; a row is a line with its end, and a blank line is an empty text, as in the
hub's WikiText.
"""

import csv
import tempfile
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field, model_validator

from pipeline.core.settings import SettingsError
from pipeline.tasks.base import Split
from pipeline.tasks.table import Raw, Table

READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
"""Endings, and the reader that each is for."""


class Local(Table):
    """Files on this machine, one a split."""

    files: dict[Split, str] = Field(min_length=1, description="paths, relative to the working directory")

    @model_validator(mode="after")
    def _readable(self) -> "Local":
        refuse_unreadable(self.files.values(), "files")
        return self

    @property
    def source(self) -> str:
        return ", ".join(sorted(set(self.files.values())))

    def held(self) -> tuple[Split, ...]:
        return tuple(self.files)

    def paths(self) -> list[Path]:
        return [Path(path) for path in self.files.values()]

    def read(self, split: Split) -> list[tuple[Path, list[Raw]]]:
        path = Path(self.files[split])
        if not path.is_file():
            raise SettingsError(f"data.files: there is no file {path} (looked for it in {Path.cwd()}).")
        return [(path, read_file(path))]


def refuse_unreadable(paths: Iterable[str], key: str) -> None:
    """Refuse names whose ending no reader is for.

    Raises:
        ValueError: names the first such path.
    """
    for path in paths:
        if Path(path).suffix not in READERS:
            raise ValueError(f"{key}: {path!r} must end in {', '.join(READERS)}")


def read_file(path: Path) -> list[Raw]:
    """Return the rows of one file that is there.

    Raises:
        SettingsError: the file is broken or has no rows; the message names it.
    """
    reader = READERS[path.suffix]
    try:
        rows = {"text": _lines, "csv": _records}.get(reader, _loaded)(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(f"{path}: cannot be read as {reader}: {error}") from None
    if not rows:
        raise SettingsError(f"{path}: holds no rows.")
    return rows


def _lines(path: Path) -> list[Raw]:
    # Not splitlines(): it also cuts at line separators that stand inside of texts, such as U+2028.
    lines = path.read_bytes().decode().split("\n")
    return [{"text": f"{line}\n" if line.strip() else ""} for line in (lines if lines[-1] else lines[:-1])]


def _records(path: Path) -> list[Raw]:
    """Read a csv as the text that stands there: `datasets` would make 007 a 7, and shift rows with a comma too many."""
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        header, *lines = [line for line in csv.reader(file, strict=True) if line] or [[]]
    if twice := [column for column in header if header.count(column) > 1]:
        raise SettingsError(f"{path}: has the column {twice[0]!r} twice. Rename one.")
    for index, line in enumerate(lines, 1):
        if len(line) != len(header):
            raise SettingsError(
                f"{path}: row {index} has {len(line)} values, the header names {len(header)} columns: "
                f"{', '.join(header)}. Quote values that hold commas."
            )
    return [dict(zip(header, line, strict=True)) for line in lines]


def _loaded(path: Path) -> list[Raw]:
    import datasets  # noqa: PLC0415  (a second; only where files are really read)
    from datasets.exceptions import DatasetGenerationError  # noqa: PLC0415

    reader = READERS[path.suffix]
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        try:
            table = datasets.load_dataset(reader, data_files=str(path), split="train", cache_dir=cache)
        except StopIteration:  # what it says of an empty file
            return []
        except (DatasetGenerationError, ValueError) as error:  # pyarrow's errors are the latter
            raise SettingsError(f"{path}: cannot be read as {reader}: {error.__cause__ or error}") from None
        return table.to_list()
