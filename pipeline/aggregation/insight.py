"""What the runs say of their updates beside a score, layer by layer, and its figures; drawn where a run says any of it.

`train.json` has effective ranks, rotation angles and drawn ranks; `merge.json` the size of each site's update and how
much wider the blocks that share a scale become.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.aggregation import style
from pipeline.aggregation.comparison import Comparison, Line
from pipeline.aggregation.curves import CURVES_NAMED, named
from pipeline.aggregation.sweep import Sweep, split_label
from pipeline.core.records import Record, RecordError

MERGED = ("merged-original", "merged-dequantized")
"""The states whose report tells of the update and not of its rounding, the first one that is there."""
QUANTILES = ("p50", "max")
"""Of a spectrum: what is drawn as a line, and where the band beside it ends."""

CAPTIONS = {
    "update-size": (
        "How large the updates are",
        "‖ΔW‖ / ‖W‖ of each block of the model: the mean over its adapted layers and over seeds. Paler is smaller, "
        "dashed is quantized; a run that holds several ranks at once is shown at its largest.",
    ),
    "effective-rank": (
        "How many directions are used",
        "Effective rank of B A (exp of the entropy of its singular values), the mean over the layers of a block and "
        "over seeds. Paler is smaller, dashed is quantized.",
    ),
    "rotation-angles": (
        "How far the inputs are turned",
        "Angles of the planes that each rotation turns: the line is the median, the band goes up to the largest; means "
        "over the layers of a block and over seeds.",
    ),
    "drawn-ranks": (
        "Which ranks were trained",
        "Optimizer steps at each rank, the mean over seeds.",
    ),
    "block-range": (
        "How much wider the scales must span",
        "Ratio of the largest weights of each quantization block after and before merging: the line is the median, the "
        "band goes up to the largest; means over the layers of a block of the model and over seeds.",
    ),
}


@dataclass
class Insight:
    """What one run says: quantity -> block of the model -> mean over its layers; and steps by drawn rank."""

    by_block: dict[str, dict[int, float]] = field(default_factory=dict)
    draws: dict[int, int] = field(default_factory=dict)


Insights = dict[str, list[Insight]]
"""Group of runs -> what its seeds say."""


def read(sweep: Sweep) -> Insights:
    """Read what every run that ended well says of its update."""
    found: Insights = {}
    for run in sweep.runs:
        try:
            trained, merged = (sweep.fetch(run.records[stage], stage) for stage in ("finetune", "merge"))
        except RecordError:
            continue  # named among the missing already
        if trained.status == merged.status == "ok":
            found.setdefault(run.group, []).append(_insight(trained, merged))
    return found


def _insight(trained: Record, merged: Record) -> Insight:
    said, sites = trained.result["insight"], _sites(merged)
    block_of = {row["site"]: row["layer"] for row in sites}
    of_sites: dict[str, dict[str, float | None]] = {
        "update-size": {row["site"]: row["relative_update"] for row in sites},
        "effective-rank": said.get("effective_rank", {}),
    }
    spectra = {
        "rotation-angles": said.get("rotation_angle", {}),
        "block-range": {row["site"]: row["block_absmax_ratio"] for row in sites if row.get("block_absmax_ratio")},
    }
    for name, by_site in spectra.items():
        for quantile in QUANTILES:
            of_sites[f"{name} {quantile}"] = {site: spectrum[quantile] for site, spectrum in by_site.items()}
    draws = {int(rank): steps for rank, steps in said.get("steps_at_rank", {}).items()}
    return Insight({name: _means(values, block_of) for name, values in of_sites.items()}, draws)


def _sites(merged: Record) -> list[dict[str, Any]]:
    """Return the sites of a merge report, in the first state that tells of the update, at the largest rank."""
    labels = {(state, rank or 0): label for label in merged.result["states"] for state, rank in [split_label(label)]}
    for state in MERGED:
        if ranks := [rank for of, rank in labels if of == state]:
            return merged.result["states"][labels[state, max(ranks)]]["sites"]
    return []


def _means(by_site: dict[str, float | None], block_of: dict[str, int]) -> dict[int, float]:
    blocks: dict[int, list[float]] = {}
    for site, value in by_site.items():
        if value is not None and site in block_of:
            blocks.setdefault(block_of[site], []).append(value)
    return {block: float(np.mean(values)) for block, values in sorted(blocks.items())}


def draw(comparison: Comparison, insights: Insights) -> dict[str, bytes]:
    """Return as SVG, by file name, each figure that any run has something to say for."""
    drawers: dict[str, Callable[[], Figure | None]] = {
        "update-size": lambda: _by_block(comparison, insights, ["update-size"], "‖ΔW‖ / ‖W‖"),
        "effective-rank": lambda: _by_block(comparison, insights, ["effective-rank"], "effective rank"),
        "rotation-angles": lambda: _by_block(comparison, insights, _band("rotation-angles"), "angle in degrees"),
        "drawn-ranks": lambda: _draws(comparison, insights),
        "block-range": lambda: _by_block(comparison, insights, _band("block-range"), "largest weight, after / before"),
    }
    with style.drawing():
        drawn = {name: figure for name, drawer in drawers.items() if (figure := drawer()) is not None}
        return {f"{name}.svg": style.svg(figure, CAPTIONS[name][0]) for name, figure in drawn.items()}


def _band(name: str) -> list[str]:
    return [f"{name} {quantile}" for quantile in QUANTILES]


def _by_block(comparison: Comparison, insights: Insights, quantities: list[str], says: str) -> Figure | None:
    """Draw one quantity, and a band up to another if there are two: a panel per method, a line per size and format."""
    shown = _shown(comparison, insights, lambda one: bool(one.by_block[quantities[0]]))
    if not shown:
        return None
    methods = list(dict.fromkeys(line.method for line, _ in shown))
    figure, axes = style.panels(len(methods), height=3.3)
    looks = style.looks(comparison)
    for ax, method in zip(axes, methods, strict=True):
        own = [(line, of) for line, of in shown if line.method == method]
        sizes = sorted({line.size or 0 for line, _ in own})
        for line, of in own:
            strength = min(1, (sizes.index(line.size or 0) + 1.5) / (len(sizes) + 0.5))
            dashes: Any = "-" if line.quantization == "none" else (0, (5, 1.5))
            color = looks[line.adapter or ""][0]
            x, *ys = _means_of([[one.by_block[name] for one in of] for name in quantities])
            ax.plot(x, ys[0], label=named(line), marker=".", linestyle=dashes, color=color, alpha=strength)
            ax.fill_between(x, ys[0], ys[-1], color=color, alpha=0.12 * strength, linewidth=0)
        _finish(ax, method, len(own))
        ax.set_xlabel("block of the model")
    axes[0].set_ylabel(says)
    return figure


def _draws(comparison: Comparison, insights: Insights) -> Figure | None:
    """Draw how often each rank was drawn, a panel per line of the table that draws any."""
    shown = _shown(comparison, insights, lambda one: bool(one.draws))
    if not shown:
        return None
    figure, axes = style.panels(len(shown), height=2.4)
    looks = style.looks(comparison)
    for ax, (line, of) in zip(axes, shown, strict=True):
        ranks, steps = _means_of([[one.draws for one in of]])
        ax.bar(ranks, steps, color=looks[line.adapter or ""][0], width=0.8)
        ax.set_title(f"{line.method}, {named(line)}")
        ax.set_xlabel("rank")
    axes[0].set_ylabel("steps")
    return figure


def _shown(
    comparison: Comparison, insights: Insights, says: Callable[[Insight], bool]
) -> list[tuple[Line, list[Insight]]]:
    """Return the lines of the table, each once whatever its ranks, with the seeds that have something to say."""
    lines = {line.key.partition("@")[0]: line for line in comparison.lines if line.adapter}
    found = [(line, [one for one in insights.get(group, []) if says(one)]) for group, line in lines.items()]
    return [(line, of) for line, of in found if of]


def _means_of(quantities: list[list[dict[int, Any]]]) -> list[Any]:
    """Return where all seeds have a value, and there the mean over seeds of each quantity."""
    where = [at for at in quantities[0][0] if all(at in one for seeds in quantities for one in seeds)]
    return [where, *(np.mean([[one[at] for at in where] for one in seeds], axis=0) for seeds in quantities)]


def _finish(ax: Axes, method: str, lines: int) -> None:
    ax.set_title(method if lines <= CURVES_NAMED else f"{method}, {lines} lines")
    ax.tick_params(labelbottom=True)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if lines <= CURVES_NAMED:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=7.5)
