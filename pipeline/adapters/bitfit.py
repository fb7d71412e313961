"""BitFit: y = W x + b + d: only biases train, each as its distance d from where it was.

Ben Zaken et al. 2022, arXiv:2106.10199. The weight is never touched, so its format does not matter, and merging adds d
to a bias that is never quantized: exact in every format. Biases of norms stay; the models here have none.

Shapes: d (O,).
"""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.adapters.base import AdapterLayer, AdapterSettings, Method, Places
from pipeline.core.frozen import FrozenLinear
from pipeline.core.group import Group
from pipeline.core.settings import SettingsError
from pipeline.core.site import Site
from pipeline.core.update import Update


class BitFit(AdapterSettings):
    """With `add_missing` a layer without a bias is given one, from zero, where the paper has nothing to train."""

    label = "BitFit"

    add_missing: bool

    def method(self, seed: int, total_steps: int) -> "BitFitMethod":
        return BitFitMethod(self, seed, total_steps)


class BiasLayer(AdapterLayer):
    def __init__(self, out_features: int, device: torch.device) -> None:
        super().__init__()
        self.bias_O = nn.Parameter(torch.zeros(out_features, device=device))

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        return frozen(x) + self.bias_O.to(x.dtype)

    def update(self) -> Update:
        return Update(bias_O=self.bias_O.detach())

    def tensors(self) -> dict[str, Tensor]:
        return {"bias_delta": self.bias_O}


class BitFitMethod(Method[BitFit, BiasLayer]):
    start = ("identity", "d is zero")

    def layers(self, places: Places) -> dict[Site, BiasLayer]:
        chosen = self.chosen(places)
        found = {
            site: BiasLayer(site.out_features, frozen.device)
            for site, frozen in chosen.items()
            if site.bias or self.settings.add_missing
        }
        if not found:
            raise SettingsError(
                f"adapter.add_missing: none of the {len(chosen)} layers of adapter.roles has a bias to train; set it "
                "to true to give them one, from zero."
            )
        return found

    def groups(self) -> list[Group]:
        return [Group(list(self.parameters()), decay=False)]  # decay would pull d to zero, and b to where it was

    def insight(self) -> dict[str, Any]:
        return {"added_biases": sum(not site.bias for site in self.placed)}
