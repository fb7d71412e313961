"""The folder of a quantized base; of a public format, what `AutoModelForCausalLM.from_pretrained` loads.

Tensors are added one by one and written in shards, so that preparing a base takes the memory of one shard and one
weight, whatever the size of the model. The index is always written, also for a single shard.
"""

import json
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.quantization.base import Format, QuantizationError, QuantizedWeight, dtype_name

INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
DTYPE = "dtype_before_quantization"
"""In the index, what the quantized weights were: not every format's own layout says so."""


class Shards:
    """Makes `folder` and writes tensors to it; what it holds is no model before `close` has returned."""

    shard_bytes = 2**30

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shard: dict[str, Tensor] = {}
        self._file_of: dict[str, str] = {}
        self._shards = self._total_bytes = 0
        folder.mkdir(parents=True)

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor as it is."""
        assert not {name} & (self._file_of.keys() | self._shard.keys()), f"{name} was added twice"
        if self._shard and sum(held.nbytes for held in self._shard.values()) + tensor.nbytes > self.shard_bytes:
            self._write_shard()
        self._shard[name] = tensor.contiguous()

    def close(self, **metadata: str) -> None:
        """Write the last shard and the index, with `metadata` in it."""
        self._write_shard()
        index = {"metadata": {"total_size": self._total_bytes} | metadata, "weight_map": self._file_of}
        self._write_json(INDEX, index)

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        (self._folder / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    def _write_shard(self) -> None:
        self._shards += 1
        file = f"model-{self._shards:05}.safetensors"
        save_file(self._shard, self._folder / file, metadata={"format": "pt"})
        self._file_of |= dict.fromkeys(self._shard, file)
        self._total_bytes += sum(held.nbytes for held in self._shard.values())
        self._shard = {}


class Writer(Shards):
    """Writes a quantized base."""

    def __init__(self, folder: Path, format_: Format) -> None:
        super().__init__(folder)
        self._format = format_
        self._dtype = torch.float32

    def add_quantized(self, module: str, weight: QuantizedWeight) -> None:
        """Add the weight of the linear module of that name."""
        self._dtype = weight.dtype
        for key, tensor in self._format.to_file(weight).items():
            self.add(f"{module}.{key}", tensor)

    def finish(self, config: dict[str, Any], unquantized: list[str], *, public: bool = True) -> None:
        """Write the last shard, the index and, where transformers can read the weights, config.json.

        Without a format of its own the folder is of a plain model.
        `config` is the model's own; `unquantized` names the linear modules that were added as they are; `public` says
        whether transformers can quantize this architecture.
        """
        self.close(**{DTYPE: dtype_name(self._dtype)})
        if not self._format.own_folder:
            self._write_json(CONFIG, config)
        elif public and (quantization := self._format.transformers_config(self._dtype, unquantized)) is not None:
            self._write_json(CONFIG, config | {"quantization_config": quantization})


def read(folder: Path, format_: Format, linears: Iterable[str]) -> tuple[dict[str, QuantizedWeight], dict[str, Tensor]]:
    """Return the quantized weights by module name and every other tensor by its full name, on the CPU.

    Raises:
        QuantizationError: a weight of `linears` is missing, or is stored in another format.
    """
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    tensors, dtype = _read_all(folder, index), getattr(torch, index["metadata"][DTYPE])
    parts: dict[str, dict[str, Tensor]] = {module: {} for module in linears}
    for name in list(tensors):
        module, key = _split(name, parts)
        if module is not None:
            parts[module][key] = tensors.pop(name)
    quantized = {}
    for module, held in parts.items():
        try:
            quantized[module] = format_.from_file(held, dtype)
        except KeyError as error:
            raise QuantizationError(f"{folder}: {module}.weight lacks the tensor {module}.{error.args[0]}.") from None
        except QuantizationError as error:
            raise QuantizationError(f"{folder}: {module}.weight: {error}") from None
    return quantized, tensors


def _split(name: str, linears: Container[str]) -> tuple[str | None, str]:
    """Return the linear module that a tensor's name begins with, and the rest; a bias belongs to no stored weight."""
    places = (at for at, letter in enumerate(name) if letter == ".")
    module = next((name[:at] for at in places if name[:at] in linears and name[at:] != ".bias"), None)
    return module, name if module is None else name[len(module) + 1 :]


def _read_all(folder: Path, index: dict[str, Any]) -> dict[str, Tensor]:
    tensors = {}
    for file in sorted(set(index["weight_map"].values())):
        with safe_open(folder / file, framework="pt") as shard:
            tensors |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118  (not a mapping)
    return tensors
