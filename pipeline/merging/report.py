"""The merge report: for every merged state how large the update was, how much of it survived, and the error.

With W the weight merged into, W' = update(W) what was meant, dW = W' - W, M the merged weight as it is shipped, and W0
the weight that would be shipped without the update (W itself if M is dense, the base's own if M is quantized):

    relative_update = ||dW|| / ||W||      survival = <M - W0, dW> / ||dW||^2      error = ||M - W'|| / ||W'||

Survival is 1 where everything is kept and 0 where the shipped weights no longer know of the fine-tune: an update of 3 %
of the weights or less is rounded away when a base that lies on its grid is put back on it.

Where the base's format takes an update into its scales or zero points, no code changes, and what ships is what was
scored as trained: `exact` is the share of sites where that is so, `requantized` counts the others by the reason.

Where the base's format cuts weights into blocks that share a scale, each site also says by how much the update widens
them: quantiles over the blocks of absmax(W') / absmax(W), blocks of zeros left out.
"""

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.adapters.base import Method
from pipeline.core.frozen import FrozenLinear
from pipeline.core.site import Site
from pipeline.core.update import Update
from pipeline.models.load import Base
from pipeline.models.states import OWN_CODES, Label, digest_of, joined, labels, merge, source_weight, stored

PARTS = ("weight", "meant", "delta", "kept", "error")
"""The squared norms of W, W', dW and M - W', and the product of M - W0 and dW (kept). They add up over sites."""
SPANS = {"p50": 0.5, "p99": 0.99, "max": 1.0}


def report(base: Base, method: Method[Any, Any], states: list[str]) -> dict[str, Any]:
    """Return digest, ratios overall and ratios by site of every state, and why a state is left out.

    `base` is left as it was found. Ratios are None where they are not defined (no update, a zero weight).
    """
    wanted, skipped = labels(states, method, base.format)
    return {"states": {str(label): _state(base, method, label) for label in wanted}, "skipped": skipped}


def _state(base: Base, method: Method[Any, Any], label: Label) -> dict[str, Any]:
    layers = merge(base, method, label)
    updates = method.updates(label.at)
    found = {
        site: _measured(base, site, update, layers[base.whole(site)], label.state) for site, update in updates.items()
    }
    whys = {whole: _why_requantized(base, whole, updates, label.state) for whole in layers}
    return {
        "digest": digest_of(layers),
        "exact": sum(why == "" for why in whys.values()) / len(whys) if label.state == OWN_CODES else None,
        "requantized": Counter(why for why in whys.values() if why),
        **_ratios({part: sum(parts[part] for parts, _ in found.values()) for part in PARTS}),
        "sites": [
            {"site": site.name, "role": site.role, "layer": site.layer, "block_absmax_ratio": spans} | _ratios(parts)
            for site, (parts, spans) in found.items()
        ],
    }


def _why_requantized(base: Base, whole: Site, updates: dict[Site, Update], state: str) -> str | None:
    """Return why codes are made anew, "" where they are not, None where the state has none or never keeps them."""
    if state != OWN_CODES:
        return None
    update = joined(whole, {site: update for site, update in updates.items() if base.whole(site) == whole})
    if update is None:
        return "slices of a fused projection turn or scale their common inputs each in its own way"
    _, left, reasons = stored(base, whole).absorbing(update)
    return "" if left.empty() else "; ".join(reasons)


@torch.no_grad()
def _measured(
    base: Base, site: Site, update: Update, merged: FrozenLinear, state: str
) -> tuple[dict[str, float], dict[str, float] | None]:
    """Return the parts of one site, and how much wider its blocks are."""
    weight = source_weight(base, site, state).double()
    meant, _ = update.apply(weight, None)
    without = base.frozen()[site].dense_weight(torch.float32).double() if state.startswith("requantized") else weight
    whole_OI = merged.dense_weight(torch.float32).double()
    shipped, delta = whole_OI if site.rows is None else whole_OI[list(site.rows)], meant - weight
    pairs = ((weight, weight), (meant, meant), (delta, delta), (shipped - without, delta), (shipped - meant,) * 2)
    parts = {part: _product(*pair) for part, pair in zip(PARTS, pairs, strict=True)}
    return parts, _widened(base.format.block_absmax(weight), base.format.block_absmax(meant))


def _widened(before_S: Tensor | None, after_S: Tensor | None) -> dict[str, float] | None:
    """Return quantiles of the ratio of two block scales; None without blocks, or with zeros alone."""
    if before_S is None or after_S is None or not (some_S := before_S > 0).any():
        return None
    ratios = np.quantile((after_S[some_S] / before_S[some_S]).double().cpu().numpy(), list(SPANS.values()))
    return dict(zip(SPANS, ratios.tolist(), strict=True))


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
