"""AdaMix: M experts a site, drawn anew for each of two passes that must agree, and averaged to one: here, to one LoRA.

Wang et al. 2022, arXiv:2205.12410. The loss is that of the authors' code: the cross-entropy of the first pass plus half
of KL(p || q) + KL(q || p), each with its first argument held constant. Both passes are one forward over the batch
stacked twice, so no state changes between them. A and B are drawn apart, for every site; with `shared_up` there is one
B, as in the released configurations. They are drawn once an optimizer step (the code: once a forward), and an expert
that is not drawn keeps its optimizer state too. Outside of training the mean of all experts computes.

Shapes: A (M, R, I), B (M or 1, O, R); drawn experts of two passes (P,), P = 2.
"""

from dataclasses import replace
from typing import Any, ClassVar, TypeVar

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


class Mixture(AdapterSettings):
    """What both kinds of experts are told; `shared_up` keeps one up-projection for all of them."""

    experts: Count
    shared_up: bool


class AdaMix(Mixture):
    label = "AdaMix"
    axis = "rank"

    rank: Count
    alpha: Positive | None

    def method(self, seed: int, total_steps: int) -> "AdaMixMethod":
        return AdaMixMethod(self, seed, total_steps)


class ExpertLayer(AdapterLayer):
    """Experts of one site. `down` and `up` are the names of their weights, (M or 1, ...), which are drawn apart."""

    down: ClassVar[tuple[str, ...]]
    up: ClassVar[tuple[str, ...]]

    def __init__(self, drawn_2P: Tensor) -> None:
        super().__init__()
        self.drawn_2P = drawn_2P  # a view of the method's own tensor, refilled in place each step: of down, of up

    def drawn(self) -> list[Tensor]:
        """Return the weights of the experts drawn for each pass, (P, ...), those of `down` first."""
        pairs = ((self.down, self.drawn_2P[0]), (self.up, self.drawn_2P[1]))
        return [getattr(self, name)[drawn_P] for names, drawn_P in pairs for name in names]

    def mean(self) -> AdapterLayer:
        """Return the mean of the experts as one layer; of each weight apart, as in the paper."""
        raise NotImplementedError  # each kind of expert has its own


class LoRAExperts(ExpertLayer):
    down, up = ("A_MRI",), ("B_MOR",)

    def __init__(self, A_MRI: Tensor, B_MOR: Tensor, scale: float, drawn_2P: Tensor) -> None:
        super().__init__(drawn_2P)
        self.A_MRI, self.B_MOR, self.scale = nn.Parameter(A_MRI), nn.Parameter(B_MOR), scale

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        if not self.training:
            return low_rank(x, self.A_MRI.mean(0), self.scale * self.B_MOR.mean(0), frozen)
        A_PRI, B_POR = self.drawn()
        x_PMI = x.reshape(PASSES, -1, x.shape[-1])
        y_PMO = x_PMI @ A_PRI.to(x.dtype).mT @ (self.scale * B_POR).to(x.dtype).mT
        return frozen(x) + y_PMO.view(*x.shape[:-1], -1)

    def mean(self) -> LoRALayer:
        return LoRALayer(self.A_MRI.detach().mean(0), self.B_MOR.detach().mean(0), self.scale)

    def tensors(self) -> dict[str, Tensor]:
        return {"adamix_A": self.A_MRI, "adamix_B": self.B_MOR}


S = TypeVar("S", bound=Mixture)


class MixtureMethod(Method[S, ExpertLayer]):
    drawn_S2P: Tensor
    moves_S2M: Tensor

    def expert(self, site: Site, seed: int, device: torch.device) -> list[Tensor]:
        """Return the weights of one expert as it starts, those of `down` first."""
        raise NotImplementedError  # each kind of expert has its own

    def experts(self, weights: list[Tensor], drawn_2P: Tensor) -> ExpertLayer:
        """Return the layer over the experts' weights, (M or 1, ...) each."""
        raise NotImplementedError  # each kind of expert has its own

    def layers(self, places: Places) -> dict[Site, ExpertLayer]:
        chosen = self.chosen(places)
        device, M = next(iter(chosen.values())).device, self.settings.experts
        self.register_buffer(
            "drawn_S2P", torch.zeros(len(chosen), 2, PASSES, dtype=torch.long, device=device), persistent=False
        )
        self.register_buffer("moves_S2M", torch.zeros(len(chosen), 2, M, device=device), persistent=False)
        made = {}
        for site, drawn_2P in zip(chosen, self.drawn_S2P, strict=True):
            starts = [self.expert(site, seeds.number(self.seed, f"expert/{m}"), device) for m in range(M)]
            made[site] = self.experts([torch.stack(part) for part in zip(*starts, strict=True)], drawn_2P)
        return made

    def kept(self, up_M: Tensor) -> Tensor:
        """Return the up-projections that there are of all experts' own: the first, where one is shared."""
        return up_M[:1] if self.settings.shared_up else up_M

    def groups(self) -> list[Group]:
        made = []
        for part, masked in ((0, True), (1, not self.settings.shared_up)):
            weights, masks = [], []
            for layer, moves_2M in zip(self.placed.values(), self.moves_S2M, strict=True):
                for name in (layer.down, layer.up)[part]:
                    weights.append(getattr(layer, name))
                    masks.append(moves_2M[part].view(-1, *[1] * (weights[-1].ndim - 1)))
            made.append(Group(weights, masks=masks if masked else None))
        return made

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

    def export(self, at: int | None = None) -> dict[Site, AdapterLayer]:
        """Return the mean of the experts of every site as one plain layer."""
        assert at is None, f"{self.settings.label} has no points, got {at}"
        return {site: layer.mean() for site, layer in self.placed.items()}

    def plain(self) -> AdapterSettings:
        """Return the settings of what the mean of the experts is."""
        raise NotImplementedError  # each kind of expert has its own

    def shipped(self, at: int | None = None) -> Method[Any, Any]:
        """Return the plain adapter that the mean of the experts is."""
        return self.plain().method(self.seed, self.total_steps).keep(self.export(at))

    def insight(self) -> dict[str, Any]:
        """Return how much is left of what was trained, for the paper counts only that."""
        shipped = sum(weight.numel() for layer in self.export().values() for weight in layer.parameters())
        return super().insight() | {"shipped_parameters": shipped}


class AdaMixMethod(MixtureMethod[AdaMix]):
    start = ("identity", "every B is zero")
    not_peft = "PEFT has no experts; their mean is a plain LoRA, which `python -m pipeline export` writes"

    def expert(self, site: Site, seed: int, device: torch.device) -> list[Tensor]:
        return list(at_start(site, self.settings.rank, seed, device))

    def experts(self, weights: list[Tensor], drawn_2P: Tensor) -> LoRAExperts:
        (A_MRI, B_MOR), s = weights, self.settings
        return LoRAExperts(A_MRI, self.kept(B_MOR), alpha_or_default(s.alpha, s.rank) / s.rank, drawn_2P)

    def plain(self) -> LoRA:
        s = self.settings
        return LoRA(rank=s.rank, alpha=s.alpha, roles=s.roles)


def consistency(p_MV: Tensor, q_MV: Tensor) -> Tensor:
    """Return half of KL(p || q) + KL(q || p), a mean over rows of log-probabilities; see the module for gradients."""

    def divergence(held_MV: Tensor, moved_MV: Tensor) -> Tensor:
        return nn.functional.kl_div(moved_MV, held_MV.detach(), log_target=True, reduction="batchmean")

    return (divergence(p_MV, q_MV) + divergence(q_MV, p_MV)) / 2
