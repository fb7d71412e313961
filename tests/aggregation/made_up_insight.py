"""What made-up runs say of their updates and of what they take."""

import re

SITES = [("q", 0), ("v", 0), ("q", 1), ("v", 1)]


def sites(*, quantized: bool) -> list[dict]:
    """The rows of a merge report: larger in the second block."""
    spans = {"p50": 1.01, "p99": 1.2, "max": 1.5} if quantized else None
    return [
        {"site": f"layers.{layer}.{role}", "role": role, "layer": layer, "relative_update": 0.05 * (1 + layer),
         "survival": 0.9, "error": 0.01, "block_absmax_ratio": spans}
        for role, layer in SITES
    ]  # fmt: skip


def insight(adapter: str, size: int) -> dict:
    names = [f"layers.{layer}.{role}" for role, layer in SITES]
    if adapter == "oft":
        return {"rotation_angle": {name: {"p50": 1.0, "p90": 2.0, "p99": 4.0, "max": 8.0} for name in names}}
    drawn = {"steps_at_rank": {str(rank): 10 + rank for rank in range(1, size + 1)}} if adapter == "dylora" else {}
    return {"effective_rank": dict.fromkeys(names, 0.6 * size)} | drawn


def weight_bytes(folder: str, label: str) -> int:
    """The base's bytes by its format, and the adapter's by the rank of the label or the size in the folder's name."""
    base = 300_000 if "nf4" in folder else 1_800_000
    size = label.partition("@r")[2] or (re.findall(r"-(\d+)-s", folder) or [0])[0]
    return base + 2048 * int(size)
