"""DoRA: y = m / ||W + s B A|| (W + s B A) x + b: LoRA turns the rows of W, and m alone says how long they are.

Liu et al. 2024, arXiv:2402.09353, equation 5, s = alpha / r; m = ||W|| and B = 0 at the start. The norm is over the
inputs of each output, as in the authors' code and in PEFT, and counts as a constant in backward (section 4.3). A
constant, it is made once a step and not in every pass: ||W + s B A||^2 = ||W||^2 + 2 s (W A^T) . B + s^2 (B A A^T) . B,
row by row, which takes one dense W and never an (O, I) product.

Shapes: A (R, I), B (O, R), m (O,).
"""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.adapters.base import AdapterLayer, AdapterSettings, Count, Method, Places, Positive
from pipeline.adapters.lora import alpha_or_default, at_start, peft_lora
from pipeline.adapters.low_rank import low_rank
from pipeline.adapters.row_scale import kept_bias, scaled_rows
from pipeline.adapters.spectrum import effective_rank
from pipeline.core.frozen import FrozenLinear
from pipeline.core.group import Group
from pipeline.core.site import Site
from pipeline.core.update import Update


class DoRA(AdapterSettings):
    label = "DoRA"
    axis = "rank"

    rank: Count
    alpha: Positive | None

    def method(self, seed: int, total_steps: int) -> "DoRAMethod":
        return DoRAMethod(self, seed, total_steps)


class DoRALayer(AdapterLayer):
    norm_O: Tensor
    squares_O: Tensor

    def __init__(self, A_RI: Tensor, B_OR: Tensor, scale: float, frozen: FrozenLinear) -> None:
        super().__init__()
        self.A_RI, self.B_OR, self.scale = nn.Parameter(A_RI), nn.Parameter(B_OR), scale
        self.__dict__["frozen"] = frozen  # the norm is of this very weight; not a submodule, it does not train
        squares_O = frozen.dense_weight(torch.float32).square().sum(1)
        self.register_buffer("squares_O", squares_O, persistent=False)
        self.register_buffer("norm_O", squares_O.sqrt(), persistent=False)
        self.magnitude_O = nn.Parameter(squares_O.sqrt())

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        y = low_rank(x, self.A_RI, self.scale * self.B_OR, frozen)
        return scaled_rows(y, self.magnitude_O / self.norm_O - 1, frozen.bias)

    @torch.no_grad()
    def measure(self) -> None:
        """Make the norm that A and B have now."""
        inner_OR = self.__dict__["frozen"].dense_weight(torch.float32) @ self.A_RI.T
        grown_OR = 2 * self.scale * inner_OR + self.scale**2 * self.B_OR @ (self.A_RI @ self.A_RI.T)
        self.norm_O.copy_((self.squares_O + (grown_OR * self.B_OR).sum(1)).sqrt())

    def update(self) -> Update:
        scale_O = self.magnitude_O.detach() / self.norm_O
        return Update(
            delta_OI=self.scale * self.B_OR.detach() @ self.A_RI.detach(),
            row_scale_O=scale_O,
            bias_O=kept_bias(scale_O, self.__dict__["frozen"].bias),
        )

    def tensors(self) -> dict[str, Tensor]:
        return {
            "lora_A.weight": self.A_RI, "lora_B.weight": self.B_OR, "lora_magnitude_vector": self.magnitude_O,
        }  # fmt: skip

    def insight(self) -> dict[str, Any]:
        return {"effective_rank": effective_rank(self.A_RI, self.B_OR)}


class DoRAMethod(Method[DoRA, DoRALayer]):
    start = ("identity", "B is zero and m the norm of W")

    @property
    def alpha(self) -> float:
        """Return alpha; the scale is alpha / r."""
        return alpha_or_default(self.settings.alpha, self.settings.rank)

    def layers(self, places: Places) -> dict[Site, DoRALayer]:
        rank, scale = self.settings.rank, self.alpha / self.settings.rank
        return {
            site: DoRALayer(*at_start(site, rank, self.seed, frozen.device), scale, frozen)
            for site, frozen in self.chosen(places).items()
        }

    def groups(self) -> list[Group]:
        placed = self.placed.values()
        return [
            Group([weight for layer in placed for weight in (layer.A_RI, layer.B_OR)]),
            Group([layer.magnitude_O for layer in placed], decay=False),  # decay would shorten every row of W
        ]

    def refresh(self) -> None:
        for layer in self.placed.values():
            layer.measure()

    def peft(self) -> dict[str, Any]:
        return peft_lora(self.settings.rank, self.alpha) | {"use_dora": True}
