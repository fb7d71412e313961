"""Where a model comes from. Each kind of source prepares one folder that transformers can load.

Light: plans import it.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.core.records import RecordError, file_sha256
from pipeline.core.settings import Settings, SettingsError

FILES = ("config.json", "generation_config*", "tokenizer*", "vocab*", "merges*", "special_tokens_map*",
         "chat_template*", "*.safetensors", "model.safetensors.index*")  # fmt: skip
"""What is taken of a model's folder or repository; only the first must be there."""


class Source(Settings):
    """A way to get a model."""

    name: str = Field(pattern=r"^[a-z0-9.]+(-[a-z0-9.]+)*$", description="how folders and tables call it")

    def shape(self) -> dict[str, Any] | None:
        """Return the fields of config.json that say how the model is built; None where they are not at hand.

        Raises:
            SettingsError: there is no such model.
        """
        return None

    def files(self) -> list[Path]:
        """Return the local files that the model is made of; they count by their contents."""
        return []

    def prepare(self, folder: Path, device: str, made_by: dict[str, Any]) -> dict[str, Any]:
        """Make `folder` and return what the manifest should say beyond its files.

        `made_by` names settings and code, for what may be resumed.
        """
        raise NotImplementedError  # each kind of source has its own


class Local(Source):
    """A folder that `save_pretrained` wrote: config, safetensors, tokenizer. No code in it is run."""

    source: Literal["local"] = "local"
    path: str

    def shape(self) -> dict[str, Any]:
        return json.loads(self._config().read_bytes())

    def files(self) -> list[Path]:
        origin = self._config().parent
        return sorted({file for pattern in FILES for file in origin.glob(pattern) if file.is_file()})

    def prepare(self, folder: Path, device: str, made_by: dict[str, Any]) -> dict[str, Any]:
        """Link (or copy, across file systems) the files that are needed; nothing is unpickled."""
        link(self.path, {file.name: file for file in self.files()}, folder)
        return {"source": "local", "path": self.path, "pretraining": None}

    def _config(self) -> Path:
        config = Path(self.path).expanduser() / "config.json"
        if not config.is_file():
            raise SettingsError(
                f"model.path: must be a folder with a config.json, got {self.path!r} (looked for it in {Path.cwd()})."
            )
        return config


def link(origin: str, files: dict[str, Path], folder: Path) -> None:
    """Make `folder` of the files of `origin`, by links where that is possible.

    Raises:
        RecordError: there are no weights among them.
    """
    if not any(file.endswith(".safetensors") for file in files):
        raise RecordError(f"{origin}: holds no .safetensors; convert the weights first, pickles are not read.")
    folder.mkdir(parents=True)
    for name, file in files.items():
        _link_one(file, folder / name)


def _link_one(origin: Path, target: Path) -> None:
    try:
        os.link(origin.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(origin, target)


def manifest_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a prepared folder, by name."""
    return {file.name: file_sha256(file) for file in sorted(folder.iterdir()) if file.is_file()}
