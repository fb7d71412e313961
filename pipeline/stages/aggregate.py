"""Holds every record of a sweep against its plan and makes the tables."""

from pathlib import Path
from typing import Any

from pipeline.aggregation import tables, wording
from pipeline.aggregation.compare import compare
from pipeline.aggregation.files import write_tables
from pipeline.aggregation.rows import collect
from pipeline.aggregation.sweep import load
from pipeline.core.records import RecordError
from pipeline.tracking.journal import tracked


def run(settings: dict[str, Any], inputs: dict[str, Path], outputs: dict[str, Path], about: dict[str, Any]) -> None:
    """Write record, rows and tables of the plan `inputs["sweep"]`, which holds the settings of the report as well.

    Raises:
        RecordError: a record is missing, or was not made as the plan says.
    """
    sweep = load(inputs["sweep"])
    evidence = collect(sweep)
    comparison = compare(sweep, evidence)
    if comparison.missing:
        told = "\n  ".join([f"{sweep.name}: {wording.lacking(comparison)}:", *comparison.missing])
        raise RecordError(
            f"{told}\nRun the workflow again, or make a partial table: python -m pipeline table --partial"
        )
    write_tables(outputs, sweep, evidence, comparison)
    with tracked(
        outputs["record"].parent, "table", settings | {key: about.get(key) for key in ("code", "upstream")}
    ) as tracker:
        tracker.end("ok", {}, tuple(outputs.values()))
    print(tables.text(comparison), flush=True)
