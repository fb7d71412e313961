"""Puts tables, figures, sample replies and provenance on one page."""

from pathlib import Path
from typing import Any

from pipeline.aggregation.files import read_comparison, write_report
from pipeline.aggregation.sweep import load


def run(settings: dict[str, Any], inputs: dict[str, Path], outputs: dict[str, Path], about: dict[str, Any]) -> None:
    """Write the page `outputs["html"]` of the comparison `inputs["record"]`."""
    sweep, comparison = load(inputs["sweep"]), read_comparison(inputs["record"])
    write_report(outputs["html"], sweep, comparison, inputs["figures"])
    print(f"report: {outputs['html']}", flush=True)
