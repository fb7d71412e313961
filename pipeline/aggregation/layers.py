"""What storing each layer of a base cost: a csv, and a figure of the errors and of what they do to the loss."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.aggregation import style
from pipeline.aggregation.sweep import Sweep
from pipeline.core import records
from pipeline.core.records import RecordError
from pipeline.core.settings import digest

PLACE = ("site", "role", "layer")
FIGURES = ("relative_error", "max_error", "max_weight", "kurtosis", "outlier_error")
LOSSES = ("loss_change", "loss_change_outliers_kept")
SENSITIVITY = "sensitivity.json"


@dataclass(frozen=True)
class StoredBase:
    """The layers of one base that is stored otherwise than its model, and the task whose loss was measured, if any."""

    name: str
    layers: list[dict[str, Any]]
    task: str | None


def read_layers(sweep: Sweep) -> list[StoredBase]:
    """Read the quantized bases of a sweep; one whose record is missing is named among the missing already."""
    found = []
    for base in sweep.bases:
        expected = base.records["quantize_base"]
        try:
            made = sweep.fetch(expected, "quantize_base")
        except RecordError:
            continue
        if not any(row.get("relative_error") for row in made.result["layers"]):
            continue
        path = (sweep.results / expected.path).with_name(SENSITIVITY)
        measured = records.read(path, "sensitivity").result if path.exists() else {"base": None}
        if measured["base"] != digest(made.result, 64):  # of no base, or of another one that lay here before
            found.append(StoredBase(base.name, made.result["layers"], None))
            continue
        losses = {row["site"]: row for row in measured["layers"]}
        layers = [row | losses[row["site"]] for row in made.result["layers"]]
        found.append(StoredBase(base.name, layers, measured["task"]))
    return found


def layers_csv(bases: list[StoredBase]) -> bytes:
    """Return a row for each layer of each base."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = (*PLACE, *FIGURES, *LOSSES)
    writer.writerow(["base", *columns, "loss_task"])
    for base in bases:
        writer.writerows([base.name, *(_said(row.get(name)) for name in columns), base.task] for row in base.layers)
    return text.getvalue().encode()


def _said(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def layer_errors(bases: list[StoredBase]) -> Figure:
    """Draw the relative error of each layer, a panel for each base and a line for each role."""
    if not bases:
        return style.nothing("No base of this sweep is quantized.")
    return _panels(bases, "relative error of the weight", lambda ax, x, own, color, marker: ax.plot(
        x, [row["relative_error"] for row in own], color=color, marker=marker, label=own[0]["role"],
    ))  # fmt: skip


def layer_losses(bases: list[StoredBase]) -> Figure:
    """Draw what quantizing each layer alone adds to the loss, with and without its outliers."""
    measured = [base for base in bases if base.task]
    if not measured:
        return style.nothing(
            "Nobody has asked for it: python -m pipeline sensitivity results/tables/<sweep>/sweep.json"
        )

    def plot(ax: Axes, x: list[int], own: list[dict[str, Any]], color: str, marker: str) -> None:
        ax.plot(x, [row[LOSSES[0]] for row in own], color=color, marker=marker, label=own[0]["role"])
        kept = [row[LOSSES[1]] for row in own]
        ax.plot(x, kept, color=color, marker=marker, fillstyle="none", linestyle=(0, (3, 2)))

    return _panels(measured, f"change of loss on {measured[0].task}\nnats a token", plot)


def _panels(bases: list[StoredBase], says: str, plot: Callable[[Axes, list[int], list[Any], str, str], Any]) -> Figure:
    figure, axes = style.panels(len(bases))
    for ax, base in zip(axes, bases, strict=True):
        roles = list(dict.fromkeys(row["role"] for row in base.layers))
        for k, role in enumerate(roles):
            own = [row for row in base.layers if row["role"] == role]
            look = style.SERIES[k % len(style.SERIES)], style.MARKERS[(k + k // 6) % len(style.MARKERS)]
            plot(ax, [row["layer"] for row in own], own, *look)
        ax.set_title(base.name)
        ax.set_xlabel("block")
    axes[0].set_ylabel(says)
    style.legend(figure, axes)
    return figure
