"""BOFT: y = s (W R^T x) + b, R a product of butterfly factors: few small blocks, yet every input reaches many outputs.

Liu et al. 2024, arXiv:2311.06243: R = B_m ... B_1, B_i = P_i D_i P_i^T with D_i block-diagonal, each block the exact
Cayley transform of a skew-symmetric Q, zero at the start. P_i pairs halves of blocks that lie 2^(i-1) halves apart, so
m factors of block C connect the inputs in groups of C 2^(m-1). Only the input is turned, factor by factor and block
by block: no matrix of I x I is made. One factor is OFT with the exact transform. The scale s of each output is that of
PEFT's format; it trains only if `rescaled`, for the paper has none. Dropout is multiplicative (section 4): in training
each block of each factor is the identity with probability `dropout`, drawn once an optimizer step; nothing is rescaled.

Shapes: packed Q (F N, E), turns R - I (F, N, C, C), F = m factors; s (O,).
"""

from typing import Annotated, Any

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn

from pipeline.adapters.base import AdapterLayer, AdapterSettings, Count, Places
from pipeline.adapters.cayley import cayley, measured_error, skew
from pipeline.adapters.rotation import RotationMethod, blocks_along, shared_leaf
from pipeline.adapters.row_scale import kept_bias, scaled_rows
from pipeline.adapters.spectrum import rotation_angles
from pipeline.adapters.turn import turned
from pipeline.core import seeds
from pipeline.core.frozen import FrozenLinear
from pipeline.core.settings import SettingsError
from pipeline.core.site import Site
from pipeline.core.update import Update


class BOFT(AdapterSettings):
    label = "BOFT"
    axis = "block_size"

    block_size: Annotated[int, Ge(2)]
    factors: Count
    rescaled: bool
    dropout: Annotated[float, Interval(ge=0, lt=1)]

    def method(self, seed: int, total_steps: int) -> "BOFTMethod":
        return BOFTMethod(self, seed, total_steps)


