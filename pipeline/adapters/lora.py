"""LoRA: y = W x + b + (alpha / r) B A x, with A random and B zero at the start. With dropout, in training, of A's x.

Hu et al. 2021, arXiv:2106.09685, equation 3; A is Kaiming-uniform with a = sqrt 5, as in the authors' code.

Shapes: A (R, I), B (O, R).
"""

import math
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn

from pipeline.adapters.base import AdapterLayer, AdapterSettings, Count, Method, Places, Positive
from pipeline.adapters.dropout import Dropout
from pipeline.adapters.low_rank import low_rank
from pipeline.adapters.spectrum import effective_rank
from pipeline.core import seeds
from pipeline.core.frozen import FrozenLinear
from pipeline.core.site import Site
from pipeline.core.update import Update


class LoRA(AdapterSettings):
    label = "LoRA"
    axis = "rank"

    rank: Count
    alpha: Positive | None
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0

    def method(self, seed: int, total_steps: int) -> "LoRAMethod":
        return LoRAMethod(self, seed, total_steps)


class LoRALayer(AdapterLayer):
    def __init__(self, A_RI: Tensor, B_OR: Tensor, scale: float, dropout: Dropout | None = None) -> None:
        super().__init__()
        self.A_RI, self.B_OR, self.scale, self.dropout = nn.Parameter(A_RI), nn.Parameter(B_OR), scale, dropout

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        if self.training and self.dropout is not None:
            h = self.dropout(x) @ self.A_RI.to(x.dtype).T
            return frozen(x) + h @ (self.scale * self.B_OR).to(x.dtype).T
        return low_rank(x, self.A_RI, self.scale * self.B_OR, frozen)

    def update(self) -> Update:
        return Update(delta_OI=self.scale * self.B_OR.detach() @ self.A_RI.detach())

    def tensors(self) -> dict[str, Tensor]:
        return {"lora_A.weight": self.A_RI, "lora_B.weight": self.B_OR}

    def insight(self) -> dict[str, Any]:
        return {"effective_rank": effective_rank(self.A_RI, self.B_OR)}


class LoRAMethod(Method[LoRA, LoRALayer]):
    start = ("identity", "B is zero")

    def __init__(self, settings: LoRA, seed: int, total_steps: int) -> None:
        super().__init__(settings, seed, total_steps)
        if settings.dropout:
            self.graph_safe = (False, "the host makes the generators of dropout anew every step")  # type: ignore[misc]

    def layers(self, places: Places) -> dict[Site, LoRALayer]:
        rank = self.settings.rank
        scale = alpha_or_default(self.settings.alpha, rank) / rank
        return {
            site: LoRALayer(*self.at_start(site, frozen), scale, self.dropout(site, frozen.device))
            for site, frozen in self.chosen(places).items()
        }

    def at_start(self, site: Site, frozen: FrozenLinear) -> tuple[Tensor, Tensor]:
        """Return A and B as they start."""
        return at_start(site, self.settings.rank, self.seed, frozen.device)

    def dropout(self, site: Site, device: torch.device) -> Dropout | None:
        """Return what drops a site's inputs, if the settings say so."""
        return Dropout(self.settings.dropout, self.seed, site.name, device) if self.settings.dropout else None

    def before_step(self, step: int) -> None:
        for layer in self.placed.values():
            if layer.dropout is not None:
                layer.dropout.start(step)

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
