"""The figures, each from the comparison alone; training curves are read from the runs (`curves.py`)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.aggregation import style
from pipeline.aggregation.comparison import Cell, Column, Comparison, Line
from pipeline.aggregation.curves import Curves, training_curves
from pipeline.aggregation.layers import StoredBase, layers
from pipeline.aggregation.wording import ARROWS

LINES_SHOWN = 60
"""Above so many lines a figure with one row a line is no longer read."""


@dataclass(frozen=True)
class Point:
    """One line with its score in one column."""

    line: Line
    cell: Cell


def draw(comparison: Comparison, curves: Curves, bases: list[StoredBase]) -> dict[str, bytes]:
    """Return every figure as SVG, by file name."""
    titles = {
        "score-vs-parameters": "Score against trainable parameters",
        "states": "What is shipped: the score of each state",
        "rank-curve": "Score against rank",
        "retention-vs-gain": "What was gained, what was forgotten",
        "training-curves": "Training loss",
        "layers": "What storing each layer cost",
    }
    drawers: dict[str, Callable[[], Figure]] = {
        "score-vs-parameters": lambda: score_against_parameters(comparison),
        "states": lambda: states(comparison),
        "rank-curve": lambda: rank_curve(comparison),
        "retention-vs-gain": lambda: retention_against_gain(comparison),
        "training-curves": lambda: training_curves(comparison, curves),
        "layers": lambda: layers(bases),
    }
    with style.drawing():
        return {f"{name}.svg": style.svg(drawer(), titles[name]) for name, drawer in drawers.items()}


def score_against_parameters(comparison: Comparison) -> Figure:
    """Draw the target's score in the shown state against what ships, one panel per model and format."""
    column = comparison.target
    points = _points(comparison, column)
    if column is None or not points:
        return style.nothing("No run has been scored yet.")
    figure, panels = _panels(points)
    for ax, where in panels:
        looks = style.looks(comparison)
        for series, (adapter, found) in enumerate(_series(points, where).items()):
            own = sorted(found, key=lambda point: point.line.shipped_parameters or 0)
            x = np.array([point.line.shipped_parameters or 0 for point in own]) * 1.03 ** (series - 1)
            _line_with_intervals(ax, x, own, looks[adapter], label=own[0].line.method)
        _base(ax, comparison, column, where)
        style.counts(ax)
        ax.set_xlabel("trainable parameters that ship")
    _finish(figure, [ax for ax, _ in panels], _says(column))
    return figure


def rank_curve(comparison: Comparison) -> Figure:
    """Draw runs that hold several ranks at once beside methods trained at each rank apart."""
    column = comparison.target
    points = [point for point in _points(comparison, column) if _rank(point.line) is not None]
    if column is None or not any(point.line.rank is not None for point in points):
        return style.nothing("No run of this sweep holds several ranks at once.")
    figure, panels = _panels(points)
    for ax, where in panels:
        looks = style.looks(comparison)
        for adapter, found in _series(points, where).items():
            own = sorted(found, key=lambda point: _rank(point.line) or 0)
            at_once = own[0].line.rank is not None
            label = f"{own[0].line.method}, {'one run, all ranks' if at_once else 'a run for each rank'}"
            x = np.array([_rank(point.line) or 0 for point in own], dtype=float)
            if at_once:
                low, high = [point.cell.low for point in own], [point.cell.high for point in own]
                ax.fill_between(x, low, high, color=looks[adapter][0], alpha=0.15, linewidth=0)
            _line_with_intervals(ax, x, own, looks[adapter], label=label)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.set_xlabel("rank")
    _finish(figure, [ax for ax, _ in panels], _says(column))
    return figure


