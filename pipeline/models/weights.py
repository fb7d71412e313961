"""Reads a model folder's safetensors one tensor at a time, whether in one file or in shards."""

import json
import math
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.core.records import RecordError
from pipeline.core.site import Site

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Weights:
    """The tensors of a model folder by full name, loaded when asked for and never all at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of = self._locate()

    def _locate(self) -> dict[str, str]:
        if (self.folder / INDEX).is_file():
            return dict(json.loads((self.folder / INDEX).read_text())["weight_map"])
        if not (self.folder / SINGLE).is_file():
            raise RecordError(f"{self.folder}: holds neither {SINGLE} nor {INDEX}; only safetensors are read.")
        with self._open(SINGLE) as file:
            return dict.fromkeys(file.keys(), SINGLE)

    def _open(self, name: str) -> safe_open:
        try:
            return safe_open(self.folder / name, framework="pt")
        except (SafetensorError, FileNotFoundError) as error:
            raise RecordError(f"{self.folder / name}: cannot be read ({error}). Prepare the model again.") from None

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._file_of)

    def tensor(self, name: str) -> Tensor:
        """Return one tensor, in the dtype it is stored in.

        Raises:
            RecordError: the folder has no such tensor, or its file is damaged.
        """
        with self._open(self._file_with(name)) as file:
            return file.get_tensor(name)

    def linear(self, site: Site) -> Tensor:
        """Return the weight (O, I) of a linear site, in the dtype it is stored in."""
        stored = self.tensor(f"{site.module}.weight")
        weight_OI = stored.T.contiguous() if site.transposed else stored
        return weight_OI if site.rows is None else weight_OI[list(site.rows)]

    def elements(self, name: str) -> int:
        """Return the number of elements of one tensor without loading it."""
        with self._open(self._file_with(name)) as file:
            return math.prod(file.get_slice(name).get_shape())

    def _file_with(self, name: str) -> str:
        if name not in self._file_of:
            raise RecordError(f"{self.folder}: holds no tensor {name!r}.")
        return self._file_of[name]
