"""`python -m pipeline table RESULTS`: tables, figures and reports from records alone, without workflow and torch."""

import argparse
from pathlib import Path

from pipeline.aggregation import tables, wording
from pipeline.aggregation.compare import compare
from pipeline.aggregation.files import NAMES, PARTIAL, write_figures, write_report, write_tables
from pipeline.aggregation.rows import collect
from pipeline.aggregation.sweep import load
from pipeline.core.records import RecordError
from pipeline.core.settings import SettingsError

INCOMPLETE = 3
"""Exit status where records are missing and --partial was not given."""


def main(argv: list[str]) -> int:
    """Rebuild the tables of a results folder; return 0, or 3 where one is incomplete.

    An incomplete table goes to `partial/` beside the complete one, so that neither can be taken for the other.
    """
    given = _parser().parse_args(argv)
    complete, failed = [], []
    for plan in _plans(given.results, given.sweep):
        try:
            complete.append(_rebuild(plan))
        except (RecordError, SettingsError) as error:  # the other sweeps of the folder are still rebuilt
            failed.append(f"{plan.parent.name}: {error}")
    if failed:
        raise RecordError("\n".join(failed))
    return 0 if all(complete) or given.partial else INCOMPLETE


def _rebuild(plan: Path) -> bool:
    """Rebuild one sweep's files, say what came out, and return whether nothing is missing."""
    sweep = load(plan)
    evidence = collect(sweep)
    comparison = compare(sweep, evidence)
    folder = plan.parent / PARTIAL if comparison.missing else plan.parent
    write_tables({name: folder / file for name, file in NAMES.items()}, sweep, evidence, comparison)
    write_figures(folder / "figures", sweep, comparison)
    write_report(folder / "report.html", sweep, comparison, folder / "figures")
    print(f"{tables.text(comparison)}\n\nReport: {folder / 'report.html'}")
    if comparison.missing:
        print(f"\n{wording.lacking(comparison)}:", *comparison.missing, sep="\n  ")
    return not comparison.missing


def _plans(results: Path, name: str | None) -> list[Path]:
    """Return the plans of the sweeps that are asked for.

    Raises:
        RecordError: there is none.
    """
    found = sorted(results.glob("tables/*/sweep.json"))
    known = ", ".join(path.parent.name for path in found) or "none"
    chosen = [path for path in found if name in (None, path.parent.name)]
    if not chosen:
        what = f"no sweep {name!r}" if name else "no planned sweep"
        raise RecordError(
            f"{results}: holds {what} under tables/ (found: {known}). Give the results folder of a workflow."
        )
    return chosen


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline table", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="a results folder")
    parser.add_argument("--sweep", help="only this sweep (a folder below results/tables)")
    parser.add_argument("--partial", action="store_true", help="missing records are expected: exit with 0")
    return parser
