"""What storing each layer of a base cost: a csv, and a figure of the errors and of what they do to the loss."""

import csv
import io
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
        measured: dict[str, Any] = records.read(path, "sensitivity").result if path.exists() else {"base": None}
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


def layers(bases: list[StoredBase]) -> Figure:
    """Draw relative errors, a panel for each base and a line for each role; below, where measured, what they cost.

    There the change of the loss with that layer alone quantized is filled, and hollow with its outliers kept.
    """
    if not bases:
        return style.nothing("No base of this sweep is quantized.")
    measured = any(base.task for base in bases)
    figure = Figure(figsize=(max(5.6, 3.3 * len(bases)), 5.2 if measured else 3.1))
    axes = figure.subplots(1 + measured, len(bases), sharex=True, sharey="row", squeeze=False)
    for column, base in enumerate(bases):
        axes[0, column].set_title(base.name)
        axes[-1, column].set_xlabel("block")
        _lines(axes[0, column], base, "relative_error", linestyle="-")
        if base.task:
            _lines(axes[1, column], base, LOSSES[0], linestyle="-")
            _lines(axes[1, column], base, LOSSES[1], linestyle=(0, (3, 2)), fillstyle="none")
    axes[0, 0].set_ylabel("relative error")
    if measured:
        task = next(base.task for base in bases if base.task)
        axes[1, 0].set_ylabel(f"change of loss on {task}\nnats a token, outliers kept: hollow")
    style.legend(figure, axes[0].tolist())
    return figure


def _lines(ax: Axes, base: StoredBase, figure: str, **look: Any) -> None:
    for k, role in enumerate(dict.fromkeys(row["role"] for row in base.layers)):
        own = [row for row in base.layers if row["role"] == role]
        color, marker = style.SERIES[k % len(style.SERIES)], style.MARKERS[(k + k // 6) % len(style.MARKERS)]
        x, y = [row["layer"] for row in own], [row[figure] for row in own]
        ax.plot(x, y, color=color, marker=marker, label=role, **look)
