"""The states in which a fine-tune is scored: as trained, merged, and re-quantized.

| state | weight of an adapted site |
|---|---|
| base | the base's own, no adapter |
| trained | the base's own, adapter beside it |
| merged-original | update(W16), dense |
| merged-dequantized | update(dequantize(W4)), dense |
| requantized-original | quantize(update(W16)) |
| requantized-dequantized | quantize(update(dequantize(W4))); where W4 can absorb the update whole, its codes stay |

A method that holds several adapters at once (DyLoRA's ranks) has one label a point: `trained@r4`.
No merged weights are written to disk: a state is rebuilt in memory, and its digest says that it is the same one.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.adapters.base import Method
from pipeline.core.frozen import FrozenLinear
from pipeline.core.settings import SettingsError, nearest
from pipeline.core.site import Site
from pipeline.core.update import Update
from pipeline.models.load import Base
from pipeline.quantization.base import Format, StoredLinear
from pipeline.quantization.none import Dense

STATES = (
    "base", "trained", "merged-original", "merged-dequantized", "requantized-original", "requantized-dequantized",
)  # fmt: skip

OWN_CODES = "requantized-dequantized"
"""The state that keeps the base's codes where its format can absorb an update whole."""


@dataclass(frozen=True)
class Label:
    """One state at one point of the method (None where the method has no points)."""

    state: str
    at: int | None = None

    def __str__(self) -> str:
        """Return `state`, or `state@r4` at a point."""
        return self.state if self.at is None else f"{self.state}@r{self.at}"


def labels(states: list[str], method: Method, format_: Format) -> tuple[list[Label], dict[str, str]]:
    """Return the labels to build, and for each state that cannot be built the reason."""
    wanted, skipped = [], {}
    for state in states:
        if state not in STATES[1:]:
            hint = nearest(state, list(STATES))
            raise SettingsError(
                f"evaluation.states: there is no state {state!r}.{hint} Allowed: {', '.join(STATES[1:])}."
            )
        if reason := _obstacle(state, method, format_):
            skipped[state] = reason
        else:
            wanted += [Label(state, at) for at in (method.points or [None])]
    return wanted, skipped


def _obstacle(state: str, method: Method, format_: Format) -> str | None:
    mergeable, reason = method.mergeable
    if state != "trained" and not mergeable:
        return f"cannot be merged: {reason}"
    if isinstance(format_, Dense) and state == "merged-dequantized":
        return "the base is not quantized: the same as merged-original"
    if isinstance(format_, Dense) and state.startswith("requantized"):
        return "the base is not quantized"
    return None


@contextlib.contextmanager
def entered(base: Base, method: Method | None, label: Label) -> Iterator[str | None]:
    """Put `base` into a state for the length of the block; yield the digest of its merged weights.

    The digest is None for `base` and `trained`, whose weights are files with hashes of their own.
    """
    if method is None or label.state in ("base", "trained"):
        base.attach(method.export(label.at) if method is not None and label.state == "trained" else {})
        try:
            yield None
        finally:
            base.detach()
        return
    base.detach()
    before = base.frozen()
    merged = merge(base, method, label)
    try:
        for site, frozen in merged.items():
            base.places[site].frozen = frozen
        yield digest_of(merged)
    finally:
        for site, frozen in before.items():
            base.places[site].frozen = frozen


def merge(base: Base, method: Method, label: Label) -> dict[Site, FrozenLinear]:
    """Return the merged layer of every weight that the method adapts; slices are merged into the one that they cut."""
    wholes: dict[Site, dict[Site, Update]] = {}
    for site, update in method.updates(label.at).items():
        wholes.setdefault(base.whole(site), {})[site] = update
    return {site: merge_site(base, site, updates, label.state) for site, updates in wholes.items()}