def paired(x: Tensor, factor: int, C: int) -> Tensor:
    """Return x P: half-block h of each group of 2^(factor+1) next to half-block h + 2^factor; factor from 0."""
    groups = x.shape[-1] // (C * 2**factor)
    return x.unflatten(-1, (groups, 2, 2**factor, C // 2)).transpose(-3, -2).flatten(-4)


def unpaired(x: Tensor, factor: int, C: int) -> Tensor:
    """Return x P^T, which undoes `paired`."""
    groups = x.shape[-1] // (C * 2**factor)
    return x.unflatten(-1, (groups, 2**factor, 2, C // 2)).transpose(-3, -2).flatten(-4)


class BOFTLayer(AdapterLayer):
    scale_O: Tensor

    def __init__(self, packed_NE: Tensor, turn_FNCC: Tensor, scale_O: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.packed_NE, self.turn_FNCC = packed_NE, turn_FNCC  # views of the method's own tensors
        self.__dict__["bias_O"] = bias_O  # the frozen layer's
        if isinstance(scale_O, nn.Parameter):
            self.scale_O = scale_O
        else:
            self.register_buffer("scale_O", scale_O)

    def turn(self, x: Tensor) -> Tensor:
        """Return x R, the last factor first, as rows."""
        C = self.turn_FNCC.shape[-1]
        for factor in reversed(range(1, len(self.turn_FNCC))):
            x = unpaired(turned(paired(x, factor, C), self.turn_FNCC[factor]), factor, C)
        return turned(x, self.turn_FNCC[0])

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        return scaled_rows(frozen(self.turn(x)), self.scale_O - 1, frozen.bias)

    @torch.no_grad()
    def update(self) -> Update:
        F, N, C, _ = self.turn_FNCC.shape
        width = C * 2 ** (F - 1)
        groups = N * C // width
        rows = self.turn(torch.eye(width, device=self.turn_FNCC.device).repeat(1, groups))  # of all groups at once
        scale_O = self.scale_O.detach()
        return Update(
            rotation_NCC=rows.unflatten(-1, (groups, width)).transpose(0, 1),
            row_scale_O=scale_O,
            bias_O=kept_bias(scale_O, self.__dict__["bias_O"]),
        )

    def tensors(self) -> dict[str, Tensor]:
        # PEFT's exact transform is the inverse of ours, and its blocks are not packed.
        C = self.turn_FNCC.shape[-1]
        return {"boft_R": -skew(self.packed_NE, C).view(self.turn_FNCC.shape), "boft_s": self.scale_O[:, None]}

    def insight(self) -> dict[str, Any]:
        turn_NCC = self.turn_FNCC.detach().flatten(0, 1)  # of the factors: their product may be as wide as the input
        return {"rotation_angle": rotation_angles(turn_NCC + torch.eye(turn_NCC.shape[-1], device=turn_NCC.device))}

    def fill(self, saved: dict[str, Tensor]) -> None:
        data_NCC = saved["boft_R"].flatten(0, 1)
        C = data_NCC.shape[-1]
        row_E, column_E = torch.triu_indices(C, C, 1)
        self.packed_NE.copy_(((data_NCC.mT - data_NCC) / 2)[:, row_E, column_E])
        self.scale_O.copy_(saved["boft_s"][:, 0])


class BOFTMethod(RotationMethod[BOFT, BOFTLayer]):
    turning_N11: Tensor

    start = ("identity", "Q is zero, so R - I is zero, and s is one")
    not_peft = "without its CUDA extension PEFT makes one factor, whatever the file says"

    @property
    def block_size(self) -> int:
        return self.settings.block_size

    def count(self, site: Site) -> int:
        C, factors = self.block_size, self.settings.factors
        if factors > 1 and (C % 2 or site.in_features % (C * 2 ** (factors - 1))):
            raise SettingsError(
                f"adapter.factors: {factors} factors of blocks of {C} pair half-blocks in groups of "
                f"{C * 2 ** (factors - 1)}: block_size must be even and the group divide the {site.in_features} inputs "
                f"of {site.name}. Lower factors or block_size."
            )
        return factors * blocks_along(site, C)

    def layer(self, site: Site, frozen: FrozenLinear, *views_N: Tensor) -> BOFTLayer:
        packed_NE, turn_NCC, gradient_NCC = views_N
        shape = (self.settings.factors, -1, self.block_size, self.block_size)
        ones_O = torch.ones(site.out_features, device=packed_NE.device)
        scale_O = nn.Parameter(ones_O) if self.settings.rescaled else ones_O
        leaf_FNCC = shared_leaf(turn_NCC.view(shape), gradient_NCC.view(shape))
        return BOFTLayer(packed_NE, leaf_FNCC, scale_O, frozen.bias)

    def turns(self, Q_NCC: Tensor) -> Tensor:
        return cayley(Q_NCC)

    def layers(self, places: Places) -> dict[Site, BOFTLayer]:
        made = super().layers(places)
        self.register_buffer("turning_N11", torch.ones_like(self.turn_NCC[:, :1, :1]), persistent=False)
        return made

    def before_step(self, step: int) -> None:
        if self.settings.dropout:
            generator = seeds.generator(self.seed, "dropout", step)
            self.turning_N11.copy_(torch.rand(self.turning_N11.shape, generator=generator) >= self.settings.dropout)
            self.turn_NCC.mul_(self.turning_N11)  # until the next refresh

    def after_backward(self, step: int) -> None:
        self.gradient_NCC.mul_(self.turning_N11)
        super().after_backward(step)

    def insight(self) -> dict[str, Any]:
        errors = {site.name: measured_error(layer.turn_FNCC.detach()) for site, layer in self.placed.items()}
        return super().insight() | {"orthogonality_error": errors}

    def peft(self) -> dict[str, Any] | None:
        if self.settings.factors > 1:
            return None
        return {
            "peft_type": "BOFT", "boft_block_size": self.block_size, "boft_block_num": 0,
            "boft_n_butterfly_factor": 1, "boft_dropout": self.settings.dropout, "bias": "none",
        }  # fmt: skip
