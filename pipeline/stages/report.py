"""Puts tables, figures, sample replies and provenance on one page, and notes what the table now consists of."""

from pathlib import Path
from typing import Any

from pipeline.aggregation.files import made, read_comparison, write_report
from pipeline.aggregation.sweep import load
from pipeline.core import provenance, records


def run(settings: dict[str, Any], inputs: dict[str, Path], outputs: dict[str, Path], about: dict[str, Any]) -> None:
    """Write the page `outputs["html"]` of the comparison `inputs["record"]`, and the table's record beside it."""
    sweep, comparison = load(inputs["sweep"]), read_comparison(inputs["record"])
    write_report(outputs["html"], sweep, comparison, inputs["figures"])
    files = made(outputs["html"].parent)
    result = {"files": {path.name: records.file_sha256(path) for path in files}}
    about = provenance.about(about.pop("started"), files=records.sizes(outputs["record"], files), **about)
    records.write(outputs["record"], stage="report", settings=settings, result=result, about=about)
    print(f"report: {outputs['html']}", flush=True)