@torch.no_grad()
def merge_site(base: Base, whole: Site, updates: dict[Site, Update], state: str) -> FrozenLinear:
    """Return the layer of one stored weight with all `updates` of it merged, in the state asked for.

    The arithmetic is in fp32; the result is dense or quantized by the base's format, in the dtype that the model is
    stored in: what is shipped does not depend on the dtype that it is computed with.
    """
    frozen = stored(base, whole)
    format_, dtype = base.format if state.startswith("requantized") else Dense(), frozen.quantized.dtype
    if state == OWN_CODES and (update := joined(whole, updates)) is not None:
        layer, left, _ = frozen.absorbing(update)
        if left.empty():
            return layer
    weight_OI = source_weight(base, whole, state)
    bias_O = None if frozen.bias is None else frozen.bias.float()
    for site, update in updates.items():
        weight_OI, bias_O = merged(update, site, weight_OI, bias_O)
    return format_.frozen(format_.quantize(weight_OI.to(dtype)), None if bias_O is None else bias_O.to(dtype))


def joined(whole: Site, updates: dict[Site, Update]) -> Update | None:
    """Return the one update of a stored weight that does what those of its slices do.

    None where a slice turns or scales its inputs, which are those of all slices.
    """
    if whole in updates:
        return updates[whole]
    if any(update.rotation_NCC is not None or update.column_scale_I is not None for update in updates.values()):
        return None
    made = Update()
    for name, nothing in (("delta_OI", 0.0), ("row_scale_O", 1.0), ("bias_O", 0.0)):
        parts = {site: part for site, update in updates.items() if (part := getattr(update, name)) is not None}
        for site, part in parts.items():
            if getattr(made, name) is None:
                setattr(made, name, part.new_full((whole.out_features, *part.shape[1:]), nothing))
            getattr(made, name)[list(site.rows or ())] = part
    return made


def stored(base: Base, site: Site) -> StoredLinear:
    """Return what is frozen at a linear site that is no slice."""
    frozen = base.frozen()[site]
    assert isinstance(frozen, StoredLinear)
    return frozen


def merged(
    update: Update, site: Site, weight_OI: torch.Tensor, bias_O: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return weight and bias, new tensors, with the update of `site` applied to its outputs."""
    if site.rows is None:
        return update.apply(weight_OI, bias_O)
    rows = list(site.rows)
    part_RI, part_R = update.apply(weight_OI[rows], None if bias_O is None else bias_O[rows])
    weight_OI = weight_OI.clone()
    weight_OI[rows] = part_RI
    if part_R is not None:
        bias_O = weight_OI.new_zeros(len(weight_OI)) if bias_O is None else bias_O.clone()
        bias_O[rows] = part_R
    return weight_OI, bias_O


def source_weight(base: Base, site: Site, state: str) -> torch.Tensor:
    """Return the fp32 weight (O, I) that a state merges into: the original's, or the dequantized base's.

    What was taken out of a weight before it was stored is in the update, so it is no part of the original either.
    """
    frozen = base.frozen()[site]
    if not state.endswith("-original"):
        return frozen.dense_weight(torch.float32)
    weight_OI = base.weights.linear(site).to(base.device, torch.float32)
    if frozen.taken is None:
        return weight_OI
    A_RI, B_OR = (part.to(base.device) for part in frozen.taken)
    return weight_OI - B_OR @ A_RI


def digest_of(layers: dict[Site, FrozenLinear]) -> str:
    """Return the SHA-256 over the stored tensors of these layers, in order of site and tensor name."""
    total = hashlib.sha256()
    for site in sorted(layers, key=lambda one: one.name):
        layer = layers[site]
        assert isinstance(layer, StoredLinear)
        tensors = dict(layer.quantized.tensors) | ({} if layer.bias is None else {"bias": layer.bias})
        for name in sorted(tensors):
            total.update(f"{site.name}/{name}/{tuple(tensors[name].shape)}/{tensors[name].dtype}".encode())
            total.update(tensors[name].detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
