"""Makes the jobs of a grid, each once, with only the settings that its stage reads."""

import hashlib
from pathlib import Path

from pipeline.core.leases import visible
from pipeline.core.settings import COSTS, TARGET, canonical, deciding, digest
from pipeline.sweeps.checks import Checks
from pipeline.sweeps.grid import Grid, Point
from pipeline.sweeps.jobs import BaseAlone, Job, Run
from pipeline.sweeps.nodes import Node
from pipeline.sweeps.settings import Request

MERGED = ("merged-original", "merged-dequantized", "requantized-original", "requantized-dequantized")
"""The states of a merge report: all of them, whatever a sweep evaluates, for all sweeps share the report."""
BITS = (TARGET, "device", "threads")
"""What of `hardware` can change a result; the rest are resources."""


class Workshop:
    """Makes the jobs of a grid, each once."""

    def __init__(self, grid: Grid, checks: Checks, root: Path, request: Request) -> None:
        self._grid, self._checks, self._root = grid, checks, root
        self._request = {"keep": request.code == "keep", "retry": request.retry == "failed"}
        self._hardware = {key: grid.single["hardware"][key] for key in BITS}
        if self._hardware["device"] == "auto":  # not for the job to find out: CPU and CUDA give other bits
            self._hardware["device"] = "cuda" if visible() else "cpu"
            grid.remarks.append(f"hardware.device=auto: {self._hardware['device']}, by what this machine has")
        self._bases: dict[str, Job] = {}
        self.jobs: dict[tuple[str, ...], Job] = {}
        self.data = {name: self._data(name) for name in grid.tasks}

    def run(self, point: Point) -> Run:
        """Return the jobs of one fine-tune."""
        settings = point.settings
        base, plain = self.base(point, taking=True), self.base(point)
        made = {name: settings[name] for name in ("adapter", "quantization")} | {"hardware": self._hardware}
        task = settings["training"]["task"]
        slice_ = made | {name: settings[name] for name in ("optimizer", "training", "seed")}
        slice_ |= {"task": self._task(task, "data", "generation", "scoring")}
        needs = base.needs | {"base": base, "data": self.data[task]}
        finetune = self._job("finetune", "runs/{}/train.json", point.name, slice_, needs)
        folder = finetune.wildcards[0]
        needs = base.needs | {"base": base, "train": finetune}
        states = {"states": list(MERGED)}
        merge = self._add("merge", (folder,), f"runs/{folder}/merge.json", _told(made | states), needs)
        seen = made | {"states": self._grid.single["evaluation"]["states"]}
        return Run(point, plain, finetune, merge, *self._tested(f"runs/{folder}", "", seen, needs | {"merge": merge}))

    def base_alone(self, point: Point) -> BaseAlone:
        """Return the jobs of the base of `point`."""
        base = self.base(point)
        seen = {"quantization": point.settings["quantization"], "hardware": self._hardware, "states": ["base"]}
        tested = self._tested(f"bases/{base.wildcards[0]}", "_base", seen, base.needs | {"base": base})
        return BaseAlone(point.model, point.choices["quantization"], base, *tested)

    def base(self, point: Point, taking: bool = False) -> Job:
        """Return the job that quantizes the base of `point`, or the one for its adapter if that takes a part of it.

        Many points share one.
        """
        name, adapter = f"{point.model}-{point.choices['quantization']}", point.settings["adapter"]
        own = {}
        if taking and self._checks.check(adapter, "adapter").takes:
            name, own = f"{name}-{point.choices['adapter']}", {"adapter": adapter}
        which = canonical([name, point.settings["model"], point.settings["quantization"], own])
        if which not in self._bases:
            slice_ = {"model": point.settings["model"], "hardware": self._hardware}
            slice_ |= {"files": files} if (files := self._checks.files(point.settings["model"])) else {}
            model = self._job("prepare_model", "models/{}/manifest.json", point.model, slice_, {})
            slice_ = {"quantization": point.settings["quantization"], "hardware": self._hardware} | own
            self._bases[which] = self._job("quantize_base", "bases/{}/manifest.json", name, slice_, {"model": model})
        return self._bases[which]

    def _tested(self, where: str, suffix: str, seen: Node, needs: dict[str, Job]) -> tuple[dict[str, Job], Job]:
        """Return the evaluations, by task, of what lies at `where`, and the one job that scores them all."""
        evaluate, scored = {}, {}
        how = {key: value for key, value in self._grid.single["evaluation"].items() if key not in ("states", TARGET)}
        seen = seen | {"evaluation": how}
        for name in self._grid.sweep.task:
            slice_ = seen | {"task": self._task(name, "data", "scoring")}
            own = needs | {"data": self.data[name]}
            evaluate[name] = self._job(f"evaluate{suffix}", where + "/evaluate/{}.json", name, slice_, own)
            scored |= {f"evaluate.{name}": evaluate[name], f"data.{name}": self.data[name]}
        slice_ = {"tasks": [self._task(name, "data") for name in evaluate]}
        return evaluate, self._job(f"score{suffix}", where + "/score/{}.json", "tasks", slice_, scored)

    def _data(self, name: str) -> Job:
        """Return the job that prepares a task's data; local files count by their contents."""
        data = self._grid.tasks[name].node["data"]
        paths = self._checks.check(data, f"task.{name}.data").paths
        slice_ = {"name": name, "data": data} | ({"files": {p: self._checks.sha256(p) for p in paths}} if paths else {})
        return self._job("prepare_data", "data/{}/manifest.json", name, slice_, {})

    def _task(self, name: str, *without: str) -> Node:
        """Return the node of a task with its name; its role is for the table alone."""
        node = self._grid.tasks[name].node
        return {key: value for key, value in node.items() if key not in (*without, "role")} | {"name": name}

    def _job(self, rule: str, path: str, name: str, settings: Node, needs: dict[str, Job]) -> Job:
        """Return the job whose path has, after `name`, 8 hex digits of what decides: its settings and its needs."""
        told = _told(settings)
        key = f"{name}-{digest([told[1], *(need.record for need in needs.values())])}"
        record = path.format(key)
        folder = record.split("/")[1]
        return self._add(rule, (key,) if folder == key else (folder, key), record, told, needs)

    def _add(
        self, rule: str, wildcards: tuple[str, ...], record: str, told: tuple[str, str], needs: dict[str, Job]
    ) -> Job:
        known = self.jobs.get((rule, *wildcards))
        if known is None:
            known = Job(rule, wildcards, record, *told, needs, self._root, **self._request)
            self.jobs[(rule, *wildcards)] = known
        assert known.digest == told[1], f"two settings share {record}"
        return known


def _told(settings: Node) -> tuple[str, str]:
    """Return the canonical text of settings, and the digest of those that decide, as readers of a record compute it."""
    text = canonical(settings)
    if any(f'"{key}":' in text for key in COSTS):
        return text, digest(deciding(settings), 16)
    return text, hashlib.sha256(text.encode()).hexdigest()[:16]
