"""What it takes to ask a base in one state: the weights that must be held, time, and on a GPU peak memory.

Time and peak are those of this evaluation, whatever else ran beside it: hints, to be measured alone where they decide.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.adapters.base import AdapterLayer
from pipeline.core.site import Site
from pipeline.models.load import Base
from pipeline.quantization.base import StoredLinear


def weight_bytes(base: Base, layers: Mapping[Site, AdapterLayer]) -> int:
    """Return the bytes of the base as it is stored now, and of the adapter as it ships."""
    held = [*base.model.parameters(), *base.model.buffers()]
    for module in base.model.modules():
        if isinstance(module, StoredLinear):
            held += [*module.quantized.tensors.values(), *([] if module.bias is None else [module.bias])]
    held += [tensor for layer in layers.values() for tensor in layer.tensors().values()]
    return sum(tensor.nbytes for tensor in held)


@contextmanager
def watched(device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield what the block costs, filled in when it ends."""
    cost: dict[str, Any] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    yield cost
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        cost["peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    cost["seconds"] = round(time.perf_counter() - started, 4)
