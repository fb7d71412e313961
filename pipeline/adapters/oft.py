"""OFTv2: y = W R^T x + b, R block-diagonal and orthogonal, so only the input is turned and W may stay quantized.

Qiu et al. 2025, arXiv:2506.19847: R = (I + Q)(I + Q + ... + Q^k), the Cayley-Neumann series of a skew-symmetric Q,
k = `terms`; Q = 0 at the start. On NF4 this file is QOFT. As rows, x becomes x R and the weight W R^T.
The series is made once a step for the blocks of all layers, and its gradient pulled back once.

Shapes: packed Q (N, E), the strict upper triangle row by row as PEFT keeps it; Q, R and turn = R - I (N, C, C).
"""

import math
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from pipeline.adapters.base import AdapterLayer, AdapterSettings, Method, Places
from pipeline.adapters.turn import turned
from pipeline.core.frozen import FrozenLinear
from pipeline.core.settings import SettingsError
from pipeline.core.site import Site
from pipeline.core.update import Update


class OFT(AdapterSettings):
    label = "OFTv2"
    axis = "block_size"

    block_size: Annotated[int, Ge(2)]
    terms: Annotated[int, Ge(2)]

    def method(self, seed: int, total_steps: int) -> "OFTMethod":
        return OFTMethod(self, seed, total_steps)


def skew(packed_NE: Tensor, C: int) -> Tensor:
    """Return the skew-symmetric blocks (N, C, C) of packed strict upper triangles."""
    row_E, column_E = torch.triu_indices(C, C, 1, device=packed_NE.device)
    upper_NCC = packed_NE.new_zeros(len(packed_NE), C, C)
    upper_NCC[:, row_E, column_E] = packed_NE
    return upper_NCC - upper_NCC.mT


def cayley_neumann(Q_NCC: Tensor, terms: int) -> Tensor:
    """Return R - I = 2 Q + ... + 2 Q^k + Q^(k+1), by Horner's rule on S = Q + ... + Q^k."""
    S_NCC = Q_NCC
    for _ in range(terms - 1):
        S_NCC = torch.baddbmm(Q_NCC, Q_NCC, S_NCC)
    return S_NCC + torch.baddbmm(Q_NCC, Q_NCC, S_NCC)


def orthogonality_error(Q_NCC: Tensor, terms: int) -> float:
    """Return the largest ||R^T R - I||_2 of the blocks, in closed form.

    R = R_exact (I - Q^m) with m = k + 1, and Q has eigenvalues +-i theta, so R^T R has |1 - (i theta)^m|^2.
    """
    theta_NC = torch.linalg.svdvals(Q_NCC.double())
    cosine = (1, 0, -1, 0)[(terms + 1) % 4]
    power_NC = theta_NC ** (terms + 1)
    return float((power_NC**2 - 2 * cosine * power_NC).abs().max())


class OFTLayer(AdapterLayer):
    def __init__(self, packed_NE: Tensor, turn_NCC: Tensor, gradient_NCC: Tensor) -> None:
        super().__init__()
        self.packed_NE = packed_NE  # these three are views of the method's own tensors
        # A leaf of its own: the backward of a slice of one large leaf would fill a large zero tensor a site.
        self.turn_NCC = turn_NCC.detach().requires_grad_()
        self.turn_NCC.grad = gradient_NCC

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        return frozen(turned(x, self.turn_NCC))

    def update(self) -> Update:
        turn_NCC = self.turn_NCC.detach()
        return Update(rotation_NCC=turn_NCC + torch.eye(turn_NCC.shape[-1], device=turn_NCC.device))

    def tensors(self) -> dict[str, Tensor]:
        return {"oft_R.weight": self.packed_NE}


class OFTMethod(Method[OFT, OFTLayer]):
    start = ("identity", "Q is zero, so R - I is zero")

    packed_NE: nn.Parameter
    turn_NCC: Tensor
    gradient_NCC: Tensor

    def layers(self, places: Places) -> dict[Site, OFTLayer]:
        chosen, C = self.chosen(places), self.settings.block_size
        for site in chosen:
            if site.in_features % C:
                allowed = [d for d in range(2, site.in_features + 1) if site.in_features % d == 0]
                raise SettingsError(
                    f"adapter.block_size: {C} does not divide the {site.in_features} inputs of {site.name}; "
                    f"allowed there: {', '.join(map(str, allowed))}."
                )
        counts = [site.in_features // C for site in chosen]
        N, device = sum(counts), next(iter(chosen.values())).device
        self.packed_NE = nn.Parameter(torch.zeros(N, math.comb(C, 2), device=device))
        self.register_buffer("turn_NCC", torch.zeros(N, C, C, device=device), persistent=False)
        self.register_buffer("gradient_NCC", torch.zeros(N, C, C, device=device), persistent=False)
        parts = (flat.detach().split(counts) for flat in (self.packed_NE, self.turn_NCC, self.gradient_NCC))
        return {site: OFTLayer(*views) for site, *views in zip(chosen, *parts, strict=True)}

    def series(self) -> Tensor:
        """Return R - I of all blocks, as a function of the packed parameter."""
        return cayley_neumann(skew(self.packed_NE, self.settings.block_size), self.settings.terms)

    @torch.no_grad()
    def refresh(self) -> None:
        self.turn_NCC.copy_(self.series())

    def after_backward(self, step: int) -> None:
        self.series().backward(self.gradient_NCC)  # the parts' gradients lie there, summed
        self.gradient_NCC.zero_()

    @torch.no_grad()
    def insight(self) -> dict[str, Any]:
        C, terms = self.settings.block_size, self.settings.terms
        layers = {site.name: skew(layer.packed_NE, C) for site, layer in self.placed.items()}
        return {"orthogonality_error": {name: orthogonality_error(Q_NCC, terms) for name, Q_NCC in layers.items()}}

    def peft(self) -> dict[str, Any]:
        # PEFT counts other terms: its n is k + 2, its 3 is 4 again, and below that its series has lost its last power.
        return {
            "peft_type": "OFT", "r": 0, "oft_block_size": self.settings.block_size, "use_cayley_neumann": True,
            "num_cayley_neumann_terms": self.settings.terms + 2, "block_share": False, "coft": False, "bias": "none",
        }  # fmt: skip
