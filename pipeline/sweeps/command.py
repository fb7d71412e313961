"""Commands that read results/ alone: runs, explain, diff, gc. Neither Hydra nor torch is loaded."""

import argparse
import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.core import records
from pipeline.core.records import Record, RecordError
from pipeline.core.results import find_run, plans
from pipeline.core.settings import SettingsError, canonical
from pipeline.sweeps import closure
from pipeline.sweeps.nodes import flat

KINDS = ("runs", "bases", "models", "data")
RECORDS = ("train.json", "merge.json", "evaluate/*.json", "score/*.json")
WIDEST = 60
OLD_SECONDS = 3600


def runs(argv: list[str]) -> int:
    """List the runs: name, status, steps, final loss, seconds, and the tables that they are in."""
    results = _parser("runs", runs).parse_args(argv).results
    tables = _tables(results)
    rows = [("run", "status", "steps", "loss", "seconds", "tables")]
    for folder in _folders(results, "runs"):
        rows.append((folder.name, *_outcome(folder), " ".join(_with(folder, tables)) or "none"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def explain(argv: list[str]) -> int:
    """Say what a run is made of: its settings, records, the code that made them, and whether that has changed."""
    parser = _parser("explain", explain)
    parser.add_argument("run", help="the run's folder, or the beginning of its name")
    given = parser.parse_args(argv)
    folder = find_run(given.results, given.run)
    print(f"{folder}\n")
    for path in (path for pattern in RECORDS for path in sorted(folder.glob(pattern))):
        _explain_record(path.relative_to(folder), records.read(path))
    tables = _with(folder, _tables(given.results))
    print(f"tables: {', '.join(tables) or 'none'}\n\nsettings of the fine-tune:")
    for key, value in sorted(flat(records.read(folder / "train.json").settings).items()):
        print(f"  {key} = {json.dumps(value)}")
    return 0


def diff(argv: list[str]) -> int:
    """Say in what two runs differ: settings first, then what came out."""
    parser = _parser("diff", diff)
    parser.add_argument("a")
    parser.add_argument("b")
    given = parser.parse_args(argv)
    one, other = (records.read(find_run(given.results, name) / "train.json") for name in (given.a, given.b))
    for title, part in (("settings", "settings"), ("result", "result"), ("about", "about")):
        old, new = flat(getattr(one, part)), flat(getattr(other, part))
        keys = sorted(key for key in old | new if old.get(key) != new.get(key))
        print(f"{title}: {'the same' if not keys else ''}")
        for key in keys:
            print(f"  {key}: {_short(old.get(key))} | {_short(new.get(key))}")
    return 0


def gc(argv: list[str]) -> int:
    """List what no table of results/tables/ refers to; with --delete, remove it."""
    parser = _parser("gc", gc)
    parser.add_argument("--delete", action="store_true", help="remove what is listed")
    given = parser.parse_args(argv)
    used = {given.results / path for paths in _tables(given.results).values() for path in paths}
    if not used:
        raise SettingsError(f"{given.results}/tables: there is no table, so everything would go. Nothing was removed.")
    unused = [*_unused(given.results, used), *_unfinished(given.results)]
    for path in unused:
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        print(f"{sum(file.stat().st_size for file in files) / 1e6:10.3f} MB  {path}")
        if given.delete:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(f"{len(unused)} {'removed' if given.delete else 'unused; --delete removes them'}")
    return 0


def _unused(results: Path, used: set[Path]) -> list[Path]:
    """Return the folders without a used record, and in the others the evaluations and scores that are not used."""
    homes = {results / "/".join(path.relative_to(results).parts[:2]) for path in used}
    unused = []
    for folder in (folder for kind in KINDS for folder in _folders(results, kind)):
        if folder not in homes:
            unused.append(folder)
            continue
        unused += [file for file in sorted(folder.glob("[es]*/*.json*")) if file.with_suffix(".json") not in used]
    return unused


def _unfinished(results: Path) -> list[Path]:
    """Return what killed writers have left, once it is old enough to be no living one's."""
    return [path for path in sorted(results.rglob("*.unfinished")) if time.time() - path.stat().st_mtime > OLD_SECONDS]


def _parser(name: str, function: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m pipeline {name}", description=function.__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"))
    return parser


def _folders(results: Path, kind: str) -> list[Path]:
    return sorted(path for path in (results / kind).glob("*") if path.is_dir())


def _outcome(folder: Path) -> tuple[str, str, str, str]:
    """Return status, steps, final loss and seconds of a run."""
    try:
        record = records.read(folder / "train.json", "finetune")
    except RecordError:
        return ("unfinished", "", "", "")
    loss = record.result.get("final_loss")
    steps = record.result.get("steps", "")
    return record.status, str(steps), f"{loss:.4f}" if loss else "", f"{record.about.get('seconds', 0):.1f}"


def _explain_record(path: Path, record: Record) -> None:
    about = record.about
    now = closure.code(record.stage, canonical(record.settings))
    state = "as it is now" if about.get("code") == now else f"changed since: now {now}"
    print(f"{path}: {record.status}, {about.get('time')}, {about.get('seconds')} s on {about.get('host')}")
    print(f"  {about.get('code')} ({state}), {about.get('upstream')}, commit {about.get('commit')}")


def _tables(results: Path) -> dict[str, set[str]]:
    """Return table -> the paths of all records that its plan names."""
    return {name: set(_paths(records.read(plan, "plan").result)) for name, plan in plans(results).items()}


def _with(folder: Path, tables: dict[str, set[str]]) -> list[str]:
    """Return the tables that a run is in."""
    return [name for name, paths in tables.items() if f"runs/{folder.name}/train.json" in paths]


def _paths(node: object) -> Iterable[str]:
    """Yield every `path` at any depth but in settings, where it is a path of the user's own."""
    if isinstance(node, dict):
        yield from ([node["path"]] if isinstance(node.get("path"), str) else [])
        node = [value for key, value in node.items() if key != "settings"]
    if isinstance(node, list):
        for value in node:
            yield from _paths(value)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 3]}..."
