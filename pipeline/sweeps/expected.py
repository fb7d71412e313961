"""What a sweep's table must hold: its runs, their settings, and what each record must say of itself."""

from pipeline.core.settings import deciding
from pipeline.sweeps.grid import Grid
from pipeline.sweeps.jobs import BaseAlone, Job, Run
from pipeline.sweeps.nodes import Node


def expected(grid: Grid, runs: list[Run], bases: list[BaseAlone]) -> Node:
    """Return what the plan's record says of a sweep. Paths are relative to the results folder."""
    tasks = grid.tasks
    targets = {run.point.settings["training"]["task"] for run in runs}
    return {
        "axes": sorted({axis for run in runs for axis in run.point.axes}),
        "states": grid.single["evaluation"]["states"],
        "tasks": [
            {
                "name": name,
                "generation_id": tasks[name].node["generation"]["id"],
                "role": "target" if name in targets else tasks[name].node["role"],
                "scoring": list(tasks[name].rules),
            }
            for name in grid.sweep.task
        ],
        "runs": [_run(run) for run in runs],
        "bases": [_base(base) for base in bases],
        "report": grid.single["report"],
        "price_per_hour": grid.single["hardware"]["price_per_hour"],
    }


def _run(run: Run) -> Node:
    point = run.point
    return {
        "folder": f"runs/{run.folder}",
        "name": point.title,
        "model": point.model,
        "quantization": point.choices["quantization"],
        "adapter": point.choices["adapter"],
        "adapter_label": point.label,
        "size": point.size,
        "seed": point.settings["seed"],
        "base": f"bases/{run.base.wildcards[0]}",
        "settings": deciding(point.settings),
        "kept": _kept([*run.finetune.needs.values(), *run.jobs]),
        "records": {
            "prepare_model": run.finetune.needs["model"].expected(),
            "quantize_base": run.finetune.needs["base"].expected(),
            "finetune": run.finetune.expected(),
            "merge": run.merge.expected(),
            "score": run.score.expected(),
        },
        "tasks": {name: job.expected() for name, job in run.evaluate.items()},
    }


def _base(base: BaseAlone) -> Node:
    return {
        "folder": f"bases/{base.job.wildcards[0]}",
        "name": f"{base.model}-{base.quantization}",
        "model": base.model,
        "quantization": base.quantization,
        "base": f"bases/{base.job.wildcards[0]}",
        "settings": {
            "model": deciding(base.job.needs["model"].settings["model"]),
            "quantization": base.job.settings["quantization"],
        },
        "kept": _kept([*base.job.needs.values(), *base.jobs]),
        "records": {
            "prepare_model": base.job.needs["model"].expected(),
            "quantize_base": base.job.expected(),
            "score": base.score.expected(),
        },
        "tasks": {name: job.expected() for name, job in base.evaluate.items()},
    }


def _kept(jobs: list[Job]) -> list[str]:
    """Return the stages whose records are kept though their code has changed."""
    return sorted({job.stage for job in jobs if job.kept and job.recorded != job.now})
