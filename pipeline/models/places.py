"""Places: the modules of a model that hold what is frozen, and the adapter that sits on it, if any.

Letters: M rows of a batch, O out_features, I in_features.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.frozen import FrozenLinear
from pipeline.core.settings import SettingsError
from pipeline.core.site import Site


class Place(nn.Module):
    """One site in the model: what is frozen there, and the adapter that sits on it, if any."""

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.frozen = frozen
        # Not a submodule: an adapter belongs to its method, which owns its parameters and its train / eval mode.
        self.__dict__["adapter"] = None

    def forward(self, x: Tensor) -> Tensor:
        """Return what the adapter makes of the frozen layer, or the frozen layer's own output."""
        adapter = self.__dict__["adapter"]
        return self.frozen(x) if adapter is None else adapter(x, self.frozen)


class FusedPlace(Place):
    """A fused projection: one place as a whole, with places for its slices, each of which may have its own adapter."""

    frozen: FrozenLinear  # type: ignore[assignment]

    def __init__(self, frozen: FrozenLinear, slices: Iterable[Site]) -> None:
        super().__init__(frozen)
        self.parts = {site: Place(Slice(self, site)) for site in slices}  # in no state_dict: views of `frozen`
        rows = torch.tensor([row for site in self.parts for row in site.rows or ()])
        self.register_buffer("rows_O", rows, persistent=False)
        self.register_buffer("inverse_O", rows.argsort(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the adapters of the slices make of it, in the order of the fused outputs."""
        if all(part.__dict__["adapter"] is None for part in self.parts.values()):
            return super().forward(x)
        y = torch.cat([part(x) for part in self.parts.values()], -1)
        return Reordered.apply(y.flatten(0, -2), self.inverse_O, self.rows_O).view(y.shape)  # type: ignore[union-attr]


class Slice(FrozenLinear):
    """The outputs `rows` of a fused projection. It holds nothing: whatever is done to the whole, it follows."""

    whole: FusedPlace

    def __init__(self, whole: FusedPlace, site: Site) -> None:
        super().__init__()
        self.__dict__["whole"] = whole
        self.in_features, self.out_features = site.in_features, site.out_features
        rows = list(site.rows or ())
        run = slice(rows[0], rows[-1] + 1)
        self.rows = run if rows == list(range(run.start, run.stop)) else rows  # a run of rows is no copy

    @property
    def device(self) -> torch.device:
        return self.whole.frozen.device

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        bias_O = self.whole.frozen.bias
        return None if bias_O is None else bias_O[self.rows]

    def dense_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.whole.frozen.dense_weight(dtype)[self.rows]


class Reordered(torch.autograd.Function):
    """y[:, order], whose gradient is dy[:, inverse]: a gather both ways, where autograd would scatter."""

    @staticmethod
    def forward(ctx: Any, y_MO: Tensor, order_O: Tensor, inverse_O: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_O)
        return y_MO.index_select(1, order_O)

    @staticmethod
    def backward(ctx: Any, dy_MO: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return dy_MO.index_select(1, ctx.saved_tensors[0]), None, None


def put(model: Any, found: list[Site], frozen: Mapping[Site, FrozenLinear]) -> dict[Site, Place]:
    """Replace the module of every site by its place, and return the places, those of slices among them.

    `frozen` is what stands at each linear site that is no slice; a norm stays what it is.
    """
    places: dict[Site, Place] = {}
    for site in found:
        if site.rows is not None:
            continue
        slices = [part for part in found if part.rows is not None and part.module == site.name]
        if slices:
            place: Place = FusedPlace(frozen[site], slices)
        else:
            place = Place(frozen[site] if site.linear else model.get_submodule(site.name))
        model.set_submodule(site.name, place)
        places |= {site: place} | (place.parts if isinstance(place, FusedPlace) else {})
    return places


def stored(found: Iterable[Site]) -> list[Site]:
    """Return the linear sites whose weight is stored as such: all but the slices."""
    return [site for site in found if site.linear and site.rows is None]


def refuse_overlap(layers: Iterable[Site]) -> None:
    """Refuse adapters on a fused projection and on slices of it at once.

    Raises:
        SettingsError: names the projection.
    """
    chosen = list(layers)
    cut = {site.module for site in chosen if site.rows is not None}
    if both := [site.name for site in chosen if site.rows is None and site.name in cut]:
        raise SettingsError(
            f"adapter.roles: got qkv and slices of it ({both[0]}). Allowed: qkv, the fused projection as a whole, or "
            "q, k and v, its slices."
        )
