"""Writes down what a sweep's table must hold."""

import json
from pathlib import Path
from typing import Any

from pipeline.core import provenance, records
from pipeline.core.records import RecordError
from pipeline.core.settings import digest


def run(settings: dict[str, Any], inputs: dict[str, Path], outputs: dict[str, Path], about: dict[str, Any]) -> None:
    """Write the record `outputs["sweep"]`: runs, bases and data, and what each of their records must say."""
    expected = json.loads(inputs["expected"].read_bytes())
    if digest(expected, 16) != settings["expected"]:
        raise RecordError(f"{inputs['expected']}: is damaged. Delete it and start the workflow again.")
    about = provenance.about(about.pop("started"), **about)
    records.write(outputs["sweep"], stage="plan", settings=settings, result=expected, about=about)
