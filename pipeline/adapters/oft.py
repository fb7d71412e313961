"""OFTv2: y = W R^T x + b, R block-diagonal and orthogonal, so only the input is turned and W may stay quantized.

Qiu et al. 2025, arXiv:2506.19847: R = (I + Q)(I + Q + ... + Q^k), the Cayley-Neumann series of a skew-symmetric Q,
k = `terms`, or R = (I + Q)(I - Q)^-1 itself; Q = 0 at the start. On NF4 this file is QOFT. As rows, x becomes x R and
the weight W R^T. With `shared` one block turns all parts of the input (OFT, arXiv:2306.07280, section 3).

Shapes: packed Q (N, E); Q, R and turn = R - I (N, C, C); N is 1 with `shared`, which stands for I / C times the same.
"""

from typing import Annotated, Any, TypeVar

import torch
from annotated_types import Ge
from torch import Tensor

from pipeline.adapters.base import AdapterLayer, AdapterSettings
from pipeline.adapters.cayley import cayley, cayley_neumann, measured_error, orthogonality_error, skew
from pipeline.adapters.rotation import RotationMethod, blocks_along, shared_leaf
from pipeline.adapters.spectrum import rotation_angles
from pipeline.adapters.turn import turned
from pipeline.core.frozen import FrozenLinear
from pipeline.core.site import Site
from pipeline.core.update import Update


class OFT(AdapterSettings):
    """`terms` is the paper's k, None the exact transform."""

    label = "OFTv2"
    axis = "block_size"

    block_size: Annotated[int, Ge(2)]
    terms: Annotated[int, Ge(2)] | None
    shared: bool

    def method(self, seed: int, total_steps: int) -> "OFTMethod[Any]":
        return OFTMethod(self, seed, total_steps)


class OFTLayer(AdapterLayer):
    def __init__(self, packed_NE: Tensor, turn_NCC: Tensor, blocks: int, sign: int) -> None:
        super().__init__()
        self.packed_NE, self.turn_NCC = packed_NE, turn_NCC  # views of the method's own tensors
        self.blocks, self.sign = blocks, sign

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        return frozen(turned(x, self.turn_NCC.expand(self.blocks, -1, -1)))

    def rotation(self) -> Tensor:
        """Return R, one block with `shared`."""
        turn_NCC = self.turn_NCC.detach()
        return turn_NCC + torch.eye(turn_NCC.shape[-1], device=turn_NCC.device)

    def update(self) -> Update:
        return Update(rotation_NCC=self.rotation().expand(self.blocks, -1, -1))

    def tensors(self) -> dict[str, Tensor]:
        return {"oft_R.weight": self.sign * self.packed_NE}

    def insight(self) -> dict[str, Any]:
        return {"rotation_angle": rotation_angles(self.rotation())}

    def fill(self, saved: dict[str, Tensor]) -> None:
        self.packed_NE.copy_(self.sign * saved["oft_R.weight"])


S = TypeVar("S", bound=OFT)


class OFTMethod(RotationMethod[S, OFTLayer]):
    @property
    def block_size(self) -> int:
        return self.settings.block_size

    def count(self, site: Site) -> int:
        blocks = blocks_along(site, self.block_size)
        return 1 if self.settings.shared else blocks

    def layer(self, site: Site, frozen: FrozenLinear, *views_N: Tensor) -> OFTLayer:
        packed_NE, turn_NCC, gradient_NCC = views_N
        # PEFT's exact transform is the inverse of its series, so what turns the same way is -Q there.
        sign = -1 if self.settings.terms is None else 1
        leaf_NCC = shared_leaf(turn_NCC, gradient_NCC)
        return OFTLayer(packed_NE, leaf_NCC, site.in_features // self.block_size, sign)

    def turns(self, Q_NCC: Tensor) -> Tensor:
        terms = self.settings.terms
        return cayley(Q_NCC) if terms is None else cayley_neumann(Q_NCC, terms)

    @torch.no_grad()
    def insight(self) -> dict[str, Any]:
        C, terms = self.block_size, self.settings.terms
        errors = {
            site.name: measured_error(layer.turn_NCC)
            if terms is None
            else orthogonality_error(skew(layer.packed_NE, C), terms)
            for site, layer in self.placed.items()
        }
        return super().insight() | {"orthogonality_error": errors}

    def peft(self) -> dict[str, Any]:
        # PEFT counts other terms: its n is k + 2, its 3 is 4 again, and below that its series has lost its last power.
        terms = self.settings.terms
        return peft_oft(self.block_size, None if terms is None else terms + 2, self.settings.shared)


def peft_oft(block_size: int, terms: int | None, shared: bool) -> dict[str, Any]:
    """Return PEFT's configuration of an OFT with as many terms as PEFT counts; None: the exact transform."""
    return {
        "peft_type": "OFT", "r": 0, "oft_block_size": block_size, "use_cayley_neumann": terms is not None,
        "num_cayley_neumann_terms": 5 if terms is None else terms, "block_share": shared, "coft": False, "bias": "none",
    }  # fmt: skip
