"""Jobs: one rule on one point, with only the settings that its stage reads, and what made its inputs.

A path holds the digest of every setting that decides what lies there, those of earlier steps included. So no job ever
writes a file that another setting uses; what may differ at one path is code alone.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pipeline.core.settings import TARGET, canonical, digest
from pipeline.sweeps import closure
from pipeline.sweeps.checks import Checks
from pipeline.sweeps.grid import Grid, Point
from pipeline.sweeps.nodes import Node
from pipeline.sweeps.settings import Request

MERGED = ("merged-original", "merged-dequantized", "requantized-original", "requantized-dequantized")
"""The states of a merge report: all of them, whatever a sweep evaluates, for all sweeps share the report."""
BITS = (TARGET, "device", "threads")
"""What of `hardware` can change a result; the rest are resources."""
STAGES = {"evaluate_base": "evaluate", "score_base": "score"}
"""The stage of a rule where it is called otherwise."""


@dataclass(frozen=True)
class Made:
    """Which code made a record: its own digest, and that of everything before it, with the number of a retry."""

    code: str
    upstream: str
    failed: bool = field(default=False, compare=False)

    @property
    def tries(self) -> int:
        """How often a failed record was made again."""
        return int(self.upstream.partition(".")[2] or 0)

    def same(self, other: "Made") -> bool:
        """Whether the code is the same, whatever the tries."""
        return (self.code, self.upstream.partition(".")[0]) == (other.code, other.upstream.partition(".")[0])


@dataclass(eq=False)
class Job:
    """One rule on one point. `cfg` is its settings as the one canonical text that Snakemake compares."""

    rule: str
    wildcards: tuple[str, ...]
    record: str
    cfg: str
    needs: dict[str, "Job"]
    root: Path
    keep: bool
    retry: bool

    @property
    def stage(self) -> str:
        """The stage that the rule runs."""
        return STAGES.get(self.rule, self.rule)

    @cached_property
    def settings(self) -> Node:
        """The settings that the stage reads."""
        return json.loads(self.cfg)

    @cached_property
    def digest(self) -> str:
        """The digest of the settings, as readers of the record compute it."""
        return hashlib.sha256(self.cfg.encode()).hexdigest()[:16]

    @cached_property
    def now(self) -> Made:
        """The code as it is, on inputs as they would be."""
        before = [[need.digest, need.made.code, need.made.upstream] for need in self.needs.values()]
        last = self.recorded
        tries = last.tries + (last.failed and self.retry and self.rule == "finetune") if last else 0
        again = f".{tries}" if tries else ""  # stays in the record, so that the next plan finds nothing changed
        return Made(closure.code(self.stage, self.cfg), f"upstream:{digest(before, 12)}{again}")

    @cached_property
    def recorded(self) -> Made | None:
        """The code that made the finished record, None without one."""
        return read_made(self.root / self.record)

    @cached_property
    def kept(self) -> bool:
        """Whether the user keeps a record that other code made; what must be made anew is made by the code of now."""
        return (
            self.keep
            and self.recorded is not None
            and self.recorded != self.now
            and all(need.recorded is not None for need in self.needs.values())
        )

    @property
    def made(self) -> Made:
        """What the record must say of its code."""
        return self.recorded if self.kept and self.recorded else self.now

    def expected(self) -> dict[str, str]:
        """Return what the record must say, for those who read it; the path is relative to the results folder."""
        made = self.made
        return {
            "path": self.record,
            "settings": self.digest,
            "code": made.code,
            "upstream": made.upstream,
        }


def read_made(record: Path) -> Made | None:
    """Return the code digests in a record's `about`; None where there is no readable record that has them."""
    try:
        body = json.loads(record.read_bytes())
        return Made(body["about"]["code"], body["about"]["upstream"], body["status"] != "ok")
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass
class Run:
    """A point and its jobs. `base` is what it is compared with; an adapter that takes trains on one of its own."""

    point: Point
    base: Job
    finetune: Job
    merge: Job
    evaluate: dict[str, Job]
    score: dict[str, Job]

    @property
    def folder(self) -> str:
        """The name of the run's folder."""
        return self.finetune.wildcards[0]

    @property
    def jobs(self) -> list[Job]:
        """All jobs of this run alone."""
        return [self.finetune, self.merge, *self.evaluate.values(), *self.score.values()]


