"""Draws the figures of a comparison."""

from pathlib import Path
from typing import Any

from pipeline.aggregation.files import read_comparison, write_figures
from pipeline.aggregation.sweep import load


def run(settings: dict[str, Any], inputs: dict[str, Path], outputs: dict[str, Path], about: dict[str, Any]) -> None:
    """Draw the comparison `inputs["record"]`, and the training curves of the plan's runs, into `outputs["folder"]`."""
    write_figures(outputs["folder"], load(inputs["sweep"]), read_comparison(inputs["record"]))
