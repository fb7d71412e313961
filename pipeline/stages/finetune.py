"""Trains one adapter: one point of the sweep."""

from pathlib import Path
from typing import Any

import torch

from pipeline.adapters import files
from pipeline.adapters.base import AdapterSettings
from pipeline.core import provenance, records
from pipeline.core.machine import ready
from pipeline.core.settings import build, parse
from pipeline.models.load import Base, load_base
from pipeline.optimizers.base import OptimizerSettings
from pipeline.tasks import rows
from pipeline.tasks.base import Task
from pipeline.tracking.journal import Tracker, tracked
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.finetune import Pairs, Plan, Trained, finetune, out_of_memory
from pipeline.training.meter import Meter
from pipeline.training.settings import Training
from pipeline.training.tracking import progress

SUMMARY = ("reason", "final_loss", "dev_loss", "trainable_parameters", "total_parameters", "adapter_bytes")
"""What of the result an experiment tracker shows beside the curves."""


def run(settings: dict[str, Any], inputs: dict[str, Path], outputs: dict[str, Path], about: dict[str, Any]) -> None:
    """Write `<record's folder>/adapter/` and the record `outputs["record"]`; a failed training is a record too."""
    hardware, record = settings["hardware"], outputs["record"]
    device = ready(hardware["device"], hardware["threads"])
    task = build(settings["task"], "task")
    assert isinstance(task, Task)
    plan = plan_of(settings, task)
    base = load_base(inputs["model"], inputs["base"], device=str(device), dtype=plan.training.precision)
    pairs = pairs_of(task, plan.training, inputs["data"])
    made_by = {key: about[key] for key in ("code", "upstream") if key in about}
    checkpoints = Checkpoints(record.parent / "checkpoints", {"settings": settings} | made_by)
    with tracked(record.parent, "finetune", settings | made_by) as tracker:
        status, result, cost = _train(base, plan, pairs, checkpoints, tracker, record.parent / "adapter")
        cost |= tracker.end(status, {key: result.get(key) for key in SUMMARY})
    made = [record.parent / "adapter" / name for name in result.get("adapter_files", ())]
    about = provenance.about(about.pop("started"), files=records.sizes(record, made), **cost, **about)
    records.write(record, stage="finetune", settings=settings, result=result, about=about, status=status)
    checkpoints.clear()
    print(f"{status}: {result.get('reason') or 'final loss {:.4f}'.format(result['final_loss'])}", flush=True)


def plan_of(settings: dict[str, Any], task: Task) -> Plan:
    """Return what is trained, and how, from the stage's settings."""
    adapter, optimizer = build(settings["adapter"], "adapter"), build(settings["optimizer"], "optimizer")
    assert isinstance(adapter, AdapterSettings)
    assert isinstance(optimizer, OptimizerSettings)
    training = parse(Training, settings["training"], "training")
    return Plan(adapter, optimizer, training, settings["seed"], task.chat)


def pairs_of(task: Task, training: Training, manifest: Path) -> dict[str, Pairs]:
    """Read the rows of train and dev with the answers that are trained on; files are checked against the manifest."""
    choosing = training.choice_losses is not None
    return {
        split: [
            (str(row["id"]), task.prompt(row), task.choices(row) if choosing else (task.answer(row),))
            for row in rows.split(manifest, split)
        ]
        for split in ("train", "dev")
    }


def _train(
    base: Base, plan: Plan, pairs: dict[str, Pairs], checkpoints: Checkpoints, tracker: Tracker, folder: Path
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Train and save into `folder`; return the status, what must repeat, and what it cost."""
    meter, show = Meter(base.device), progress(plan.training.steps)

    def report(point: dict[str, Any]) -> None:
        show(point)
        tracker.log(point["step"], {**point, "peak_memory_bytes": meter.peak()})

    try:
        trained = finetune(base, plan, pairs, checkpoints, report)
    except torch.OutOfMemoryError as error:
        return "oom", {"reason": out_of_memory(error)}, {"device": provenance.device_name(str(base.device))}
    status, result = _outcome(trained)
    tracker.log(result["steps"], {"dev_loss": result["dev_loss"]})
    if status == "ok":
        result |= _save(trained, folder, base)
    cost = meter.about(sum(point["labelled_tokens"] for point in result["curve"]))
    return status, result, cost | {"resumed_at": trained.outcome.resumed_at, "optimizer": trained.optimizer}


def _outcome(trained: Trained) -> tuple[str, dict[str, Any]]:
    if trained.outcome.reason is None:
        return "ok", trained.result
    return "diverged", trained.result | {"reason": trained.outcome.reason}


def _save(trained: Trained, folder: Path, base: Base) -> dict[str, Any]:
    with records.writing(folder) as unfinished:
        files.save(trained.method, unfinished, base_name=base.model.config.model_type)
    hashes = {path.name: records.file_sha256(path) for path in sorted(folder.iterdir())}
    return {"adapter_files": hashes, "adapter_bytes": (folder / "adapter_model.safetensors").stat().st_size}