def retention_against_gain(comparison: Comparison) -> Figure:
    """Draw what each line forgot of the base's own task against what it gained on the target."""
    gained = comparison.target
    retained = next((c for c in comparison.leading("retention") if c.state == comparison.state), None)
    if gained is None or retained is None:
        return style.nothing("The sweep has no retention task, or nothing of it was scored.")
    points = [point for point in _points(comparison, gained) if _has_gain(point.line, gained, retained)]
    if not points:
        return style.nothing("No run was scored on both the target and the retention task.")
    figure, panels = _panels(points)
    for ax, where in panels:
        looks = style.looks(comparison)
        ax.axhline(0, color=style.MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        for adapter, own in _series(points, where).items():
            kept = [point.line.cells[retained.key] for point in own]
            x, x_low, x_high = _gains([point.cell for point in own])
            y, y_low, y_high = _gains(kept)
            color, marker = looks[adapter]
            spread_x, spread_y = np.stack([x - x_low, x_high - x]), np.stack([y - y_low, y_high - y])
            ax.errorbar(x, y, yerr=spread_y, xerr=spread_x, fmt="none", color=color, linewidth=1, alpha=0.55)
            size = 18 + 22 * np.arange(len(own))
            ax.plot(x, y, color=color, linewidth=0.8, alpha=0.6)
            ax.scatter(x, y, s=size, color=color, marker=marker, zorder=3)
            ax.plot([], [], marker, color=color, label=own[0].line.method)
        ax.set_xlabel(f"gain on {gained.protocol}")
    _finish(figure, [ax for ax, _ in panels], f"change on {retained.protocol}")
    return figure


def states(comparison: Comparison) -> Figure:
    """Draw the target's score in every state, a row per line of the table."""
    columns = comparison.leading("target")
    lines = [line for line in comparison.lines if any(column.key in line.cells for column in columns)][:LINES_SHOWN]
    if not lines:
        return style.nothing("No run has been scored yet.")
    figure = Figure(figsize=(6.6, 1.1 + 0.25 * len(lines)))
    ax = figure.subplots()
    looks = style.looks(comparison)
    shapes = [("o", "full"), ("s", "none"), ("D", "none"), ("^", "none"), ("v", "none")]
    for column, (marker, fill), shift in zip(columns, shapes, np.linspace(-0.2, 0.2, len(columns)), strict=False):
        found = [(y + shift, line) for y, line in enumerate(lines) if column.key in line.cells]
        rows = [y for y, _ in found]
        cells = [line.cells[column.key] for _, line in found]
        colors = [looks[line.adapter or ""][0] for _, line in found]
        ax.hlines(rows, [cell.low for cell in cells], [cell.high for cell in cells], colors, linewidth=1, alpha=0.6)
        faces = colors if fill == "full" else "none"
        ax.scatter([cell.score for cell in cells], rows, s=26, marker=marker, edgecolors=colors, facecolors=faces)
        ax.plot([], [], marker, color=style.INK, fillstyle=fill, linestyle="none", label=column.state)
    ax.set_yticks(range(len(lines)), [line.name for line in lines])
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.set_xlabel(_says(columns[0]).rpartition(", ")[0])
    style.legend(figure, [ax])
    return figure


def _points(comparison: Comparison, column: Column | None) -> list[Point]:
    if column is None:
        return []
    return [Point(line, line.cells[column.key]) for line in comparison.lines if column.key in line.cells]


def _panels(points: list[Point]) -> tuple[Figure, list[tuple[Axes, tuple[str, str]]]]:
    """Return one panel per model and format, titled."""
    wheres = list(dict.fromkeys((point.line.model, point.line.quantization) for point in points))
    figure, axes = style.panels(len(wheres))
    several = len({model for model, _ in wheres}) > 1
    for ax, (model, quantization) in zip(axes, wheres, strict=True):
        ax.set_title(f"{model}, {quantization}" if several else f"weights: {quantization}")
    return figure, list(zip(axes, wheres, strict=True))


def _series(points: list[Point], where: tuple[str, str]) -> dict[str, list[Point]]:
    """Return the points of one panel by method, in the order of the table."""
    found: dict[str, list[Point]] = {}
    for point in points:
        if (point.line.model, point.line.quantization) == where:
            found.setdefault(point.line.adapter or "", []).append(point)
    return found


def _line_with_intervals(ax: Axes, x: np.ndarray, points: list[Point], look: tuple[str, str], *, label: str) -> None:
    """Draw scores with their intervals, and each seed as a small dot."""
    color, marker = look
    y = np.array([point.cell.score for point in points])
    spread = [y - [point.cell.low for point in points], [point.cell.high for point in points] - y]
    ax.errorbar(x, y, yerr=np.maximum(spread, 0), color=color, marker=marker, label=label, capsize=2.5, elinewidth=1)
    for at, point in zip(x, points, strict=True):
        seeds = list(point.cell.by_seed.values())
        ax.plot([at] * len(seeds), seeds, ".", color=color, markersize=3, alpha=0.6)


def _base(ax: Axes, comparison: Comparison, column: Column, where: tuple[str, str]) -> None:
    for line in comparison.lines:
        cell = line.cells.get(column.sibling("base"))
        if cell is not None and line.is_base and (line.model, line.quantization) == where:
            ax.axhline(cell.score, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)), label="base alone")


def _finish(figure: Figure, axes: list[Axes], says: str) -> None:
    for ax in axes:
        if ax.get_subplotspec().is_first_col():  # pyright: ignore[reportOptionalMemberAccess]  (made by subplots)
            ax.set_ylabel(says)
    style.legend(figure, axes)


def _says(column: Column) -> str:
    return f"{column.protocol}\n{column.rule}, {column.unit} {ARROWS[column.better]}, {column.state}"


def _rank(line: Line) -> int | None:
    return line.rank if line.rank is not None else line.size if line.size_axis == "rank" else None


def _has_gain(line: Line, *columns: Column) -> bool:
    return all(column.key in line.cells and line.cells[column.key].gain is not None for column in columns)


def _gains(cells: list[Cell]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return gains and the ends of their intervals."""
    found = np.array([[cell.gain, cell.gain_low, cell.gain_high] for cell in cells], dtype=float)
    return found[:, 0], np.minimum(found[:, 1], found[:, 0]), np.maximum(found[:, 2], found[:, 0])
