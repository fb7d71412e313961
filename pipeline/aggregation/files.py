"""Writes what was made, each file whole or not at all; the workflow and `python -m pipeline table` share it."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline.aggregation import figures, insight, tables
from pipeline.aggregation.comparison import Comparison
from pipeline.aggregation.curves import read_curves
from pipeline.aggregation.layers import layers_csv, read_layers
from pipeline.aggregation.report import render
from pipeline.aggregation.rows import Evidence, to_csv
from pipeline.aggregation.sweep import Sweep
from pipeline.core import records

NAMES = {
    "rows": "rows.csv", "layers": "layers.csv", "tex": "table.tex", "csv": "table.csv", "md": "table.md",
    "txt": "table.txt", "record": "aggregate.json",
}  # fmt: skip
PARTIAL = "partial"
"""The folder of a table that lacks records, beside the complete one's files."""


def write_tables(outputs: Mapping[str, Path], sweep: Sweep, evidence: list[Evidence], comparison: Comparison) -> None:
    """Write the tables to the paths named as in `NAMES`, the record of the comparison last.

    The record says nothing of when or where, so that the same records give the same bytes anywhere. What a partial
    table has left beside a complete one goes.
    """
    records.write_atomic(outputs["rows"], to_csv(sweep, evidence))
    records.write_atomic(outputs["layers"], layers_csv(read_layers(sweep)))
    records.write_atomic(outputs["tex"], tables.latex(comparison).encode())
    records.write_atomic(outputs["csv"], tables.table_csv(comparison))
    records.write_atomic(outputs["md"], tables.markdown(comparison).encode())
    records.write_atomic(outputs["txt"], tables.text(comparison).encode())
    settings = {"sweep": sweep.name, "report": sweep.report.node()}
    records.write(
        outputs["record"], stage="aggregate", settings=settings, result=comparison.model_dump(mode="json"), about={}
    )
    if not comparison.missing:
        shutil.rmtree(outputs["record"].parent / PARTIAL, ignore_errors=True)


def read_comparison(path: Path) -> Comparison:
    """Read the record that `write_tables` wrote.

    Raises:
        RecordError: it is missing or damaged.
    """
    return Comparison.model_validate(records.read(path, "aggregate").result)


def write_figures(folder: Path, sweep: Sweep, comparison: Comparison) -> None:
    """Draw every figure into `folder`, which afterwards holds nothing else."""
    drawn = figures.draw(comparison, read_curves(sweep), read_layers(sweep))
    drawn |= insight.draw(comparison, insight.read(sweep))
    with records.writing(folder) as unfinished:
        unfinished.mkdir()
        for name, data in drawn.items():
            (unfinished / name).write_bytes(data)


def made(folder: Path) -> list[Path]:
    """Return all files of a finished table in `folder`."""
    named = [folder / name for name in (*NAMES.values(), "report.html")]
    return [*named, *sorted((folder / "figures").glob("*.svg"))]


def write_report(path: Path, sweep: Sweep, comparison: Comparison, drawn: Path) -> None:
    """Write the page, with the figures of the folder `drawn` in it."""
    files = {file.name: file.read_bytes() for file in sorted(drawn.glob("*.svg"))}
    records.write_atomic(path, render(sweep, comparison, files).encode())
