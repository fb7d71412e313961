"""Rows of a dataset repository of the Hugging Face hub at one commit, or of the same rows in local files.

Jobs never ask the network: the files come from the hub's cache on this machine, where one command puts them. Files are
named one by one instead of by a loading script, which `datasets` 4 and later run no more.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from pipeline.core.settings import SettingsError
from pipeline.tasks.base import Split
from pipeline.tasks.local import read_file, refuse_unreadable
from pipeline.tasks.table import Raw, Table
from pipeline.tasks.wikitext import articles

Files = dict[Split, tuple[str, ...]]


class Hub(Table):
    """The files of each split, in a repository or below a folder of your own."""

    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = Field(pattern=r"^[0-9a-f]{40}$", description="a commit; null until one was read")
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

    def held(self) -> tuple[Split, ...]:
        return tuple(self.files if self.root is None else self.local)

    def paths(self) -> list[Path]:
        """Return the local files; those of a repository are only looked for, for the commit pins them."""
        if self.root is not None:
            return [Path(self.root, name) for names in self.local.values() for name in names]
        for names in self.files.values():
            for name in names:
                self._cached(name)
        return []

    def read(self, split: Split) -> list[tuple[Path, list[Raw]]]:
        if self.root is None:
            return [(Path(name), read_file(self._cached(name), self.named())) for name in self.files[split]]
        return [(path, self._rows_at(path)) for path in (Path(self.root, name) for name in self.local[split])]

    def _rows_at(self, path: Path) -> list[Raw]:
        if not path.is_file():
            raise SettingsError(f"data.root: there is no file {path} (looked for it in {Path.cwd()}).")
        if path.suffix == ".txt" and self.text == "articles":
            return [{"page": page} for page in articles(path.read_bytes().decode())]
        return read_file(path, self.named())

    def _cached(self, name: str) -> Path:
        """Return where the cache of this machine has a file of the repository."""
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  (a plan of local data needs none of it)

        if self.revision is None:
            raise SettingsError(
                f"data.revision: {self.repository} is not pinned, so its rows could change. Read the commit that you "
                f"want at https://huggingface.co/datasets/{self.repository}/commits/main and set data.revision to "
                "its 40 hex digits, or set data.root to a folder with " + ", ".join(self._local_names()) + "."
            )
        found = try_to_load_from_cache(self.repository, name, revision=self.revision, repo_type="dataset")
        if isinstance(found, str):
            return Path(found)
        raise SettingsError(
            f"data: the hub's cache on this machine lacks {name} of {self.repository} at {self.revision[:8]}…, and "
            f"jobs do not ask the hub. Fetch it, where there is a network:\n  hf download {self.repository} {name} "
            f"--repo-type dataset --revision {self.revision}\nIf the hub answers that access is restricted, accept the "
            f"terms at https://huggingface.co/datasets/{self.repository} and run `hf auth login` first."
        )

    def _local_names(self) -> list[str]:
        return [name for names in self.local.values() for name in names]
