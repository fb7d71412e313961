"""The report: one HTML file that needs no network, no other file and no script to be read."""

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipeline.aggregation import insight, layout, samples, style, wording
from pipeline.aggregation.comparison import Column, Comparison
from pipeline.aggregation.layout import Entry
from pipeline.aggregation.origins import origins
from pipeline.aggregation.sweep import Sweep

TEMPLATE, CSS, JS = (Path(__file__).with_suffix(suffix) for suffix in (".html", ".css", ".js"))


@dataclass(frozen=True)
class Drawn:
    """One figure of the page."""

    name: str
    title: str
    caption: str
    svg: Markup


CAPTIONS = {
    "score-vs-parameters": (
        "Score against trainable parameters",
        "Bars are intervals over items and seeds, small dots the seeds, the dashed line the base alone. Parameters are "
        "those of what ships; a run that holds several ranks at once trained all of them together. Points are moved "
        "apart a little where methods have the same count.",
    ),
    "states": (
        "What is shipped",
        "The target's score as trained (filled) and in each merged state (hollow), a row for each line of the table.",
    ),
    "rank-curve": (
        "One run for all ranks, and a run for each rank",
        "The band and the line across all ranks come from single runs scored at each rank; the other methods were "
        "trained at each rank apart.",
    ),
    "retention-vs-gain": (
        "What was gained, what was forgotten",
        "Each point is a line of the table; its size grows with rank or block size. The dashed line is no forgetting.",
    ),
    "training-curves": (
        "Training loss",
        "Mean of the seeds, the band spans them; paler is smaller, dashed is quantized, a cross is where a run failed. "
        "Losses of methods that add a penalty of their own are not comparable with the others'.",
    ),
    "layers": (
        "What storing each layer cost",
        "Relative error of each quantized weight, by depth and role; kurtosis and outliers stand in layers.csv. Asked "
        "for by python -m pipeline sensitivity, what quantizing this layer alone adds to the loss, and with the "
        "largest 0.1 % of its weights kept in 16 bits (hollow).",
    ),
}


def render(sweep: Sweep, comparison: Comparison, figures: dict[str, bytes]) -> str:
    """Return the page. `figures` are SVG files by name."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.globals |= {"marks": wording.MARKS, "classes": _classes, "css": _inline(CSS), "js": _inline(JS)}
    environment.filters["number"] = wording.number
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        comparison=comparison,
        head=wording.head(comparison),
        legend=wording.legend(comparison),
        lacking=wording.lacking(comparison),
        noise=wording.noise(comparison),
        notes=wording.notes(comparison),
        facts=_facts(comparison),
        main=layout.main(comparison),
        details=layout.details(comparison),
        survival=layout.survival(comparison),
        pairs=_pairs(comparison),
        figures=_figures(figures),
        samples=samples.choose(sweep, comparison),
        origins=origins(sweep),
    )


def _inline(path: Path) -> Markup:
    return Markup(path.read_text(encoding="utf-8"))  # noqa: S704  (our own file)


def _figures(files: dict[str, bytes]) -> list[Drawn]:
    return [
        Drawn(name, title, caption, Markup(style.inline(files[f"{name}.svg"], name)))  # noqa: S704  (drawn by us)
        for name, (title, caption) in (CAPTIONS | insight.CAPTIONS).items()
        if f"{name}.svg" in files
    ]


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the numbers at the top of the page."""
    runs = [line for line in comparison.lines if not line.is_base]
    target = comparison.target
    scored = [line for line in runs if target and target.key in line.cells]
    facts = [
        (f"{len({line.adapter for line in runs})}", "methods"),
        (f"{len({line.quantization for line in comparison.lines})}", "weight formats"),
        (f"{len({folder for line in runs for folder in line.folders})}", "runs"),
        (f"{len(comparison.states)}", "states scored"),
    ]
    if target and scored:
        counts = dict.fromkeys(f"{line.cells[target.key].items}" for line in scored)
        facts.append((" or ".join(counts), "target items"))
    failed = {note.where for line in runs for note in line.notes if note.status != "missing"}
    return [*facts, (f"{len(failed)}", "diverged or out of memory"), (f"{len(comparison.missing)}", "records missing")]


def _classes(entry: Entry) -> str:
    """Return the CSS classes of an entry."""
    return " ".join(word for word in (entry.mark, entry.shift, "muted" if entry.muted else "") if word)


@dataclass(frozen=True)
class Pairs:
    """Who differs from whom in the target column: (text, "ahead", "behind" or "within" noise, more) by row, column."""

    column: Column
    names: list[str]
    cells: list[list[tuple[str, str, str] | None]]


def _pairs(comparison: Comparison) -> Pairs | None:
    column = comparison.target
    lines = [line for line in comparison.lines if line.key in comparison.p_pairs]
    if column is None or not lines:
        return None
    cells: list[list[tuple[str, str, str] | None]] = []
    for row in lines:
        cells.append([])
        for other in lines:
            p = comparison.p_pairs[row.key].get(other.key)
            difference = row.cells[column.key].score - other.cells[column.key].score
            more = f"{row.name} minus {other.name}: p = {p:.2g}" if p is not None else ""
            apart = "ahead" if difference * column.sign > 0 else "behind"
            standing = apart if (p or 0) < 1 - comparison.confidence else "within"
            said = (wording.number(difference, 1, signed=True), standing, more)
            cells[-1].append(None if p is None else said)
    return Pairs(column, [line.name for line in lines], cells)
