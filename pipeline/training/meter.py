"""What a training cost: time, tokens, memory. Costs of a shared machine are hints; `profile` measures alone."""

import resource
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.core.leases import slots
from pipeline.core.provenance import device_name


@dataclass
class Meter:
    """Started when training starts; `about` gives the figures for the record."""

    device: torch.device
    started: float = field(default_factory=time.perf_counter)

    def about(self, labelled_tokens: int) -> dict[str, Any]:
        """Return seconds, labelled tokens a second, peak memory in bytes, the device, and how many jobs share it."""
        seconds = time.perf_counter() - self.started
        return {
            "training_seconds": round(seconds, 3),
            "labelled_tokens_per_second": round(labelled_tokens / seconds, 1),
            "peak_memory_bytes": self.peak(),
            "device": device_name(str(self.device)),
            "jobs_per_gpu": slots() if self.device.type == "cuda" else None,
        }

    def peak(self) -> int:
        """Return the most memory so far: what the allocator holds on a GPU, or the resident set of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
