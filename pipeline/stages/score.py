"""Scores one evaluation by every rule of its task."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from pipeline.core import provenance, records
from pipeline.core.settings import build
from pipeline.evaluation.score import scores
from pipeline.tasks import rows
from pipeline.tasks.base import Task


def run(settings: dict[str, Any], inputs: dict[str, Path], outputs: dict[str, Path], about: dict[str, Any]) -> None:
    """Write `outputs["record"]` from an evaluation's record and items and the rows of its data."""
    task = build(settings["task"], "task")
    assert isinstance(task, Task)
    evaluation = records.read(inputs["record"], "evaluate")
    result: dict[str, Any] = {"task": task.name, "generation_id": evaluation.result["generation_id"]}
    if evaluation.status == "ok":
        items = defaultdict(list)
        for item in rows.read(inputs["items"], evaluation.result["items_sha256"]):
            items[item["state"]].append(item)
        assert task.generation is not None
        references = {row["id"]: task.reference(row) for row in rows.split(inputs["data"], task.generation.split)}
        result |= {
            "items": [item["item"] for item in next(iter(items.values()), [])],
            "rules": scores(task.scoring, items, references),
        }
    else:
        result["reason"] = evaluation.result["reason"]
    about = provenance.about(about.pop("started"), **about)
    records.write(
        outputs["record"], stage="score", settings=settings, result=result, about=about, status=evaluation.status
    )