@dataclass
class BaseAlone:
    """A quantized base, evaluated without an adapter."""

    model: str
    quantization: str
    job: Job
    evaluate: dict[str, Job]
    score: dict[str, Job]

    @property
    def jobs(self) -> list[Job]:
        """All jobs of this base alone."""
        return [self.job, *self.evaluate.values(), *self.score.values()]


class Workshop:
    """Makes the jobs of a grid, each once."""

    def __init__(self, grid: Grid, checks: Checks, root: Path, request: Request) -> None:
        self._grid, self._checks, self._root = grid, checks, root
        self._told = {"keep": request.code == "keep", "retry": request.retry == "failed"}
        self._hardware = {key: grid.single["hardware"][key] for key in BITS}
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
        merge = self._add("merge", (folder,), f"runs/{folder}/merge.json", canonical(made | states), needs)
        seen = made | {"states": self._grid.single["evaluation"]["states"]}
        return Run(point, plain, finetune, merge, *self._tested(f"runs/{folder}", "", seen, needs | {"merge": merge}))

    def base_alone(self, point: Point) -> BaseAlone:
        """Return the jobs of the base of `point`."""
        base = self.base(point)
        seen = {"quantization": point.settings["quantization"], "hardware": self._hardware, "states": ["base"]}
        tested = self._tested(f"bases/{base.wildcards[0]}", "_base", seen, base.needs | {"base": base})
        return BaseAlone(point.model, point.choices["quantization"], base, *tested)

    def base(self, point: Point, taking: bool = False) -> Job:
        """Return the job that quantizes the base of `point`, or the one for its adapter if that takes a part of it."""
        slice_ = {"model": point.settings["model"], "hardware": self._hardware}
        model = self._job("prepare_model", "models/{}/manifest.json", point.model, slice_, {})
        slice_ = {"quantization": point.settings["quantization"], "hardware": self._hardware}
        name = f"{point.model}-{point.choices['quantization']}"
        adapter = point.settings["adapter"]
        if taking and self._checks.check(adapter, "adapter").takes:
            slice_ |= {"adapter": adapter}
            name += f"-{point.choices['adapter']}"
        return self._job("quantize_base", "bases/{}/manifest.json", name, slice_, {"model": model})

    def _tested(
        self, where: str, suffix: str, seen: Node, needs: dict[str, Job]
    ) -> tuple[dict[str, Job], dict[str, Job]]:
        """Return the evaluations and scorings, by task, of what lies at `where`."""
        evaluate, score = {}, {}
        how = {key: value for key, value in self._grid.single["evaluation"].items() if key not in ("states", TARGET)}
        seen = seen | {"evaluation": how}
        for name in self._grid.sweep.task:
            slice_ = seen | {"task": self._task(name, "data", "scoring")}
            own = needs | {"data": self.data[name]}
            evaluate[name] = self._job(f"evaluate{suffix}", where + "/evaluate/{}.json", name, slice_, own)
            own = {"record": evaluate[name], "data": self.data[name]}
            slice_ = {"task": self._task(name, "data")}
            score[name] = self._job(f"score{suffix}", where + "/score/{}.json", name, slice_, own)
        return evaluate, score

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
        """Return the job whose path has, after `name`, 8 hex digits of its settings and, by their paths, its needs."""
        cfg = canonical(settings)
        key = f"{name}-{digest([cfg, *(need.record for need in needs.values())])}"
        record = path.format(key)
        folder = record.split("/")[1]
        return self._add(rule, (key,) if folder == key else (folder, key), record, cfg, needs)

    def _add(self, rule: str, wildcards: tuple[str, ...], record: str, cfg: str, needs: dict[str, Job]) -> Job:
        known = self.jobs.get((rule, *wildcards))
        if known is None:
            known = Job(rule, wildcards, record, cfg, needs, self._root, **self._told)
            self.jobs[(rule, *wildcards)] = known
        assert known.cfg == cfg, f"two settings share {record}"
        return known
