"""Full fine-tuning, the baseline: every weight and bias of the chosen linear layers trains, in all blocks or the last.

The weight itself trains, as a float32 master: decay pulls it to zero, as in any training, not back to the base. It lies
beside the base's own, which other methods and states need. Embeddings, norms and the head are no places of these layers
and stay.

Shapes: W (O, I), b (O,).
"""

import torch
from torch import Tensor, nn

from pipeline.adapters.base import AdapterLayer, AdapterSettings, Count, Method, Places
from pipeline.core.frozen import FrozenLinear
from pipeline.core.group import Group
from pipeline.core.site import Site
from pipeline.core.update import Update


class Full(AdapterSettings):
    label = "Full"

    def method(self, seed: int, total_steps: int) -> "FullMethod":
        return FullMethod(self, seed, total_steps)

    def trains(self, layer: int, layers: int) -> bool:
        """Say whether block `layer` of `layers` trains."""
        return True


class LastLayers(Full):
    """`last` blocks, counted from the end, train as in full fine-tuning."""

    label = "Last layers"
    axis = "last"

    last: Count

    def trains(self, layer: int, layers: int) -> bool:
        return layer >= layers - self.last


class FullLayer(AdapterLayer):
    def __init__(self, frozen: FrozenLinear) -> None:
        super().__init__()
        self.__dict__["frozen"] = frozen  # to say at the end how far the weight has moved
        self.weight_OI = nn.Parameter(frozen.dense_weight(torch.float32).clone())
        self.bias_O = None if frozen.bias is None else nn.Parameter(frozen.bias.float().clone())

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        bias_O = None if self.bias_O is None else self.bias_O.to(x.dtype)
        return nn.functional.linear(x, self.weight_OI.to(x.dtype), bias_O)

    @torch.no_grad()
    def update(self) -> Update:
        frozen = self.__dict__["frozen"]
        moved_O = None if self.bias_O is None else self.bias_O - frozen.bias.float()
        return Update(delta_OI=self.weight_OI - frozen.dense_weight(torch.float32), bias_O=moved_O)

    def tensors(self) -> dict[str, Tensor]:
        named: dict[str, Tensor | None] = {"weight": self.weight_OI, "bias": self.bias_O}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


class FullMethod(Method[Full, FullLayer]):
    start = ("identity", "the weights are copies")
    quantized_base = (False, "a step is far smaller than the distance between two quantized values")

    def layers(self, places: Places) -> dict[Site, FullLayer]:
        layers = 1 + max(site.layer for site in places)
        return {
            site: FullLayer(frozen)
            for site, frozen in self.chosen(places).items()
            if self.settings.trains(site.layer, layers)
        }

    def groups(self) -> list[Group]:
        placed = self.placed.values()
        return [
            Group([layer.weight_OI for layer in placed]),
            Group([layer.bias_O for layer in placed if layer.bias_O is not None], decay=False),
        ]
