"""Lays the comparison out as sheets of text: which columns a table has, and what each entry says.

Markdown, LaTeX, plain text and HTML are renderings of the same sheets (`tables.py`, `report.py`).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.aggregation.comparison import Cell, Column, Comparison, Line
from pipeline.aggregation.wording import ARROWS, STATUS_WORDS, number, remarks, titled


@dataclass(frozen=True)
class Entry:
    """One entry: what it says, how it is marked, the number it is sorted by, and what more there is to know.

    `mark` is that of a cell, or "failed" where there is no number because a run did not end well.
    """

    text: str = ""
    mark: str = ""
    shift: str = ""
    value: float | str | None = None
    more: str = ""
    muted: bool = False


@dataclass(frozen=True)
class Heading:
    """The heading of one column, line by line, and whether its entries may carry marks."""

    lines: tuple[str, ...]
    numeric: bool = True
    marked: bool = False


@dataclass(frozen=True)
class Row:
    """One line of a sheet."""

    line: Line
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Sheet:
    """One table."""

    name: str
    title: str
    headings: tuple[Heading, ...]
    rows: tuple[Row, ...]


def main(comparison: Comparison) -> Sheet:
    """Return the comparison table: the target in every state, its gain, and the other tasks in the shown state."""
    targets = comparison.leading("target")
    others = [
        column
        for column in comparison.columns
        if column.leading and column.role != "target" and column.state == comparison.state
    ]
    gains = [column for column in targets if column.state == comparison.state]
    headings = [
        *_identity_headings(comparison),
        Heading(("trained parameters", "", "")),
        *(_heading(column) for column in targets),
        *(Heading(("gain over base", *_heading(column).lines[1:])) for column in gains),
        *(_heading(column) for column in others),
        Heading(("remarks", "", ""), numeric=False),
    ]
    decimals = _decimals(comparison)
    rows = [
        Row(
            line,
            (
                *_identity(comparison, line),
                _parameters(line),
                *(_entry(comparison, column, line, decimals) for column in targets),
                *(_gain(column, line, decimals) for column in gains),
                *(_entry(comparison, column, line, decimals) for column in others),
                Entry("; ".join(remarks(line)), muted=True),
            ),
        )
        for line in comparison.lines
    ]
    return Sheet("main", f"Comparison: {comparison.name}", tuple(headings), tuple(rows))


def details(comparison: Comparison) -> list[Sheet]:
    """Return one sheet per task: every scoring rule in every state, with failures where there are any."""
    decimals = _decimals(comparison)
    sheets = []
    for task in comparison.tasks:
        columns = [one for one in comparison.columns if one.task == task.name and one.state != "base"]
        counted = [
            (column, count)
            for column in columns
            for count in ("failures", "truncated")
            if column.state == comparison.state and _any(comparison.lines, column, count)
        ]
        counted = [(column, count) for column, count in counted if count == "failures" or column.leading]
        headings = [
            *_identity_headings(comparison),
            *map(_heading, columns),
            *(_count_heading(*one) for one in counted),
        ]
        rows = [
            Row(
                line,
                (
                    *_identity(comparison, line),
                    *(_entry(comparison, column, line, decimals) for column in columns),
                    *(_count(column, count, line) for column, count in counted),
                ),
            )
            for line in comparison.lines
        ]
        title = f"{titled(task)}: every rule in every state"
        sheets.append(Sheet(task.name, title, tuple(headings), tuple(rows)))
    return sheets


def survival(comparison: Comparison) -> Sheet | None:
    """Return how much of each update every merged state kept, scored or not; None where nothing was merged."""
    merged = {state for line in comparison.lines for state in line.survival}
    states = [state for state in comparison.states if state in merged] + sorted(merged - set(comparison.states))
    if not states:
        return None
    headings = [*_identity_headings(comparison), Heading(("size of update", "‖ΔW‖ / ‖W‖", "%"))]
    headings += [Heading(("update kept", "%", state)) for state in states]
    rows = [
        Row(line, (*_identity(comparison, line), _relative(line), *(_kept(line, state) for state in states)))
        for line in comparison.lines
        if not line.is_base
    ]
    return Sheet("survival", "How much of each update survives merging", tuple(headings), tuple(rows))


def _identity_headings(comparison: Comparison) -> list[Heading]:
    words = ["method", "size", "weights"]
    words = ["model", *words] if len({line.model for line in comparison.lines}) > 1 else words
    words = [*words, "settings"] if any(line.variant for line in comparison.lines) else words
    return [Heading((word, "", ""), numeric=False) for word in words]


def _identity(comparison: Comparison, line: Line) -> list[Entry]:
    size = (line.size_axis or "", line.size or 0, line.rank or 0)
    by = {
        "model": Entry(line.model, value=line.model),
        "method": Entry(line.method, value=line.method),
        "size": Entry(line.size_text, value=f"{size[0]} {size[1]:09} {size[2]:09}" if line.size else ""),
        "weights": Entry(line.quantization, value=line.quantization),
        "settings": Entry(line.variant, value=line.variant),
    }
    return [by[heading.lines[0]] for heading in _identity_headings(comparison)]


def _heading(column: Column) -> Heading:
    rule = column.rule if column.unit == column.rule else f"{column.rule}, {column.unit}"
    return Heading((column.protocol, f"{rule} {ARROWS[column.better]}", column.state), marked=True)


def _parameters(line: Line) -> Entry:
    if line.trained_parameters is None:
        return Entry("0", value=0) if line.is_base else Entry("unknown", muted=True)
    shipped = line.shipped_parameters or line.trained_parameters
    if shipped == line.trained_parameters:
        return Entry(f"{shipped:,}", value=shipped)
    more = "parameters of what ships, of those trained at once"
    return Entry(f"{shipped:,} of {line.trained_parameters:,}", value=shipped, more=more)


def _entry(comparison: Comparison, column: Column, line: Line, decimals: dict[str, int]) -> Entry:
    """Return the entry of one score; a base shows its own score under the first state of each rule."""
    if line.is_base:
        first = next(one for one in comparison.columns if one.sibling("") == column.sibling("") and one.state != "base")
        cell = line.cells.get(column.sibling("base")) if column.state in (first.state, comparison.state) else None
    else:
        cell = line.cells.get(column.key)
    if cell is None:
        return _absent(column, line)
    places = decimals[column.sibling("")]
    text = f"{number(cell.score, places)} ±{number((cell.high - cell.low) / 2, places)}"
    if line.seeds and len(cell.by_seed) < len(line.seeds):
        text += f" ({len(cell.by_seed)}/{len(line.seeds)})"
    return Entry(text, cell.mark, cell.shift, cell.score, _more(comparison, cell, places))


def _absent(column: Column, line: Line) -> Entry:
    if line.is_base:
        return Entry()
    statuses = list(dict.fromkeys(note.status for note in line.notes))
    if statuses and column.state not in line.skipped:
        return Entry(" / ".join(STATUS_WORDS[status] for status in statuses), "failed")
    return Entry("n/a", more=line.skipped.get(column.state, "not scored"), muted=True)


def _more(comparison: Comparison, cell: Cell, places: int) -> str:
    seeds = ", ".join(f"seed {seed}: {number(score, places)}" for seed, score in cell.by_seed.items() if seed != "None")
    p = f"p against the best {cell.p_best:.2g}" if cell.p_best is not None and cell.mark != "best" else ""
    shift = f"p against trained {cell.p_shift:.2g}" if cell.p_shift is not None else ""
    spread = f"{comparison.confidence:.0%} interval {number(cell.low, places)} to {number(cell.high, places)}"
    return "; ".join(part for part in (spread, f"n = {cell.items}", seeds, p, shift) if part)


def _gain(column: Column, line: Line, decimals: dict[str, int]) -> Entry:
    cell = line.cells.get(column.key)
    if cell is None or cell.gain is None or cell.gain_low is None or cell.gain_high is None:
        return Entry()
    places = decimals[column.sibling("")]
    text = f"{number(cell.gain, places, signed=True)} ±{number((cell.gain_high - cell.gain_low) / 2, places)}"
    more = f"interval {number(cell.gain_low, places, signed=True)} to {number(cell.gain_high, places, signed=True)}"
    return Entry(text, value=cell.gain, more=more)


def _any(lines: Iterable[Line], column: Column, count: str) -> bool:
    return any(getattr(line.cells[column.key], count) for line in lines if column.key in line.cells)


def _count_heading(column: Column, count: str) -> Heading:
    words = {"failures": f"no answer found, {column.rule}", "truncated": "cut short"}
    return Heading((words[count], "%", column.state))


def _count(column: Column, count: str, line: Line) -> Entry:
    cell = line.cells.get(column.sibling("base") if line.is_base else column.key)
    if cell is None:
        return Entry()
    share = 100 * getattr(cell, count) / (cell.items * len(cell.by_seed))
    return Entry(number(share, 1), value=share)


def _relative(line: Line) -> Entry:
    sizes = [one.relative_update for one in line.survival.values() if one.relative_update is not None]
    return Entry(number(100 * sizes[0], 2), value=sizes[0]) if sizes else Entry()


def _kept(line: Line, state: str) -> Entry:
    one = line.survival.get(state)
    if one is None:
        return Entry("n/a", more=line.skipped.get(state, ""), muted=True) if state in line.skipped else Entry()
    if one.survival is None:
        return Entry("no update", muted=True)
    exact = ", exact" if one.exact == 1 else ""
    return Entry(number(100 * one.survival, 1) + exact, value=one.survival)


def _decimals(comparison: Comparison) -> dict[str, int]:
    """Return, for each protocol and rule, the decimals that show two digits of the typical interval."""
    widths: dict[str, list[float]] = {}
    for column in comparison.columns:
        cells = [line.cells[column.key] for line in comparison.lines if column.key in line.cells]
        widths.setdefault(column.sibling(""), []).extend((cell.high - cell.low) / 2 for cell in cells)
    return {key: _places(sorted(of)[len(of) // 2]) for key, of in widths.items()}


def _places(width: float) -> int:
    return min(4, max(1, 1 - math.floor(math.log10(width)))) if width > 0 else 1
