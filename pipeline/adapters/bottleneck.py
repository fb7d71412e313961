"""Bottleneck adapters: y = h + U f(D h + d) + u with h = W x + b, before the residual is added.

Houlsby: Houlsby et al. 2019, arXiv:1902.00751, section 2.1: after the projections of attention and MLP, f = GELU as in
the authors' code, and the norms train too. Pfeiffer: Pfeiffer et al. 2021, arXiv:2005.00247: after the MLP only,
f = ReLU, norms as they are. D and U are drawn from N(0, sigma^2) cut off at 2 sigma, d and u are zero.

Shapes: D (R, O), d (R,), U (O, R), u (O,), R = `width`.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.adapters.base import AdapterLayer, AdapterSettings, Count, Method, Places, Positive
from pipeline.adapters.norm_tuning import NormLayer, norm_layers
from pipeline.core import seeds
from pipeline.core.frozen import FrozenLinear
from pipeline.core.group import Group
from pipeline.core.settings import Settings
from pipeline.core.site import Site

Activation = Literal["gelu", "relu"]
ACTIVATIONS = {"gelu": nn.functional.gelu, "relu": nn.functional.relu}


class Bottleneck(Settings):
    """How one adapter is made."""

    width: Count
    sigma: Positive
    activation: Activation


class Houlsby(Bottleneck, AdapterSettings):
    label = "Houlsby"
    axis = "width"

    norms: bool

    def method(self, seed: int, total_steps: int) -> "BottleneckMethod":
        return BottleneckMethod(self, seed, total_steps)


class Pfeiffer(Houlsby):
    label = "Pfeiffer"


def bottleneck(h: Tensor, weights: Iterable[Tensor], activation: Activation) -> Tensor:
    """Return U f(D h + d) + u in the dtype of h; `weights`: D, d, U, u, or of each one a batch, for h[i]."""
    D, d, U, u = weights
    inner = ACTIVATIONS[activation](h @ D.to(h.dtype).mT + d.to(h.dtype).unsqueeze(-2))
    return inner @ U.to(h.dtype).mT + u.to(h.dtype).unsqueeze(-2)


class BottleneckLayer(AdapterLayer):
    activation: Activation

    def __init__(self, D_RO: Tensor, U_OR: Tensor, activation: Activation) -> None:
        super().__init__()
        self.D_RO, self.U_OR, self.activation = nn.Parameter(D_RO), nn.Parameter(U_OR), activation
        self.d_R = nn.Parameter(torch.zeros(len(D_RO), device=D_RO.device))
        self.u_O = nn.Parameter(torch.zeros(len(U_OR), device=U_OR.device))

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        h = frozen(x)
        return h + self.branch(h)

    def branch(self, h: Tensor) -> Tensor:
        """Return U f(D h + d) + u, in the dtype of h."""
        return bottleneck(h, (self.D_RO, self.d_R, self.U_OR, self.u_O), self.activation)

    def tensors(self) -> dict[str, Tensor]:
        return {
            "adapter_down.weight": self.D_RO, "adapter_down.bias": self.d_R,
            "adapter_up.weight": self.U_OR, "adapter_up.bias": self.u_O,
        }  # fmt: skip


class BottleneckMethod(Method[Houlsby, AdapterLayer]):
    start = (
        "near",
        "both projections are drawn; at sigma 0.01 logits of the tests' model moved by 0.007 of 2.1 (2026-11-21)",
    )
    mergeable = (False, "a nonlinearity stands between the projections, so no weight computes the same")

    def layers(self, places: Places) -> dict[Site, AdapterLayer]:
        made: dict[Site, AdapterLayer] = {
            site: BottleneckLayer(*drawn(self.settings, site, self.seed, frozen.device), self.settings.activation)
            for site, frozen in self.chosen(places).items()
        }
        return made | (norm_layers(places) if self.settings.norms else {})

    def groups(self) -> list[Group]:
        placed = self.placed.values()
        norms = [move for layer in placed if isinstance(layer, NormLayer) for move in layer.parameters()]
        rest = [weight for layer in placed if isinstance(layer, BottleneckLayer) for weight in layer.parameters()]
        return [Group(rest), Group(norms, decay=False)]

    def insight(self) -> dict[str, Any]:
        return {"norm_parameters": sum(weight.numel() for weight in self.groups()[1].parameters)}


def drawn(settings: Bottleneck, site: Site, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return D and U as they start, from the site's own stream."""
    sigma, width = settings.sigma, settings.width
    generator = seeds.generator(seed, f"init/{site.name}")
    made = [torch.empty(width, site.out_features), torch.empty(site.out_features, width)]
    for weight in made:
        nn.init.trunc_normal_(weight, 0.0, sigma, -2 * sigma, 2 * sigma, generator=generator)
    return made[0].to(device), made[1].to(device)
