"""The folder of a quantized base: what `transformers` loads with `AutoModelForCausalLM.from_pretrained`.

Tensors are added one by one and written in shards, so that preparing a base takes the memory of one shard and one
weight, whatever the size of the model. The index is always written, also for a single shard.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.quantization.base import Format, QuantizationError, QuantizedWeight

INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
SHARD_BYTES = 2**31


class Writer:
    """Makes `folder` and fills it; what it holds is no base before `finish` has returned."""

    def __init__(self, folder: Path, format_: Format, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._format, self._shard_bytes = folder, format_, shard_bytes
        self._shard: dict[str, Tensor] = {}
        self._file_of: dict[str, str] = {}
        self._shards = self._total_bytes = 0
        self._dtype = torch.float32
        folder.mkdir(parents=True)

    def add_quantized(self, module: str, weight: QuantizedWeight) -> None:
        """Add the weight of the linear module of that name."""
        self._dtype = weight.dtype
        for suffix, tensor in self._format.to_file(weight).items():
            self.add(f"{module}.weight{suffix}", tensor)

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor as it is."""
        assert not {name} & (self._file_of.keys() | self._shard.keys()), f"{name} was added twice"
        if self._shard and sum(held.nbytes for held in self._shard.values()) + tensor.nbytes > self._shard_bytes:
            self._write_shard()
        self._shard[name] = tensor.contiguous()

    def finish(self, config: dict[str, Any], unquantized: list[str]) -> None:
        """Write the last shard, the index and config.json; without a format of its own, the folder is of a plain model.

        `config` is the model's own; `unquantized` names the linear modules that were added as they are.
        """
        self._write_shard()
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": self._file_of}
        if self._format.own_folder:
            config = config | {"quantization_config": self._format.transformers_config(self._dtype, unquantized)}
        for name, content in ((INDEX, index), (CONFIG, config)):
            (self._folder / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    def _write_shard(self) -> None:
        self._shards += 1
        file = f"model-{self._shards:05}.safetensors"
        save_file(self._shard, self._folder / file, metadata={"format": "pt"})
        self._file_of |= dict.fromkeys(self._shard, file)
        self._total_bytes += sum(held.nbytes for held in self._shard.values())
        self._shard = {}


def read(folder: Path, format_: Format, linears: Iterable[str]) -> tuple[dict[str, QuantizedWeight], dict[str, Tensor]]:
    """Return the quantized weights by module name and every other tensor by its full name, on the CPU.

    Raises:
        QuantizationError: a weight of `linears` is missing, or is stored in another format.
    """
    tensors = _read_all(folder)
    quantized = {}
    for module in linears:
        prefix = f"{module}.weight"
        parts = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        try:
            quantized[module] = format_.from_file(parts)
        except KeyError as error:
            raise QuantizationError(f"{folder}: {prefix} lacks the tensor {prefix}{error.args[0]}.") from None
        except QuantizationError as error:
            raise QuantizationError(f"{folder}: {prefix}: {error}") from None
    return quantized, tensors


def _read_all(folder: Path) -> dict[str, Tensor]:
    tensors = {}
    for file in sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values())):
        with safe_open(folder / file, framework="pt") as shard:
            tensors |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118  (not a mapping)
    return tensors
