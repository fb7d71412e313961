"""Training curves: the losses of every run, and their figure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.aggregation import style
from pipeline.aggregation.comparison import Comparison, Line
from pipeline.aggregation.sweep import Sweep
from pipeline.core.records import RecordError

CURVES_NAMED = 8
"""Above so many lines in one panel a legend would be larger than the panel."""


@dataclass(frozen=True)
class Curve:
    """The finite losses of one run, and whether it went to its end."""

    steps: list[int]
    losses: list[float]
    whole: bool


Curves = dict[str, list[Curve]]
"""Group of runs -> the curves of its seeds."""


def read_curves(sweep: Sweep) -> Curves:
    """Read the curves of all runs that have one."""
    found: Curves = {}
    for run in sweep.runs:
        try:
            record = sweep.fetch(run.records["finetune"], "finetune")
        except RecordError:
            continue  # named among the missing already
        points = [point for point in record.result.get("curve", []) if point["loss"] is not None]
        if points:
            steps, losses = [point["step"] for point in points], [point["loss"] for point in points]
            found.setdefault(run.group, []).append(Curve(steps, losses, record.status == "ok"))
    return found


def training_curves(comparison: Comparison, curves: Curves) -> Figure:
    """Draw training losses: a panel per method, a line per size and format, the band spans the seeds."""
    lines = {line.key.partition("@")[0]: line for line in comparison.lines if line.adapter}
    shown = {group: curve for group, curve in curves.items() if group in lines}
    if not shown:
        return style.nothing("No run has left a training curve.")
    methods = list(dict.fromkeys(lines[group].method for group in shown))
    figure, axes = style.panels(len(methods), height=3.3)
    looks = style.looks(comparison)
    for ax, method in zip(axes, methods, strict=True):
        own = [(lines[group], of) for group, of in shown.items() if lines[group].method == method]
        sizes = sorted({line.size or 0 for line, _ in own})
        for line, of in own:
            alpha = (sizes.index(line.size or 0) + 1.5) / (len(sizes) + 0.5)
            _curves(ax, line, of, looks[line.adapter or ""][0], alpha)
        ax.set_title(method if len(own) <= CURVES_NAMED else f"{method}, {len(own)} lines")
        ax.tick_params(labelbottom=True)
        style.losses(ax)
        ax.set_ylim(top=_top(curve for of in shown.values() for curve in of))
        ax.set_xlabel("step")
        if len(own) <= CURVES_NAMED:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=7.5)
    axes[0].set_ylabel("training loss")
    return figure


def named(line: Line) -> str:
    """Return what tells a line, with all of its ranks, from the others of its method."""
    size = f"{(line.size_axis or '').replace('_', ' ')} {line.size or ''}".strip()
    return ", ".join(part for part in (size, line.variant, line.quantization) if part)


def _curves(ax: Axes, line: Line, curves: list[Curve], color: str, alpha: float) -> None:
    """Draw the mean of the seeds that went to their end, with the band that they span, and where others failed."""
    look: dict[str, Any] = {"color": color, "alpha": min(1, alpha), "linewidth": 1.3}
    look["linestyle"] = "-" if line.quantization == "none" else (0, (5, 1.5))
    label = named(line)
    whole = [curve for curve in curves if curve.whole]
    if whole:
        steps = whole[0].steps
        loss_SX = np.array([curve.losses for curve in whole])
        ax.fill_between(steps, loss_SX.min(axis=0), loss_SX.max(axis=0), color=color, alpha=0.12 * alpha, linewidth=0)
        ax.plot(steps, loss_SX.mean(axis=0), label=label, **look)
    failed = [curve for curve in curves if not curve.whole]
    for label_of, curve in zip([f"{label}, failed", *[None] * len(failed)], failed, strict=False):
        ax.plot(curve.steps, curve.losses, label=label_of, marker="x", markevery=[-1], **look)


def _top(curves: Iterable[Curve]) -> float | None:
    """Return where to cut the axis of losses, for a diverging one would leave nothing else to be seen."""
    return max((1.5 * max(curve.losses) for curve in curves if curve.whole), default=None)
