"""Where a model comes from. Each kind of source prepares one folder that transformers can load."""

import os
import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.core.records import RecordError, file_sha256
from pipeline.core.settings import Settings, SettingsError

FILES = ("config.json", "generation_config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json",
         "chat_template*", "*.safetensors", "model.safetensors.index.json")  # fmt: skip


class Source(Settings):
    """A way to get a model."""

    name: str = Field(pattern=r"^[a-z0-9.]+(-[a-z0-9.]+)*$", description="how folders and tables call it")

    def prepare(self, folder: Path, device: str, made_by: dict[str, Any]) -> dict[str, Any]:
        """Make `folder` and return what the manifest should say beyond its files.

        `made_by` names settings and code, for what may be resumed.
        """
        raise NotImplementedError  # each kind of source has its own


class Local(Source):
    """A folder that `save_pretrained` wrote: config, safetensors, tokenizer. No code in it is run."""

    source: Literal["local"] = "local"
    path: str

    def prepare(self, folder: Path, device: str, made_by: dict[str, Any]) -> dict[str, Any]:
        """Link (or copy, across file systems) the files that are needed; nothing is unpickled."""
        origin = Path(self.path).expanduser()
        if not (origin / "config.json").is_file():
            raise SettingsError(f"model.path: must be a folder with a config.json, got {self.path!r}.")
        files = sorted({file for pattern in FILES for file in origin.glob(pattern) if file.is_file()})
        if not any(file.suffix == ".safetensors" for file in files):
            raise RecordError(f"{origin}: holds no .safetensors; convert the weights first, pickles are not read.")
        folder.mkdir(parents=True)
        for file in files:
            _link(file, folder / file.name)
        return {"source": "local", "path": self.path, "pretraining": None}


def _link(origin: Path, target: Path) -> None:
    try:
        os.link(origin.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(origin, target)


def manifest_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a prepared folder, by name."""
    return {file.name: file_sha256(file) for file in sorted(folder.iterdir()) if file.is_file()}
