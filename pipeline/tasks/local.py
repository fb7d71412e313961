"""Rows of your own: json, jsonl, csv, parquet or txt files and a map of their columns, read through `datasets`.

The one column of a txt file is `text`; a row is a line with its end, and a blank line is an empty text, as in the
hub's WikiText.
"""

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
        return [(path, read_file(path, self.named()))]


def refuse_unreadable(paths: Iterable[str], key: str) -> None:
    """Refuse names whose ending no reader is for.

    Raises:
        ValueError: names the first such path.
    """
    for path in paths:
        if Path(path).suffix not in READERS:
            raise ValueError(f"{key}: {path!r} must end in {', '.join(READERS)}")


def read_file(path: Path, named: Iterable[str]) -> list[Raw]:
    """Return the rows of one file that is there. `named` are the columns that will be asked for.

    Raises:
        SettingsError: the file is broken; the message names it.
    """
    reader = READERS[path.suffix]
    if reader == "text":
        # Not splitlines(): it also cuts at line separators that stand inside of texts, such as U+2028.
        lines = path.read_bytes().decode().split("\n")
        return [{"text": f"{line}\n" if line.strip() else ""} for line in (lines if lines[-1] else lines[:-1])]
    import datasets  # noqa: PLC0415  (a second; only where files are really read)
    from datasets.exceptions import DatasetGenerationError  # noqa: PLC0415

    # A csv value is the text that stands there: by default `datasets` makes 007 a 7 and NA a missing value.
    options = {"na_filter": False, "converters": dict.fromkeys(named, str)} if reader == "csv" else {}
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        try:
            table = datasets.load_dataset(reader, data_files=str(path), split="train", cache_dir=cache, **options)
        except DatasetGenerationError as error:
            raise SettingsError(f"{path}: cannot be read as {reader}: {error.__cause__ or error}") from None
        return table.to_list()
