"""Rows of a dataset repository of the Hugging Face hub at one commit, or of the same rows in local files.

Files are named one by one instead of by a loading script, which `datasets` 4 and later run no more.
"""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.core.hub import Repository
from pipeline.core.settings import SettingsError
from pipeline.tasks.base import Split
from pipeline.tasks.local import read_file, refuse_unreadable
from pipeline.tasks.table import Raw, Table
from pipeline.tasks.wikitext import articles

Files = dict[Split, tuple[str, ...]]


class Hub(Repository, Table):
    """The files of each split, in a repository or below a folder of your own."""

    kind: ClassVar[Literal["dataset", "model"]] = "dataset"

    files: Files = Field(min_length=1, description="paths in the repository")
    root: str | None = Field(description="a folder that holds `local`: its files are read, and the hub is not asked")
    local: Files = Field(min_length=1, description="paths below `root`")
    text: Literal["lines", "articles"] = Field(
        default="lines", description="a row of a txt file: a line (column `text`), or an article of WikiText (`page`)"
    )

    @model_validator(mode="after")
    def _readable(self) -> "Hub":
        for key, files in (("files", self.files), ("local", self.local)):
            refuse_unreadable([path for paths in files.values() for path in paths], key)
        return self

    @property
    def source(self) -> str:
        if self.root is not None:
            return ", ".join(sorted({path for paths in self.local.values() for path in paths}))
        return f"{self.repository}@{self.revision}"

    @property
    def instead(self) -> str:
        names = ", ".join(name for names in self.local.values() for name in names)
        return f"\nOr set data_root to a folder that holds {names}."

    def wanted(self) -> tuple[str, ...]:
        return tuple(name for names in self.files.values() for name in names) if self.root is None else ()

    def held(self) -> tuple[Split, ...]:
        return tuple(self.files if self.root is None else self.local)

    def paths(self) -> list[Path]:
        """Return the local files; those of a repository are locked by their hashes."""
        if self.root is None:
            return []
        return [Path(self.root, name) for names in self.local.values() for name in names]

    def read(self, split: Split) -> list[tuple[Path, list[Raw]]]:
        if self.root is None:
            return [(Path(name), self._rows_at(self.verified(name))) for name in self.files[split]]
        return [(path, self._rows_at(path)) for path in (Path(self.root, name) for name in self.local[split])]

    def _rows_at(self, path: Path) -> list[Raw]:
        if not path.is_file():
            raise SettingsError(
                f"data.root: there is no file {path} (looked for it in {Path.cwd()}). Put it there, or set "
                "data.root=null to read the hub's cache."
            )
        if path.suffix == ".txt" and self.text == "articles":
            return [{"page": page} for page in articles(path.read_bytes().decode())]
        return read_file(path, self.named())
