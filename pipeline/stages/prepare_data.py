"""Makes one task's data folder: its splits as jsonl, and how far test and dev overlap with train."""

import json
from pathlib import Path
from typing import Any

from pipeline.core import provenance, records
from pipeline.core.settings import SettingsError, build
from pipeline.tasks.base import SPLITS, DataSource, Row
from pipeline.tasks.overlap import overlaps


def run(settings: dict[str, Any], inputs: dict[str, Path], outputs: dict[str, Path], about: dict[str, Any]) -> None:
    """Write {train,dev,test}.jsonl and the manifest `outputs["record"]` beside them.

    `inputs` are files that the source reads itself; they are named so that the workflow sees them change.
    """
    name, data = settings["name"], build(settings["data"], "data")
    assert isinstance(data, DataSource)
    splits = {split: data.rows(split) for split in SPLITS}
    overlap = {split: _overlap(name, data, splits["train"], split, splits[split]) for split in ("dev", "test")}
    folder = outputs["record"].parent
    result = {
        "name": name,
        "source": data.source,
        "license": data.license,
        "splits": {split: _write(folder / f"{split}.jsonl", rows) for split, rows in splits.items()},
        "overlap": overlap,
    }
    about = provenance.about(about.pop("started"), **about)
    records.write(outputs["record"], stage="prepare_data", settings=settings, result=result, about=about)
    print(", ".join(f"{len(rows)} rows of {split}" for split, rows in splits.items()), flush=True)


def _overlap(name: str, data: DataSource, train: list[Row], split: str, rows: list[Row]) -> dict[str, list[str]]:
    """Return the ids of the rows that say the same as a train row, equal or near; refuse them unless told otherwise."""
    found = overlaps([row[data.compared] for row in train], [row[data.compared] for row in rows])
    ids = {how: [rows[index]["id"] for index in indices] for how, indices in found.items()}
    same = ids["equal"] + ids["near"]
    if same and data.overlap == "refuse":
        raise SettingsError(
            f"{name}: {len(same)} of {len(rows)} {split} rows are in train as well ({len(ids['equal'])} equal, "
            f"{len(ids['near'])} nearly so): {', '.join(same[:5])}{', …' if len(same) > 5 else ''}. Remove them from "  # noqa: PLR2004
            f"train, or set task.{name}.data.overlap=record to keep them and have them counted."
        )
    return ids


def _write(path: Path, rows: list[Row]) -> dict[str, Any]:
    text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    records.write_atomic(path, text.encode())
    return {"file": path.name, "rows": len(rows), "sha256": records.file_sha256(path)}
