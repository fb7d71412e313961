"""Dropout whose masks are a function of seed, name, step and the number of the pass within the step."""

import torch
from torch import Tensor

from pipeline.core import seeds


class Dropout:
    """Zeroes each element with probability `p` and scales the others by 1 / (1 - p), by a generator made every step."""

    def __init__(self, p: float, seed: int, name: str, device: torch.device) -> None:
        self.p, self.seed, self.name, self.device = p, seed, f"dropout/{name}", device
        self.start(0)

    def start(self, step: int) -> None:
        """Begin optimizer step `step`; its passes draw one after another."""
        if self.p and self.device.type != "meta":
            number = seeds.number(self.seed, self.name, step)
            self.generator = torch.Generator(self.device).manual_seed(number)

    def __call__(self, x: Tensor) -> Tensor:
        """Return x with its mask on it, in the dtype of x."""
        kept = torch.rand(x.shape, generator=self.generator, device=x.device) >= self.p
        return x * (kept / (1 - self.p)).to(x.dtype)
