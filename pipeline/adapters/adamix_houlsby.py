"""AdaMix on bottleneck adapters: M experts a site, each pass its own, averaged to one adapter in the end.

Wang et al. 2022, arXiv:2205.12410: the paper's first form. The adapter is Houlsby's (pipeline/adapters/bottleneck.py),
after the MLP alone as released; what is drawn, the loss and the mean are AdaMix (pipeline/adapters/adamix.py). With
`shared_up` one up-projection with its bias serves all experts.

Shapes: D (M, R, O), d (M, R), U (M or 1, O, R), u (M or 1, O), R = `width`.
"""

import torch
from torch import Tensor, nn

from pipeline.adapters.adamix import PASSES, ExpertLayer, Mixture, MixtureMethod
from pipeline.adapters.bottleneck import (
    Activation,
    Bottleneck,
    BottleneckLayer,
    BottleneckMethod,
    Houlsby,
    bottleneck,
    drawn,
)
from pipeline.core.frozen import FrozenLinear
from pipeline.core.site import Site


class AdaMixHoulsby(Bottleneck, Mixture):
    label = "AdaMix-Houlsby"
    axis = "width"

    def method(self, seed: int, total_steps: int) -> "AdaMixHoulsbyMethod":
        return AdaMixHoulsbyMethod(self, seed, total_steps)


class BottleneckExperts(ExpertLayer):
    down, up = ("D_MRO", "d_MR"), ("U_MOR", "u_MO")

    D_MRO: nn.Parameter
    d_MR: nn.Parameter
    U_MOR: nn.Parameter
    u_MO: nn.Parameter
    activation: Activation

    def __init__(self, weights: list[Tensor], activation: Activation, drawn_2P: Tensor) -> None:
        super().__init__(drawn_2P)
        self.activation = activation
        for name, weight in zip((*self.down, *self.up), weights, strict=True):
            self.register_parameter(name, nn.Parameter(weight))

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        h = frozen(x)
        if not self.training:
            mean = (getattr(self, name).mean(0) for name in (*self.down, *self.up))
            return h + bottleneck(h, mean, self.activation)
        h_PMO = h.reshape(PASSES, -1, h.shape[-1])
        return (h_PMO + bottleneck(h_PMO, self.drawn(), self.activation)).view(h.shape)

    @torch.no_grad()
    def mean(self) -> BottleneckLayer:
        made = BottleneckLayer(self.D_MRO.mean(0), self.U_MOR.mean(0), self.activation)
        made.d_R.copy_(self.d_MR.mean(0))
        made.u_O.copy_(self.u_MO.mean(0))
        return made

    def tensors(self) -> dict[str, Tensor]:
        return {f"adamix_{name.partition('_')[0]}": getattr(self, name) for name in (*self.down, *self.up)}


class AdaMixHoulsbyMethod(MixtureMethod[AdaMixHoulsby]):
    start = ("near", "projections are drawn, as Houlsby's")
    mergeable = BottleneckMethod.mergeable
    not_peft = "PEFT has neither experts nor what their mean is, a Houlsby adapter"

    def expert(self, site: Site, seed: int, device: torch.device) -> list[Tensor]:
        D_RO, U_OR = drawn(self.settings, site, seed, device)
        return [D_RO, D_RO.new_zeros(len(D_RO)), U_OR, U_OR.new_zeros(len(U_OR))]

    def experts(self, weights: list[Tensor], drawn_2P: Tensor) -> BottleneckExperts:
        D_MRO, d_MR, U_MOR, u_MO = weights
        return BottleneckExperts([D_MRO, d_MR, self.kept(U_MOR), self.kept(u_MO)], self.settings.activation, drawn_2P)

    def plain(self) -> Houlsby:
        s = self.settings
        return Houlsby(width=s.width, sigma=s.sigma, activation=s.activation, norms=False, roles=s.roles)
