"""Makes one task's data folder: its splits as jsonl, and how far test and dev overlap with train."""

from pathlib import Path
from typing import Any

from pipeline.core import provenance, records
from pipeline.core.settings import SettingsError, build
from pipeline.tasks import rows
from pipeline.tasks.base import SPLITS, DataSource, Row
from pipeline.tasks.overlap import overlaps


def run(settings: dict[str, Any], inputs: dict[str, Path], outputs: dict[str, Path], about: dict[str, Any]) -> None:
    """Write {train,dev,test}.jsonl and the manifest `outputs["record"]` beside them."""
    name, data = settings["name"], build(settings["data"], "data")
    assert isinstance(data, DataSource)
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


def _overlap(name: str, data: DataSource, train: list[Row], split: str, checked: list[Row]) -> dict[str, list[str]]:
    """Return the ids of the rows that say the same as a train row, equal or near; refuse them unless told otherwise."""
    found = overlaps([row[data.compared] for row in train], [row[data.compared] for row in checked])
    ids = {how: [checked[index]["id"] for index in indices] for how, indices in found.items()}
    same = ids["equal"] + ids["near"]
    if same and data.overlap == "refuse":
        raise SettingsError(
            f"{name}: {len(same)} of {len(checked)} {split} rows are in train as well ({len(ids['equal'])} equal, "
            f"{len(ids['near'])} nearly so): {', '.join(same[:5])}{', …' if len(same) > 5 else ''}. Remove them from "  # noqa: PLR2004
            f"train, or set task.{name}.data.overlap=record to keep them and have them counted."
        )
    return ids
