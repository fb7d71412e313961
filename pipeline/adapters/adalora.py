"""AdaLoRA: y = W x + b + (alpha / r0) P diag(lambda) Q x; the least important triplets lose their lambda.

Zhang et al. 2023, arXiv:2303.10512. Importance of triplet i: s(lambda_i) + mean_j s(P_ji) + mean_j s(Q_ij) with
s = I U, I the running mean of |w dw| and U that of ||w dw| - I|, gradients whole and unclipped. After update t all but
b(t) triplets of the whole model have lambda = 0; b falls with the cube of the way left, from the start budget at
t = warm to the final one at t = total - cool. Between two masks a zeroed lambda may come back.
P, Q ~ N(0, 0.02^2), lambda = 0 and the fixed scale alpha / r0, r0 the rank before pruning, are the authors' code.

Shapes: P (O, R), lambda (R,), Q (R, I), R = r0.
"""

from typing import Annotated, Any, Literal, Self

import torch
from annotated_types import Interval
from pydantic import model_validator
from torch import Tensor, nn

from pipeline.adapters.base import (
    AdapterLayer,
    AdapterSettings,
    Batch,
    Count,
    Forward,
    Layers,
    Method,
    Places,
    Positive,
)
from pipeline.adapters.budget import Schedule, alive, watch
from pipeline.adapters.lora import LoRALayer, alpha_or_default
from pipeline.adapters.low_rank import low_rank
from pipeline.core import seeds
from pipeline.core.frozen import FrozenLinear
from pipeline.core.site import Site
from pipeline.core.update import Update

WATCHED = ("P_OR", "lambda_R", "Q_RI")


