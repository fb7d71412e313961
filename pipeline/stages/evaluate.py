"""Asks one base or one fine-tune the questions of one task, in every wanted state; the base is loaded once."""

from pathlib import Path
from typing import Any

import torch

from pipeline.adapters import files
from pipeline.adapters.base import AdapterSettings
from pipeline.core import provenance, records
from pipeline.core.machine import ready
from pipeline.core.records import Record
from pipeline.core.settings import SettingsError, build
from pipeline.evaluation.states import Items, Subject, evaluate
from pipeline.models.adapt import adapt
from pipeline.models.load import load_base
from pipeline.models.states import Label, labels
from pipeline.tasks import rows
from pipeline.tasks.base import SHOTS, Row, Task
from pipeline.tasks.generation import Prompted


def run(settings: dict[str, Any], inputs: dict[str, Path], outputs: dict[str, Path], about: dict[str, Any]) -> None:
    """Write `outputs["record"]` and, one row an item, `outputs["items"]`; what has failed before is passed on."""
    task = build(settings["task"], "task")
    assert isinstance(task, Task)
    assert task.generation is not None
    device = ready(settings["hardware"]["device"], settings["hardware"]["threads"])
    made = {key: records.read(inputs[key], stage) for key, stage in MADE.items() if key in inputs}
    status, items, result = _failed(made) or _evaluated(settings, inputs, task, made, str(device))
    labelled = ({"state": state} | item for state, found in items.items() for item in found)
    names = {"task": task.name, "generation_id": task.generation.id}
    result = names | {"items_sha256": rows.write(outputs["items"], labelled)} | result
    about |= {"device": provenance.device_name(str(device)), "costs": result.pop("costs", {})}
    about |= {"files": records.sizes(outputs["record"], [outputs["items"]])}
    about = provenance.about(about.pop("started"), **about)
    records.write(outputs["record"], stage="evaluate", settings=settings, result=result, about=about, status=status)
    counted = {fact: len(names) for fact in ("too_long", "cut") if (names := result.get(fact))}
    told = "".join(f"; {count} prompts {fact.replace('_', ' ')}" for fact, count in counted.items())
    print(f"{task.name}: {result.get('reason') or ', '.join(items) + told}", flush=True)


MADE = {"train": "finetune", "merge": "merge"}
"""The inputs that a fine-tune has and a base alone has not, and their stages."""

Outcome = tuple[str, dict[str, Items], dict[str, Any]]
"""Status, items of each state, and the record's result."""


def _failed(made: dict[str, Record]) -> Outcome | None:
    """Return the outcome of a fine-tune that ended without an adapter to ask."""
    for record in made.values():
        if record.status != "ok":
            return record.status, {}, {"reason": record.result["reason"]}
    return None


def _evaluated(
    settings: dict[str, Any], inputs: dict[str, Path], task: Task, made: dict[str, Record], device: str
) -> Outcome:
    precision = settings["evaluation"]["precision"]
    try:
        subject = _subject(settings, inputs, made, device, precision)
        items, result = evaluate(subject, task, _asked(task, inputs["data"]), made.get("merge"))
    except torch.OutOfMemoryError as error:
        return "oom", {}, {"reason": str(error).splitlines()[0]}
    if not (failed := result["failed"]):
        return "ok", items, result
    return "diverged", items, result | {"reason": "; ".join(f"{label}: {why}" for label, why in failed.items())}


def _subject(
    settings: dict[str, Any], inputs: dict[str, Path], made: dict[str, Record], device: str, precision: str
) -> Subject:
    base = load_base(inputs["model"], inputs["base"], device=device, dtype=precision)
    if "train" not in made:
        return Subject(base, [Label("base")])
    train, adapter = made["train"], build(settings["adapter"], "adapter")
    assert isinstance(adapter, AdapterSettings)
    method = adapt(base, adapter, train.settings["seed"], train.settings["training"]["steps"])
    folder = inputs["train"].parent / "adapter"
    for name, expected in train.result["adapter_files"].items():
        records.check_sha256(folder / name, expected)
    files.load(method, folder)
    method.eval()
    wanted, skipped = labels(settings["states"], method, base.format)
    return Subject(base, wanted, method, skipped)


def _asked(task: Task, manifest: Path) -> list[Row]:
    """Return the rows to ask, each with the worked examples before it, if there are any."""
    assert task.generation is not None
    found = rows.split(manifest, task.generation.split)[: task.generation.limit]
    if not found:
        raise SettingsError(f"{task.name}: the {task.generation.split} split has no rows. Give it some in data.")
    if not (isinstance(task.generation, Prompted) and task.generation.shots):
        return found
    before = task.generation.shots.texts(task, rows.train_file(manifest))
    return [row | {SHOTS: next(before)} for row in found]
