"""Where the numbers come from: settings, protocols, data, and where, when and with what the runs were made."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.aggregation.sweep import Expected, Sweep, leaves
from pipeline.core.records import Record, RecordError
from pipeline.core.settings import canonical

Table = list[list[str]]
"""Rows of text, the first one the headings."""


@dataclass(frozen=True)
class Origins:
    """Tables of the report's last section, by title."""

    tables: dict[str, Table]


def origins(sweep: Sweep) -> Origins:
    """Gather the tables; a record that is missing leaves its row out, for it is named among the missing."""
    trained = {run.name: record for run in sweep.runs if (record := _fetch(sweep, run.records["finetune"], "finetune"))}
    tables = {
        "Protocols": _protocols(sweep),
        "Data": _data(sweep),
        "Bases": _bases(sweep),
        "Made by": _made_by(trained.values()),
        "Settings that all runs share": _shared(sweep),
        "Settings that differ, by run": _differing(sweep),
        "Runs": _runs(sweep, trained),
    }
    return Origins({title: table for title, table in tables.items() if len(table) > 1})


def _fetch(sweep: Sweep, expected: Expected, stage: str) -> Record | None:
    try:
        return sweep.fetch(expected, stage)
    except RecordError:
        return None


def _protocols(sweep: Sweep) -> Table:
    """Return every field of each generation, as the evaluation of a base or a run recorded it."""
    fields: dict[str, dict[str, Any]] = {}
    for task in sweep.tasks:
        entries = (one.tasks[task.name] for one in (*sweep.bases, *sweep.runs))
        found = (record for entry in entries if (record := _fetch(sweep, entry, "evaluate")) and record.status == "ok")
        record = next(found, None)
        if record is not None:
            fields[task.generation_id] = dict(leaves(record.result["generation"]))
    names = list(dict.fromkeys(name for of in fields.values() for name in of))
    return [["field", *fields]] + [[name, *(_said(of.get(name)) for of in fields.values())] for name in names]


def _data(sweep: Sweep) -> Table:
    table = [["task", "source", "license", "rows", "overlap with train", "SHA-256 of test"]]
    for task, expected in sweep.data.items():
        record = _fetch(sweep, expected, "prepare_data")
        if record is not None:
            made = record.result
            rows = ", ".join(f"{name} {split['rows']:,}" for name, split in made["splits"].items())
            sha256 = made["splits"].get("test", {}).get("sha256", "")[:16]
            table.append([task, _said(made["source"]), _said(made["license"]), rows, _overlap(made["overlap"]), sha256])
    return table


def _overlap(found: dict[str, dict[str, dict[str, str]]]) -> str:
    """Return such as `test: 0 equal, 2 near`."""
    counts = (f"{split}: " + ", ".join(f"{len(ids)} {how}" for how, ids in of.items()) for split, of in found.items())
    return "; ".join(counts)


def _bases(sweep: Sweep) -> Table:
    table = [["base", "format", "bits a parameter", "mean relative error of its layers"]]
    for base in sweep.bases:
        record = _fetch(sweep, base.records["quantize_base"], "quantize_base")
        if record is not None:
            errors = [row["relative_error"] for row in record.result["layers"] if row["relative_error"] is not None]
            mean = f"{sum(errors) / len(errors):.4f}" if errors else ""
            table.append([base.name, record.result["format"], f"{record.result['bits_per_parameter']:.4f}", mean])
    return table


def _made_by(records: Iterable[Record]) -> Table:
    """Return the distinct values of each fact about the fine-tunes, most frequent first."""
    facts: dict[str, Counter[str]] = {}
    times, seconds = [], 0.0
    for record in records:
        times.append(str(record.about.get("time", "")))
        seconds += record.about.get("seconds", 0.0)
        for fact in ("commit", "device", "machine", "host"):
            facts.setdefault(fact, Counter())[_said(record.about.get(fact))] += 1
        for package, version in record.about.get("versions", {}).items():
            facts.setdefault(package, Counter())[version] += 1
    table = [["fact of the fine-tunes", "value (runs)"]]
    if times:
        table += [["first started", min(times)], ["last started", max(times)], ["seconds, all runs", f"{seconds:,.0f}"]]
    return table + [[fact, ", ".join(f"{v} ({n})" for v, n in of.most_common())] for fact, of in facts.items()]


def _settings(sweep: Sweep) -> dict[str, dict[str, str]]:
    return {run.name: {key: _said(value) for key, value in leaves(run.settings)} for run in sweep.runs}


def _shared(sweep: Sweep) -> Table:
    settings = _settings(sweep)
    same = _same(settings)
    return [["setting", "value"]] + [
        [key, value] for key, value in next(iter(settings.values()), {}).items() if key in same
    ]


def _differing(sweep: Sweep) -> Table:
    settings = _settings(sweep)
    same = _same(settings)
    keys = sorted({key for of in settings.values() for key in of} - same)
    return [["run", *keys]] + [[name, *(of.get(key, "") for key in keys)] for name, of in settings.items()]


def _same(settings: dict[str, dict[str, str]]) -> set[str]:
    first = next(iter(settings.values()), {})
    return {key for key, value in first.items() if all(of.get(key) == value for of in settings.values())}


def _runs(sweep: Sweep, trained: dict[str, Record]) -> Table:
    table = [["run", "status", "final loss", "seconds", "commit", "code", "folder", "W&B run"]]
    for run in sweep.runs:
        record = trained.get(run.name)
        if record is None:
            table.append([run.name, "missing", "", "", "", "", run.folder, ""])
            continue
        loss = record.result.get("final_loss")
        about = [_said(record.about.get(key)) for key in ("seconds", "commit", "code")]
        tracked = record.about.get("tracker")
        about += [run.folder, f"{tracked['project']}/{tracked['id']}" if tracked else ""]
        table.append([run.name, record.status, "" if loss is None else f"{loss:.4f}", *about])
    return table if any(row[-1] for row in table[1:]) else [row[:-1] for row in table]


def _said(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else canonical(value)
