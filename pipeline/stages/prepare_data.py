"""Makes one task's data folder: its splits as jsonl, and how far test and dev overlap with train."""

from pathlib import Path
from typing import Any

from pipeline.core import provenance, records
from pipeline.core.settings import SettingsError, build
from pipeline.tasks import rows
from pipeline.tasks.base import SPLITS, DataSource, Row
from pipeline.tasks.overlap import overlaps

NAMED = 5
"""Rows that a message names."""


def run(settings: dict[str, Any], inputs: dict[str, Path], outputs: dict[str, Path], about: dict[str, Any]) -> None:
    """Write {train,dev,test}.jsonl and the manifest `outputs["record"]` beside them."""
    name, data = settings["name"], build(settings["data"], "data")
    assert isinstance(data, DataSource)
    _unchanged(settings.get("files", {}))
    splits = {split: data.rows(split) for split in SPLITS}
    overlap = {split: _overlap(name, data, splits["train"], split, splits[split]) for split in ("dev", "test")}
    files = {split: outputs["record"].parent / f"{split}.jsonl" for split in SPLITS}
    result = {
        "name": name,
        "source": data.source,
        "license": data.license,
        "splits": {
            split: {"file": files[split].name, "rows": len(found), "sha256": rows.write(files[split], found)}
            for split, found in splits.items()
        },
        "overlap": overlap,
    }
    made = records.sizes(outputs["record"], files.values())
    about = provenance.about(about.pop("started"), files=made, **about)
    records.write(outputs["record"], stage="prepare_data", settings=settings, result=result, about=about)
    print(", ".join(f"{len(found)} rows of {split}" for split, found in splits.items()), flush=True)


def _unchanged(files: dict[str, str]) -> None:
    """Refuse local files that are not those of the plan: the name of the data's folder stands for their contents."""
    for path, planned in files.items():
        if (got := records.file_sha256(Path(path))) != planned:
            raise SettingsError(
                f"{path}: has changed since the plan: SHA-256 {got[:16]}…, planned {planned[:16]}…. Start Snakemake "
                "again."
            )


def _overlap(
    name: str, data: DataSource, train: list[Row], split: str, checked: list[Row]
) -> dict[str, dict[str, str]]:
    """Return the rows that say the same as a train row, equal or near: id -> id in train; refuse them unless told."""
    found = overlaps([row[data.compared] for row in train], [row[data.compared] for row in checked])
    ids = {how: {checked[i]["id"]: train[like]["id"] for i, like in pairs.items()} for how, pairs in found.items()}
    counted = f"{len(ids['equal'])} equal, {len(ids['near'])} nearly so"
    if same := [f"{one} is {like}" for pairs in ids.values() for one, like in pairs.items()]:
        said = f"{len(same)} of {len(checked)} {split} rows are in train as well ({counted}): {', '.join(same[:NAMED])}"
        said += ", …" if len(same) > NAMED else ""
        if data.overlap == "refuse":
            raise SettingsError(
                f"{name}: {said}. Remove them from train, or set task.{name}.data.overlap=record to keep them and have "
                "them counted."
            )
        print(said, flush=True)
    return ids
