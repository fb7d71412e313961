"""What may be chosen from: the ranks of one run, or the lines of a sweep, scored on dev and on test by one protocol.

A dev and a test evaluation are of one protocol if they differ in name, id, split and number of rows alone. They may lie
in one table or in two: an override that says `split=dev` makes a table of its own over the same fine-tunes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from pipeline.aggregation.comparison import Line
from pipeline.aggregation.groups import Group, grouped, line
from pipeline.aggregation.rows import Evidence, Score, collect, missing
from pipeline.aggregation.sweep import Sweep, TaskPlan, load
from pipeline.core.records import RecordError
from pipeline.core.results import find_run, plans
from pipeline.core.settings import canonical, digest

BYTES_A_PARAMETER = 4
"""Adapters are saved in float32."""
FREE = ("id", "split", "limit")
"""Fields of a generation in which dev and test of one protocol may differ."""


@dataclass(frozen=True)
class Cost:
    """What it takes to ship and to serve one contender, of several seeds the largest bytes and the mean seconds.

    `weights` are the bytes of the base as stored and of the adapter, `memory` the peak on a GPU; `serving` is for 1000
    items of the evaluation of test.
    """

    adapter: int
    weights: int
    memory: int | None
    serving: float
    training: float


@dataclass(frozen=True)
class Contender:
    """One rank or line, with its scores on dev and on test by seed."""

    line: Line
    cost: Cost
    dev: dict[str, Score]
    test: dict[str, Score]


@dataclass(frozen=True)
class Contest:
    """The contenders, and by which task, rule and state they are compared."""

    sweep: Sweep
    protocols: tuple[str, str]
    rule: str
    contenders: list[Contender]


@dataclass(frozen=True)
class Asked:
    """One task of one table as it was asked there."""

    sweep: Sweep
    task: TaskPlan
    split: str
    question: str


def contest(results: Path, name: str) -> Contest:
    """Return what can be chosen from in a sweep's table, or among the ranks of a run.

    Raises:
        RecordError: dev or test scores are missing; the message says how to make them.
        SettingsError: there is no table and no run of this name.
    """
    tables = {table: load(path) for table, path in plans(results).items()}
    if name in tables:
        folders = {run.folder for run in tables[name].runs}
        tables = {name: tables[name]} | tables
    else:
        folders = {f"runs/{find_run(results, name).name}"}
    narrowed = [_only(sweep, folders) for sweep in tables.values()]
    whole = [sweep for sweep in narrowed if {run.folder for run in sweep.runs} == folders]
    test, dev = _pair(name, whole)
    return Contest(
        test.sweep, (dev.task.generation_id, test.task.generation_id), test.task.scoring[0], _contenders(test, dev)
    )


def _only(sweep: Sweep, folders: set[str]) -> Sweep:
    return replace(sweep, runs=tuple(run for run in sweep.runs if run.folder in folders), bases=())


def _pair(name: str, sweeps: list[Sweep]) -> tuple[Asked, Asked]:
    """Return the target on test, and the same protocol on dev."""
    asked = [one for sweep in sweeps for task in sweep.tasks for one in _asked(sweep, task)]
    tests = [one for one in asked if one.split == "test" and one.task.role == "target"]
    if not tests:
        raise RecordError(f"{name}: no table scores it on the test rows of the task that it was trained on.")
    for test in tests:
        for dev in asked:
            if dev.split == "dev" and dev.question == test.question:
                return test, dev
    raise RecordError(
        f"{name}: nothing was scored on dev by {tests[0].task.generation_id}, and a choice on test would not be "
        f"honest. Score dev, which trains nothing again:\n  {_command(tests[0])}"
    )


def _asked(sweep: Sweep, task: TaskPlan) -> Iterable[Asked]:
    """Yield what one run was asked in a task, if any run was."""
    for run in sweep.runs:
        try:
            record = sweep.fetch(run.tasks[task.name], "evaluate")
            data = sweep.fetch(sweep.data[task.name], "prepare_data").settings
        except RecordError:
            continue
        node = {key: value for key, value in record.settings["task"].items() if key not in ("name", "role")}
        generation = {key: value for key, value in node["generation"].items() if key not in FREE}
        rows = [data.get(key) for key in ("data", "files")]
        question = canonical([node | {"generation": generation}, rows, record.settings["evaluation"]])
        yield Asked(sweep, task, record.settings["task"]["generation"]["split"], question)
        return


def _command(test: Asked) -> str:
    """Return the command that scores the same fine-tunes on dev."""
    own, task = list(test.sweep.overrides), test.task
    name = test.sweep.name.removesuffix(f"-{digest(sorted(own))}")
    new = [f"task.{task.name}.generation.split=dev", f"task.{task.name}.generation.id={task.generation_id}-dev"]
    return f"snakemake --cores all --config sweep={name} overrides='{' '.join([*own, *new])}'"


def _contenders(test: Asked, dev: Asked) -> list[Contender]:
    """Return every line that ended well and has scores on both.

    Raises:
        RecordError: a record is missing.
    """
    on_test, on_dev = _groups(test), {group.key: group for group in _groups(dev)}
    found = []
    for group in on_test:
        pair = [
            one.scores.get((asked.task.name, test.task.scoring[0], test.sweep.report.state), {})
            for one, asked in ((on_dev.get(group.key, group), dev), (group, test))
        ]
        if group.competes and group.key in on_dev and all(pair):
            found.append(Contender(line(group, {}), _cost(test, group), *pair))
    if not found:
        raise RecordError(f"{test.sweep.name}: no line ended well and was scored as {test.sweep.report.state}.")
    return found


def _groups(asked: Asked) -> list[Group]:
    evidence = collect(replace(asked.sweep, tasks=(asked.task,)))
    if lacking := missing(evidence):
        raise RecordError("\n  ".join(["records are missing; run the workflow again:", *lacking]))
    return grouped(evidence)


def _cost(asked: Asked, group: Group) -> Cost:
    """Return what the records say."""
    label = asked.sweep.report.state + ("" if group.rank is None else f"@r{group.rank}")
    costs = [_cost_of(asked, run, label, group.rank) for run in group.runs]
    weights, adapter = max(one.weights for one in costs), max(one.adapter for one in costs)
    memory = max((one.memory for one in costs if one.memory is not None), default=None)
    return Cost(adapter, weights, memory, fmean(one.serving for one in costs), fmean(one.training for one in costs))


def _cost_of(asked: Asked, run: Evidence, label: str, rank: int | None) -> Cost:
    evaluated = asked.sweep.fetch(run.subject.tasks[asked.task.name], "evaluate")
    trained = asked.sweep.fetch(run.subject.records["finetune"], "finetune")
    try:
        cost = evaluated.about["costs"][label]
        return Cost(
            adapter=BYTES_A_PARAMETER * (run.parameters(rank) or 0),
            weights=evaluated.result["states"][label]["weight_bytes"],
            memory=cost.get("peak_memory_bytes"),
            serving=1000 * cost["seconds"] / evaluated.result["n"],
            training=trained.about["training_seconds"],
        )
    except KeyError as error:
        raise RecordError(f"{evaluated.path}: earlier code made it without {error}. Start its sweep again.") from None
