"""COFT: OFT whose rotations stay near the identity: in a layer of N blocks, ||Q||_F <= epsilon / sqrt(N) for each.

Qiu et al. 2023, arXiv:2306.07280, section 3, bounds ||R - I||; Q is bounded instead, as in the authors' code, where
R - I is about 2 Q. A block outside is scaled back to the sphere after each step: forward and evaluation change nothing.

Shapes: packed Q (N, E), limit (N, 1).
"""

import math
from typing import Any

import torch
from torch import Tensor

from pipeline.adapters.base import Places, Positive
from pipeline.adapters.oft import OFT, OFTLayer, OFTMethod
from pipeline.core.site import Site


class COFT(OFT):
    """`epsilon` is PEFT's `eps`: half of the paper's bound on R - I, for N blocks together."""

    label = "COFT"

    epsilon: Positive

    def method(self, seed: int, total_steps: int) -> "COFTMethod":
        return COFTMethod(self, seed, total_steps)


class COFTMethod(OFTMethod[COFT]):
    limit_N1: Tensor

    def layers(self, places: Places) -> dict[Site, OFTLayer]:
        made = super().layers(places)
        counts = torch.tensor([len(layer.packed_NE) for layer in made.values()])
        limit_N = self.settings.epsilon / counts.repeat_interleave(counts, output_size=len(self.packed_NE)).sqrt()
        self.register_buffer("limit_N1", limit_N[:, None].to(self.packed_NE.device), persistent=False)
        return made

    @torch.no_grad()
    def refresh(self) -> None:
        norm_N1 = math.sqrt(2) * self.packed_NE.norm(dim=1, keepdim=True)
        # Not by a hair: round-off beyond the sphere would be projected at each load, and a resumed run would differ.
        outside_N1 = norm_N1 > self.limit_N1 * (1 + 1e-5)
        self.packed_NE.mul_(torch.where(outside_N1, self.limit_N1 / norm_N1, 1.0))
        super().refresh()

    def peft(self) -> dict[str, Any]:
        return super().peft() | {"coft": True, "eps": self.settings.epsilon}
