"""LoRA: y = W x + b + (alpha / r) B A x, with A random and B zero at the start.

Hu et al. 2021, arXiv:2106.09685, equation 3; A is Kaiming-uniform with a = sqrt 5, as in the authors' code.

Shapes: A (R, I), B (O, R).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.adapters.base import AdapterLayer, AdapterSettings, Count, Method, Places, Positive
from pipeline.adapters.low_rank import low_rank
from pipeline.core import seeds
from pipeline.core.frozen import FrozenLinear
from pipeline.core.site import Site
from pipeline.core.update import Update


class LoRA(AdapterSettings):
    label = "LoRA"
    axis = "rank"

    rank: Count
    alpha: Positive | None

    def method(self, seed: int, total_steps: int) -> "LoRAMethod":
        return LoRAMethod(self, seed, total_steps)


class LoRALayer(AdapterLayer):
    def __init__(self, A_RI: Tensor, B_OR: Tensor, scale: float) -> None:
        super().__init__()
        self.A_RI, self.B_OR, self.scale = nn.Parameter(A_RI), nn.Parameter(B_OR), scale

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        return low_rank(x, self.A_RI, self.scale * self.B_OR, frozen)

    def update(self) -> Update:
        return Update(delta_OI=self.scale * self.B_OR.detach() @ self.A_RI.detach())

    def tensors(self) -> dict[str, Tensor]:
        return {"lora_A.weight": self.A_RI, "lora_B.weight": self.B_OR}


class LoRAMethod(Method[LoRA, LoRALayer]):
    start = ("identity", "B is zero")

    def layers(self, places: Places) -> dict[Site, LoRALayer]:
        rank = self.settings.rank
        alpha = alpha_or_default(self.settings.alpha, rank)
        return {
            site: LoRALayer(*at_start(site, rank, self.seed, frozen.device), alpha / rank)
            for site, frozen in self.chosen(places).items()
        }

    def peft(self) -> dict[str, Any] | None:
        return peft_lora(self.settings.rank, alpha_or_default(self.settings.alpha, self.settings.rank))


def alpha_or_default(alpha: float | None, rank: int) -> float:
    """Return alpha; None is twice the rank: then the scale alpha / rank is 2 whatever the rank."""
    return 2.0 * rank if alpha is None else alpha


def at_start(site: Site, rank: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return A (R, I), drawn from the site's own stream, and B (O, R), zero."""
    A_RI = torch.empty(rank, site.in_features)
    nn.init.kaiming_uniform_(A_RI, a=math.sqrt(5), generator=seeds.generator(seed, f"init/{site.name}"))
    return A_RI.to(device), torch.zeros(site.out_features, rank, device=device)


def peft_lora(rank: int, alpha: float) -> dict[str, Any]:
    """Return PEFT's configuration of a LoRA with scale alpha / rank."""
    return {
        "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "use_rslora": False, "use_dora": False, "bias": "none",
    }  # fmt: skip
