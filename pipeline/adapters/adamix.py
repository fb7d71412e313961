"""AdaMix on LoRA: M experts a site, drawn anew for each of two passes that must agree, and averaged to one LoRA.

Wang et al. 2022, arXiv:2205.12410. The loss is that of the authors' code: the cross-entropy of the first pass plus half
of KL(p || q) + KL(q || p), each with its first argument held constant. Both passes are one forward over the batch
stacked twice, so no state changes between them. A and B are drawn apart, for every site; with `shared_up` there is one
B, as in the released configurations. They are drawn once an optimizer step (the code: once a forward), and an expert
that is not drawn keeps its optimizer state too. Outside of training the mean of all experts computes.

Shapes: A (M, R, I), B (M or 1, O, R); drawn experts of two passes (P,), P = 2.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.adapters.base import AdapterLayer, AdapterSettings, Count, Forward, Method, Places, Positive
from pipeline.adapters.lora import LoRA, LoRALayer, alpha_or_default, at_start
from pipeline.adapters.low_rank import low_rank
from pipeline.core import seeds
from pipeline.core.frozen import FrozenLinear
from pipeline.core.group import Group
from pipeline.core.site import Site

PASSES = 2


class AdaMix(AdapterSettings):
    label = "AdaMix"
    axis = "rank"

    rank: Count
    alpha: Positive | None
    experts: Count
    shared_up: bool

    def method(self, seed: int, total_steps: int) -> "AdaMixMethod":
        return AdaMixMethod(self, seed, total_steps)


class ExpertLayer(AdapterLayer):
    def __init__(self, A_MRI: Tensor, B_MOR: Tensor, scale: float, drawn_2P: Tensor) -> None:
        super().__init__()
        self.A_MRI, self.B_MOR, self.scale = nn.Parameter(A_MRI), nn.Parameter(B_MOR), scale
        self.drawn_2P = drawn_2P  # a view of the method's own tensor, refilled in place each step: of A, of B

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        if not self.training:
            return low_rank(x, self.A_MRI.mean(0), self.scale * self.B_MOR.mean(0), frozen)
        A_PRI = self.A_MRI[self.drawn_2P[0]].to(x.dtype)
        B_POR = (self.scale * self.B_MOR[self.drawn_2P[1]]).to(x.dtype)
        x_PMI = x.reshape(PASSES, -1, x.shape[-1])
        return frozen(x) + (x_PMI @ A_PRI.mT @ B_POR.mT).view(*x.shape[:-1], -1)

    def mean(self) -> LoRALayer:
        """Return the mean of the experts as one LoRA; of A and of B apart, as in the paper."""
        return LoRALayer(self.A_MRI.detach().mean(0), self.B_MOR.detach().mean(0), self.scale)

    def tensors(self) -> dict[str, Tensor]:
        return {"adamix_A": self.A_MRI, "adamix_B": self.B_MOR}


class AdaMixMethod(Method[AdaMix, ExpertLayer]):
    start = ("identity", "every B is zero")
    not_peft = "PEFT has no experts; their mean is a plain LoRA, which `python -m pipeline export` writes"

    drawn_S2P: Tensor
    moves_S2M: Tensor

    def layers(self, places: Places) -> dict[Site, ExpertLayer]:
        chosen, s = self.chosen(places), self.settings
        device, M = next(iter(chosen.values())).device, s.experts
        self.register_buffer(
            "drawn_S2P", torch.zeros(len(chosen), 2, PASSES, dtype=torch.long, device=device), persistent=False
        )
        self.register_buffer("moves_S2M", torch.zeros(len(chosen), 2, M, device=device), persistent=False)
        made, scale = {}, alpha_or_default(s.alpha, s.rank) / s.rank
        for site, drawn_2P in zip(chosen, self.drawn_S2P, strict=True):
            starts = [at_start(site, s.rank, seeds.number(self.seed, f"expert/{m}"), device) for m in range(M)]
            A_MRI, B_MOR = (torch.stack(part) for part in zip(*starts, strict=True))
            made[site] = ExpertLayer(A_MRI, B_MOR[:1] if s.shared_up else B_MOR, scale, drawn_2P)
        return made

    def groups(self) -> list[Group]:
        placed, moves_S2M11 = list(self.placed.values()), self.moves_S2M[..., None, None]
        Bs = [layer.B_MOR for layer in placed]
        return [
            Group([layer.A_MRI for layer in placed], masks=list(moves_S2M11[:, 0])),
            Group(Bs) if self.settings.shared_up else Group(Bs, masks=list(moves_S2M11[:, 1])),
        ]

    def before_step(self, step: int) -> None:
        generator = seeds.generator(self.seed, "experts", step)
        drawn = torch.randint(self.settings.experts, self.drawn_S2P.shape, generator=generator)
        if self.settings.shared_up:
            drawn[:, 1] = 0
        self.drawn_S2P.copy_(drawn)
        self.moves_S2M.zero_().scatter_(2, self.drawn_S2P, 1.0)

    def loss(self, forward: Forward, batch: Any) -> Tensor:
        first_BTV, second_BTV = forward(replace(batch, ids_BT=batch.ids_BT.repeat(PASSES, 1))).logits().chunk(PASSES)
        labelled_BT = batch.labels_BT >= 0
        p, q = first_BTV[labelled_BT].log_softmax(-1), second_BTV[labelled_BT].log_softmax(-1)
        if not len(p):
            return (first_BTV.sum() + second_BTV.sum()) * 0.0
        return nn.functional.nll_loss(p, batch.labels_BT[labelled_BT]) + consistency(p, q)

    def export(self, at: int | None = None) -> dict[Site, LoRALayer]:
        """Return the mean of the experts of every site as a plain LoRA."""
        assert at is None, f"AdaMix has no points, got {at}"
        return {site: layer.mean() for site, layer in self.placed.items()}

    def shipped(self, at: int | None = None) -> Method[Any, Any]:
        """Return the plain LoRA that the mean of the experts is."""
        s = self.settings
        plain = LoRA(rank=s.rank, alpha=alpha_or_default(s.alpha, s.rank), roles=s.roles)
        return plain.method(self.seed, self.total_steps).keep(self.export(at))

    def insight(self) -> dict[str, Any]:
        """Return how much is left of what was trained, for the paper counts only that."""
        shipped = sum(weight.numel() for layer in self.export().values() for weight in layer.parameters())
        return super().insight() | {"shipped_parameters": shipped}


def consistency(p_MV: Tensor, q_MV: Tensor) -> Tensor:
    """Return half of KL(p || q) + KL(q || p), a mean over rows of log-probabilities; see the module for gradients."""

    def divergence(held_MV: Tensor, moved_MV: Tensor) -> Tensor:
        return nn.functional.kl_div(moved_MV, held_MV.detach(), log_target=True, reduction="batchmean")

    return (divergence(p_MV, q_MV) + divergence(q_MV, p_MV)) / 2
