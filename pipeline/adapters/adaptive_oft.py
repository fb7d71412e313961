"""Adaptive OFT: every block of every layer starts to turn, and the least important ones are put back to the identity.

What Qiu et al. 2025, arXiv:2506.19847, leave as future work, done as AdaLoRA does it for rank (pipeline/adapters/
budget.py): a block's importance is the mean over its entries of I U; after update t all but b(t) blocks of the whole
model have Q = 0, R = I, b falling from all blocks to the share `keep`. So layers come to have different numbers of
blocks. Between two cuts a block that was put back may turn again.

Shapes: packed Q, I and U (N, E), N the blocks of all layers.
"""

from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from pipeline.adapters.base import Count, Places
from pipeline.adapters.budget import Schedule, alive, watch
from pipeline.adapters.oft import OFT, OFTLayer, OFTMethod
from pipeline.core.site import Site


class AdaptiveOFT(OFT):
    """`keep` is the share of blocks left in the end; `warm` and `cool` are fractions of all steps."""

    label = "Adaptive OFT"

    keep: Annotated[float, Interval(gt=0, lt=1)]
    warm: Annotated[float, Interval(ge=0, lt=1)]
    cool: Annotated[float, Interval(ge=0, lt=1)]
    every: Count
    beta: Annotated[float, Interval(gt=0, lt=1)]

    def method(self, seed: int, total_steps: int) -> "AdaptiveOFTMethod":
        return AdaptiveOFTMethod(self, seed, total_steps)


class AdaptiveOFTMethod(OFTMethod[AdaptiveOFT]):
    graph_safe = (True, "blocks, whose budget the host knows, are cut after the captured step")

    mean_NE: Tensor
    spread_NE: Tensor

    def __init__(self, settings: AdaptiveOFT, seed: int, total_steps: int) -> None:
        super().__init__(settings, seed, total_steps)
        self.schedule = Schedule(settings.warm, settings.cool, settings.every, total_steps)

    def layers(self, places: Places) -> dict[Site, OFTLayer]:
        made = super().layers(places)
        for name in ("mean_NE", "spread_NE"):
            self.register_buffer(name, torch.zeros_like(self.packed_NE.detach()))
        return made

    def budget(self, t: int) -> int:
        """Return b(t), the blocks that may turn after update t (from 1)."""
        blocks = len(self.packed_NE)
        return self.schedule.budget(t, blocks, max(1, round(self.settings.keep * blocks)))

    @torch.no_grad()
    def after_backward(self, step: int) -> None:
        with torch.enable_grad():
            super().after_backward(step)
        assert self.packed_NE.grad is not None
        if self.schedule.watches(step):
            watch(self.packed_NE, self.packed_NE.grad, self.mean_NE, self.spread_NE, self.settings.beta)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        t = step + 1
        if self.schedule.cuts(t):
            importance_N = (self.mean_NE * self.spread_NE).mean(1)
            self.packed_NE.mul_(alive(importance_N, self.budget(t))[:, None])

    def insight(self) -> dict[str, Any]:
        turning = {site.name: int(layer.packed_NE.any(1).sum()) for site, layer in self.placed.items()}
        shipped = sum(turning.values()) * self.packed_NE.shape[1]
        return super().insight() | {"blocks": turning, "shipped_parameters": shipped}
