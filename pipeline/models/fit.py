"""Whether a run fits its model, and how large an adapter may be, told from the model's shape alone.

The model is built from its config on the meta device, whatever its size, and the method makes its layers there.
"""

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from pipeline.adapters.base import AdapterSettings, Method
from pipeline.core.settings import SettingsError, build, canonical
from pipeline.core.site import Site
from pipeline.models import places, sites
from pipeline.models.adapt import method_on
from pipeline.models.load import unfilled
from pipeline.models.stack import stacked
from pipeline.optimizers.base import OptimizerSettings
from pipeline.quantization.base import Format, QuantizedWeight, StoredLinear

Node = Mapping[str, Any]
REGULAR = (1, 3, 5)
"""If a method can have all of these sizes it can have any, and the more the larger; else sizes divide widths."""


class Shapeless(StoredLinear):
    """A linear layer of which only the shape is known."""

    def dense_weight(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        return self.quantized.tensors["weight"].to(dtype or self.quantized.dtype)


def fit(shape: Node, quantization: Node, adapter: Node, optimizer: Node, steps: int) -> dict[str, Any]:
    """Return what a run must be held to: trainable `parameters`, and the `context` of the model.

    Raises:
        SettingsError: the method, the optimizer and the model do not go together.
    """
    method = _method(shape, quantization, adapter, steps)
    moves = build(optimizer, "optimizer")
    assert isinstance(moves, OptimizerSettings)
    moves.check(method.groups())
    return {"parameters": _parameters(method), "context": _model(canonical(shape)).config.max_position_embeddings}


def largest(shape: Node, quantization: Node, adapter: Node, steps: int, budget: float) -> dict[str, Any]:
    """Return the node of an adapter of the size that has the most trainable `parameters` within `budget`.

    Raises:
        SettingsError: there is no such size.
    """
    settings = build(adapter, "adapter")
    assert isinstance(settings, AdapterSettings)
    told: list[str] = []

    @cache
    def count(size: int) -> float:
        try:
            return _parameters(_method(shape, quantization, settings.resized(size).node(), steps))
        except SettingsError as error:
            told.append(str(error))
            return math.inf

    features = {n for site in _offered(canonical(shape), canonical(quantization)) for n in _features(site)}
    if all(count(size) < math.inf for size in REGULAR):
        sizes = range(1, max(features) + 1)
        fitting = sizes[: bisect_right(sizes, budget, key=count)]
        fitting = [sizes[bisect_left(sizes, count(fitting[-1]), key=count)]] if fitting else []
    else:
        sizes = sorted({size for n in features for size in range(1, n + 1) if n % size == 0})
        fitting = [size for size in sizes if count(size) <= budget]
    if not fitting:
        counts = [n for size in (REGULAR if isinstance(sizes, range) else sizes) if (n := count(size)) < math.inf]
        said = f"the smallest has {min(counts):,}" if counts else told[0]
        raise SettingsError(
            f"sweep.budget: got {budget:,.0f} trainable parameters, and no {settings.axis} of {settings.label} has so "
            f"few on this model: {said}. Raise the budget, or leave the method out."
        )
    best = max(fitting, key=lambda size: (count(size), -size))
    return {"adapter": settings.resized(best).node(), "size": [settings.axis, best], "parameters": count(best)}


def _features(site: Site) -> tuple[int, int]:
    return site.in_features, site.out_features


def _parameters(method: Method[Any, Any]) -> int:
    return sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)


def _method(shape: Node, quantization: Node, adapter: Node, steps: int) -> Method[Any, Any]:
    """Return the method on the model of a shape."""
    format_, settings = build(quantization, "quantization"), build(adapter, "adapter")
    assert isinstance(format_, Format)
    assert isinstance(settings, AdapterSettings)
    offered = _offered(canonical(shape), canonical(quantization))
    with torch.device("meta"):
        for site, frozen in offered.items():
            if settings.takes and site.role in settings.roles and isinstance(frozen, Shapeless):
                frozen.taken = settings.take(frozen.dense_weight(), lambda stored_OI: stored_OI)[1:]
        return method_on(format_, offered, settings, 0, steps)


@cache
def _model(shape: str) -> Any:
    with torch.device("meta"):
        return unfilled(json.loads(shape))


@cache
def _offered(shape: str, quantization: str) -> dict[Site, nn.Module]:
    """Return what is frozen at every site of a model of a shape."""
    format_ = build(json.loads(quantization), "quantization")
    assert isinstance(format_, Format)
    with torch.device("meta"):
        model = unfilled(json.loads(shape))
        found = sites.find(model)
        put = places.put(model, found, {site: _shapeless(format_, site) for site in places.stored(found)})
    return {site: place.frozen for site, place in (put | stacked(model, found)).items()}


def _shapeless(format_: Format, site: Site) -> StoredLinear:
    weight_OI = torch.empty(site.out_features, site.in_features)
    bias_O = torch.empty(site.out_features) if site.bias else None
    quantized = QuantizedWeight({"weight": weight_OI}, (site.out_features, site.in_features), weight_OI.dtype)
    return Shapeless(format_, quantized, bias_O)
