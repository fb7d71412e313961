"""The merge report: for every merged state how large the update was, how much of it survived, and the error.

With W the weight merged into, W' = update(W) what was meant, dW = W' - W, M the merged weight as it is shipped, and W0
the weight that would be shipped without the update (W itself if M is dense, the base's own if M is quantized):

    relative_update = ||dW|| / ||W||      survival = <M - W0, dW> / ||dW||^2      error = ||M - W'|| / ||W'||

Survival is 1 where everything is kept and 0 where the shipped weights no longer know of the fine-tune: an update of 3 %
of the weights or less is rounded away when a base that lies on its grid is put back on it.
"""

from typing import Any

import torch
from torch import Tensor

from pipeline.adapters.base import Method
from pipeline.core.frozen import FrozenLinear
from pipeline.core.site import Site
from pipeline.core.update import Update
from pipeline.models.load import Base
from pipeline.models.states import Label, digest_of, labels, merge, source_weight, updates_of

PARTS = ("weight", "meant", "delta", "kept", "error")
"""The squared norms of W, W', dW and M - W', and the product of M - W0 and dW (kept). They add up over sites."""


def report(base: Base, method: Method[Any, Any], states: list[str]) -> dict[str, Any]:
    """Return digest, ratios overall and ratios by site of every state, and why a state is left out.

    `base` is left as it was found. Ratios are None where they are not defined (no update, a zero weight).
    """
    wanted, skipped = labels(states, method, base.format)
    return {"states": {str(label): _state(base, method, label) for label in wanted}, "skipped": skipped}


def _state(base: Base, method: Method[Any, Any], label: Label) -> dict[str, Any]:
    layers = merge(base, method, label)
    updates = updates_of(method, label.at)
    parts = {
        site: _parts(base, site, update, layers[base.whole(site)], label.state) for site, update in updates.items()
    }
    return {
        "digest": digest_of(layers),
        **_ratios({part: sum(one[part] for one in parts.values()) for part in PARTS}),
        "sites": [
            {"site": site.name, "role": site.role, "layer": site.layer} | _ratios(one) for site, one in parts.items()
        ],
    }


@torch.no_grad()
def _parts(base: Base, site: Site, update: Update, merged: FrozenLinear, state: str) -> dict[str, float]:
    weight = source_weight(base, site, state).double()
    meant, _ = update.apply(weight, None)
    without = base.frozen()[site].dense_weight(torch.float32).double() if state.startswith("requantized") else weight
    whole_OI = merged.dense_weight(torch.float32).double()
    shipped, delta = whole_OI if site.rows is None else whole_OI[list(site.rows)], meant - weight
    pairs = ((weight, weight), (meant, meant), (delta, delta), (shipped - without, delta), (shipped - meant,) * 2)
    return {part: _product(*pair) for part, pair in zip(PARTS, pairs, strict=True)}


def _product(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum())


def _ratios(sums: dict[str, float]) -> dict[str, float | None]:
    def root(part: str, whole: str) -> float | None:
        return (sums[part] / sums[whole]) ** 0.5 if sums[whole] else None

    return {
        "relative_update": root("delta", "weight"),
        "survival": sums["kept"] / sums["delta"] if sums["delta"] else None,
        "error": root("error", "meant"),
    }