class AdaLoRA(AdapterSettings):
    """`rank` is the mean over the sites after pruning; `warm` and `cool` are fractions of all steps.

    `regularizer`: gamma times the sum of ||P^T P - I||_F^2 + ||Q Q^T - I||_F^2 over the sites ("paper"), or times the
    mean of all these norms, not squared ("code", with which the published results were made).
    """

    label = "AdaLoRA"
    axis = "rank"

    rank: Count
    init_rank: Count | None
    alpha: Positive | None
    gamma: Annotated[float, Interval(ge=0)]
    regularizer: Literal["paper", "code"]
    warm: Annotated[float, Interval(ge=0, lt=1)]
    cool: Annotated[float, Interval(ge=0, lt=1)]
    every: Count
    beta: Annotated[float, Interval(gt=0, lt=1)]

    @property
    def start_rank(self) -> int:
        """Return r0: `init_rank`, or the paper's one and a half times `rank`, rounded up."""
        return -(-3 * self.rank // 2) if self.init_rank is None else self.init_rank

    @model_validator(mode="after")
    def _starts_no_lower(self) -> Self:
        if self.start_rank < self.rank:
            raise ValueError(f"init_rank must be at least rank {self.rank}, got {self.init_rank}")
        return self

    def method(self, seed: int, total_steps: int) -> "AdaLoRAMethod":
        return AdaLoRAMethod(self, seed, total_steps)


class SVDLayer(AdapterLayer):
    def __init__(self, site: Site, rank: int, scale: float, seed: int, device: torch.device) -> None:
        super().__init__()
        generator = seeds.generator(seed, f"init/{site.name}")
        self.P_OR = nn.Parameter((0.02 * torch.randn(site.out_features, rank, generator=generator)).to(device))
        self.Q_RI = nn.Parameter((0.02 * torch.randn(rank, site.in_features, generator=generator)).to(device))
        self.lambda_R, self.scale = nn.Parameter(torch.zeros(rank, device=device)), scale
        for name in WATCHED:
            self.register_buffer(f"mean_{name}", torch.zeros_like(getattr(self, name)))
            self.register_buffer(f"spread_{name}", torch.zeros_like(getattr(self, name)))

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        return low_rank(x, self.Q_RI, self.scale * self.lambda_R * self.P_OR, frozen)

    def update(self) -> Update:
        return Update(delta_OI=(self.scale * self.lambda_R * self.P_OR).detach() @ self.Q_RI.detach())

    def tensors(self) -> dict[str, Tensor]:
        return {"lora_A": self.Q_RI, "lora_B": self.P_OR, "lora_E": self.lambda_R[:, None]}

    @torch.no_grad()
    def watch(self, beta: float) -> None:
        """Take this step's |w dw| into the running means."""
        for name in WATCHED:
            weight = getattr(self, name)
            watch(weight, weight.grad, getattr(self, f"mean_{name}"), getattr(self, f"spread_{name}"), beta)

    def importance_R(self) -> Tensor:
        """Return the importance of each triplet."""
        P_OR, lambda_R, Q_RI = (getattr(self, f"mean_{name}") * getattr(self, f"spread_{name}") for name in WATCHED)
        return lambda_R + P_OR.mean(0) + Q_RI.mean(1)

    def gaps_2RR(self) -> Tensor:
        """Return P^T P - I and Q Q^T - I."""
        grams_2RR = torch.stack([self.P_OR.T @ self.P_OR, self.Q_RI @ self.Q_RI.T])
        return grams_2RR - torch.eye(len(self.lambda_R), device=grams_2RR.device)


class AdaLoRAMethod(Method[AdaLoRA, SVDLayer]):
    start = ("identity", "lambda is zero")
    graph_safe = (True, "the mask, whose budget the host knows, is set after the captured step")

    def __init__(self, settings: AdaLoRA, seed: int, total_steps: int) -> None:
        super().__init__(settings, seed, total_steps)
        self.schedule = Schedule(settings.warm, settings.cool, settings.every, total_steps)

    @property
    def alpha(self) -> float:
        """Return alpha; the scale is alpha / r0 from the first step to the last."""
        return alpha_or_default(self.settings.alpha, self.settings.start_rank)

    def layers(self, places: Places) -> dict[Site, SVDLayer]:
        r0, alpha = self.settings.start_rank, self.alpha
        return {
            site: SVDLayer(site, r0, alpha / r0, self.seed, frozen.device)
            for site, frozen in self.chosen(places).items()
        }

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        gaps_SRR = torch.cat([layer.gaps_2RR() for layer in self.placed.values()])
        paper = self.settings.regularizer == "paper"
        penalty = gaps_SRR.square().sum() if paper else torch.linalg.matrix_norm(gaps_SRR).mean()
        return super().loss(forward, batch) + self.settings.gamma * penalty

    def budget(self, t: int) -> int:
        """Return b(t), the triplets that may live after update t (from 1)."""
        n = len(self.placed)
        return self.schedule.budget(t, n * self.settings.start_rank, n * self.settings.rank)

    def after_backward(self, step: int) -> None:
        if self.schedule.watches(step):
            for layer in self.placed.values():
                layer.watch(self.settings.beta)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        t = step + 1
        if not self.schedule.cuts(t):
            return
        importance = torch.cat([layer.importance_R() for layer in self.placed.values()])
        kept = alive(importance, self.budget(t)).split(self.settings.start_rank)
        for layer, alive_R in zip(self.placed.values(), kept, strict=True):
            layer.lambda_R.mul_(alive_R)

    def export(self, at: int | None = None) -> Layers:
        """Return the living triplets as plain LoRA layers, each of its own rank."""
        assert at is None, f"AdaLoRA has no points, got {at}"
        return {site: _pruned(layer) for site, layer in self.placed.items()}

    def insight(self) -> dict[str, Any]:
        """Return what pruning left: the rank of each site."""
        left = {site.name: int((layer.lambda_R != 0).sum()) for site, layer in self.placed.items()}
        return super().insight() | {"rank": left}

    def peft(self) -> dict[str, Any]:
        s, cool = self.settings, self.total_steps - self.schedule.last
        # All r0 triplets are kept, pruned ones with lambda 0. PEFT divides alpha by r0 + 1e-5, a part in 10^6 less.
        return {
            "peft_type": "ADALORA", "lora_alpha": self.alpha, "init_r": s.start_rank, "target_r": s.rank,
            "rank_pattern": None, "tinit": self.schedule.warm, "tfinal": cool, "total_step": self.total_steps,
            "deltaT": s.every, "beta1": s.beta, "beta2": s.beta, "orth_reg_weight": s.gamma, "bias": "none",
        }  # fmt: skip


@torch.no_grad()
def _pruned(layer: SVDLayer) -> LoRALayer:
    alive_R = layer.lambda_R != 0
    return LoRALayer(layer.Q_RI[alive_R], (layer.lambda_R * layer.P_OR)[:, alive_R], layer.scale)
