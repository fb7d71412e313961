"""QA-LoRA: y = W x + b + (alpha / r) B A p(x), where p(x) sums x over groups of neighbors.

Xu et al. 2023, arXiv:2309.14717, equation 3 and algorithm 1, whose average over a group times its size is this sum; A
is drawn as LoRA's, B is zero at the start. A is `group_size` times narrower than LoRA's, and what the layer adds to W
is constant within each group: a base whose groups are these takes it into its zero points, and its codes stay. On every
other base it trains as well, and merges as a LoRA does.

Shapes: G groups of K inputs (G K = I), A (R, G), B (O, R).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.adapters.base import AdapterLayer, AdapterSettings, Count, Method, Places, Positive
from pipeline.adapters.lora import alpha_or_default
from pipeline.adapters.spectrum import effective_rank
from pipeline.core import seeds
from pipeline.core.frozen import FrozenLinear
from pipeline.core.settings import SettingsError
from pipeline.core.site import Site
from pipeline.core.update import Update


class QALoRA(AdapterSettings):
    """`group_size` is the base's where a merge is to be exact."""

    label = "QA-LoRA"
    axis = "rank"

    rank: Count
    alpha: Positive | None
    group_size: Count

    def method(self, seed: int, total_steps: int) -> "QALoRAMethod":
        return QALoRAMethod(self, seed, total_steps)


class QALoRALayer(AdapterLayer):
    def __init__(self, A_RG: Tensor, B_OR: Tensor, scale: float, K: int) -> None:
        super().__init__()
        self.A_RG, self.B_OR, self.scale, self.K = nn.Parameter(A_RG), nn.Parameter(B_OR), scale, K

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        sums = x.unflatten(-1, (-1, self.K)).sum(-1)
        return frozen(x) + (sums @ self.A_RG.to(x.dtype).T) @ (self.scale * self.B_OR).to(x.dtype).T

    def update(self) -> Update:
        delta_OG = self.scale * self.B_OR.detach() @ self.A_RG.detach()
        return Update(delta_OI=delta_OG.repeat_interleave(self.K, 1))

    def tensors(self) -> dict[str, Tensor]:
        return {"lora_A.weight": self.A_RG, "lora_B.weight": self.B_OR}

    def insight(self) -> dict[str, Any]:
        """Return the rank of B A, which repeating each column K times leaves as it is."""
        return {"effective_rank": effective_rank(self.A_RG, self.B_OR)}


class QALoRAMethod(Method[QALoRA, QALoRALayer]):
    start = ("identity", "B is zero")
    not_peft = "PEFT has QA-LoRA on the layers of GPTQ alone"

    def layers(self, places: Places) -> dict[Site, QALoRALayer]:
        settings = self.settings
        scale, made = alpha_or_default(settings.alpha, settings.rank) / settings.rank, {}
        for site, frozen in self.chosen(places).items():
            if site.in_features % settings.group_size:
                raise SettingsError(
                    f"adapter.group_size: {settings.group_size} does not divide the {site.in_features} inputs of "
                    f"{site.name}; allowed is what divides the inputs of every layer."
                )
            A_RG = torch.empty(settings.rank, site.in_features // settings.group_size)
            nn.init.kaiming_uniform_(A_RG, a=math.sqrt(5), generator=seeds.generator(self.seed, f"init/{site.name}"))
            B_OR = torch.zeros(site.out_features, settings.rank, device=frozen.device)
            made[site] = QALoRALayer(A_RG.to(frozen.device), B_OR, scale, settings.group_size)
        return made
