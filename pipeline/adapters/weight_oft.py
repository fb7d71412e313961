"""OFT as first published: y = (W R^T) x + b, the weight itself turned in every pass, by the exact Cayley transform.

Qiu et al. 2023, arXiv:2306.07280, equation 1, with R of `blocks` equal blocks; one block is the dense form. The same
function as OFTv2 with the exact transform, at the original's price: a dense turned W in every pass, kept for backward.
It is here to be the baseline of that claim, so nothing about it is made faster.

Shapes: packed Q (N, E), the turn R - I (N, C, C), W (O, I) seen as (O, N, C), N = `blocks`.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.adapters.base import AdapterLayer, AdapterSettings, Count, Method, Places
from pipeline.adapters.cayley import cayley, measured_error, skew
from pipeline.adapters.spectrum import rotation_angles
from pipeline.core.frozen import FrozenLinear
from pipeline.core.settings import SettingsError
from pipeline.core.site import Site
from pipeline.core.update import Update


class WeightOFT(AdapterSettings):
    """`blocks` is the paper's r: the more, the smaller the adapter."""

    label = "OFT"
    axis = "blocks"

    blocks: Count

    def method(self, seed: int, total_steps: int) -> "WeightOFTMethod":
        return WeightOFTMethod(self, seed, total_steps)


class WeightOFTLayer(AdapterLayer):
    def __init__(self, packed_NE: Tensor, C: int) -> None:
        super().__init__()
        self.packed_NE, self.C = nn.Parameter(packed_NE), C

    def turn(self) -> Tensor:
        """Return R - I."""
        return cayley(skew(self.packed_NE, self.C))

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        W_ONC = frozen.dense_weight(x.dtype).unflatten(1, (-1, self.C))
        turned_ONC = W_ONC + torch.einsum("onc,ndc->ond", W_ONC, self.turn().to(x.dtype))
        bias_O = None if frozen.bias is None else frozen.bias.to(x.dtype)
        return nn.functional.linear(x, turned_ONC.flatten(1), bias_O)

    def rotation(self) -> Tensor:
        """Return R."""
        return self.turn().detach() + torch.eye(self.C, device=self.packed_NE.device)

    def update(self) -> Update:
        return Update(rotation_NCC=self.rotation())

    def insight(self) -> dict[str, Any]:
        return {"rotation_angle": rotation_angles(self.rotation())}

    def tensors(self) -> dict[str, Tensor]:
        return {"oft_R.weight": -self.packed_NE}  # PEFT's exact transform is the inverse rotation

    def fill(self, saved: dict[str, Tensor]) -> None:
        self.packed_NE.copy_(-saved["oft_R.weight"])


class WeightOFTMethod(Method[WeightOFT, WeightOFTLayer]):
    start = ("identity", "Q is zero, so R - I is zero")

    def layers(self, places: Places) -> dict[Site, WeightOFTLayer]:
        N, made = self.settings.blocks, {}
        for site, frozen in self.chosen(places).items():
            C = site.in_features // N
            if site.in_features % N or C == 1:
                raise SettingsError(
                    f"adapter.blocks: {N} does not cut the {site.in_features} inputs of {site.name} into equal blocks "
                    "of at least 2; allowed is what divides the inputs of every layer, 1 for the dense form."
                )
            made[site] = WeightOFTLayer(torch.zeros(N, math.comb(C, 2), device=frozen.device), C)
        return made

    @torch.no_grad()
    def insight(self) -> dict[str, Any]:
        errors = {site.name: measured_error(layer.turn()) for site, layer in self.placed.items()}
        return super().insight() | {"orthogonality_error": errors}

    def peft(self) -> dict[str, Any]:
        return {
            "peft_type": "OFT", "r": self.settings.blocks, "oft_block_size": 0, "use_cayley_neumann": False,
            "block_share": False, "coft": False, "bias": "none",
        }  # fmt: skip
