"""Norm tuning: only the scales (and shifts) of the norms before attention and MLP train, as distances from the base's.

The baseline that Houlsby et al. 2019, arXiv:1902.00751, section 3.6, call layer norm only.

Shapes: D hidden width; scale and shift (D,).
"""

from typing import Annotated, Any, Literal

import torch
from annotated_types import Len
from torch import Tensor, nn

from pipeline.adapters.base import AdapterLayer, AdapterSettings, Method, Places
from pipeline.core.group import Group
from pipeline.core.settings import SettingsError
from pipeline.core.site import Site


class NormTuning(AdapterSettings):
    label = "Norms"

    roles: Annotated[tuple[Literal["norm"], ...], Len(1, 1)]  # type: ignore[assignment]

    def method(self, seed: int, total_steps: int) -> "NormTuningMethod":
        return NormTuningMethod(self, seed, total_steps)


class NormLayer(AdapterLayer):
    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.moved = nn.ParameterDict(
            {name: torch.zeros_like(value, dtype=torch.float32) for name, value in frozen.named_parameters()}
        )

    def forward(self, x: Tensor, frozen: nn.Module) -> Tensor:  # type: ignore[override]
        own = dict(frozen.named_parameters())
        moved = {name: (own[name].float() + move).to(own[name].dtype) for name, move in self.moved.items()}
        return torch.func.functional_call(frozen, moved, (x,))

    def tensors(self) -> dict[str, Tensor]:
        return {f"norm_{name}_delta": move for name, move in self.moved.items()}


class NormTuningMethod(Method[NormTuning, NormLayer]):
    start = ("identity", "all distances are zero")
    mergeable = (False, "a norm is no linear layer, and merged states are of linear layers only")

    def layers(self, places: Places) -> dict[Site, NormLayer]:
        return norm_layers(places)

    def groups(self) -> list[Group]:
        return [Group(list(self.parameters()), decay=False)]

    def insight(self) -> dict[str, Any]:
        return {
            "largest_move": {
                site.name: max(float(move.detach().abs().max()) for move in layer.moved.values())
                for site, layer in self.placed.items()
            }
        }


def norm_layers(places: Places) -> dict[Site, NormLayer]:
    """Return a layer for every norm.

    Raises:
        SettingsError: the model has none that is a place.
    """
    found = {site: NormLayer(norm) for site, norm in places.items() if site.role == "norm"}
    if not found:
        raise SettingsError("adapter.roles: the model has no norm that an adapter may sit on.")
    return found
