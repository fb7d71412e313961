"""Scores what one subject replied to all its tasks, each by every rule of the task."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from pipeline.core import provenance, records
from pipeline.core.settings import build
from pipeline.evaluation.score import scores
from pipeline.tasks import rows
from pipeline.tasks.base import Task


def run(settings: dict[str, Any], inputs: dict[str, Path], outputs: dict[str, Path], about: dict[str, Any]) -> None:
    """Write `outputs["record"]`, for each task from its evaluation's record and items and the rows of its data.

    `inputs` has `evaluate.<task>`, with the items beside it, and `data.<task>`.
    """
    tasks = {}
    for node in settings["tasks"]:
        task = build(node, "task")
        assert isinstance(task, Task)
        tasks[task.name] = _scored(task, inputs[f"evaluate.{task.name}"], inputs[f"data.{task.name}"])
    about = provenance.about(about.pop("started"), **about)
    records.write(outputs["record"], stage="score", settings=settings, result={"tasks": tasks}, about=about)


def _scored(task: Task, record: Path, data: Path) -> dict[str, Any]:
    """Return the scores of one task's evaluation; of one that failed, its status and reason, and what it has."""
    evaluation = records.read(record, "evaluate")
    result: dict[str, Any] = {"status": evaluation.status, "generation_id": evaluation.result["generation_id"]}
    if evaluation.status != "ok":
        result["reason"] = evaluation.result["reason"]
    items = defaultdict(list)
    for item in rows.read(record.with_suffix(".jsonl"), evaluation.result["items_sha256"]):
        items[item["state"]].append(item)
    assert task.generation is not None
    references = {row["id"]: task.reference(row) for row in rows.split(data, task.generation.split)}
    return result | {
        "items": [item["item"] for item in next(iter(items.values()), [])],
        "rules": scores(task.scoring, items, references),
    }
