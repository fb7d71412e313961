"""What a sweep expects to find: the runs, the bases, and what each of their records must say.

The plan (`sweep.json`) lists, for every record, its path, the digest of its settings, and the digests of the code and
of the earlier steps it was made by. A record that says anything else belongs to another table, and is a missing one.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.aggregation.settings import Report
from pipeline.core import records
from pipeline.core.records import Record, RecordError
from pipeline.core.settings import deciding, digest, parse


@dataclass(frozen=True)
class Expected:
    """One record that a sweep needs, and what it must say of itself."""

    path: str
    settings: str
    code: str
    upstream: str


@dataclass(frozen=True)
class Subject:
    """One run, or one base (then `adapter` and `seed` are None)."""

    folder: str
    name: str
    model: str
    quantization: str
    records: dict[str, Expected]
    tasks: dict[str, Expected]  # the evaluation of each
    adapter: str | None = None
    adapter_label: str | None = None
    size: tuple[str, int] | None = None
    seed: int | None = None
    base: str | None = None  # the folder of the base that it stands on; of a base, its own
    settings: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # of conf/, that settings came from
    kept: tuple[str, ...] = ()

    @cached_property
    def group(self) -> str:
        """What the runs of one line of the table share: everything but the seed."""
        apart_from_seed = {k: v for k, v in self.settings.items() if k != "seed"}
        own = [self.base] if self.adapter is None else []
        return digest([self.model, self.quantization, self.adapter, self.size, apart_from_seed, *own], 16)


@dataclass(frozen=True)
class TaskPlan:
    """One evaluation of the sweep. `scoring` names its rules, the one that speaks for the task first."""

    name: str
    generation_id: str
    role: str
    scoring: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """The plan of one table. `results` is the folder that every path of the plan is relative to."""

    path: Path
    results: Path
    name: str
    overrides: tuple[str, ...]
    tasks: tuple[TaskPlan, ...]
    states: tuple[str, ...]
    bases: tuple[Subject, ...]
    runs: tuple[Subject, ...]
    data: dict[str, Expected]
    report: Report
    price_per_hour: float | None = None

    def task(self, role: str) -> list[TaskPlan]:
        """Return the tasks of one role, in the order of the plan."""
        return [task for task in self.tasks if task.role == role]

    def fetch(self, expected: Expected, stage: str) -> Record:
        """Read one record and hold it against what the plan says of it.

        Raises:
            RecordError: there is none, it is damaged, or it was made by other settings or other code.
        """
        try:
            record = records.read(self.results / expected.path, stage)
        except RecordError as error:
            raise RecordError(str(error).replace(f"{self.results}/", "")) from None
        made_by = {key: record.about.get(key) for key in ("code", "upstream")}
        made_by["settings"] = digest(deciding(record.settings), 16)
        for what, meaning in MISFITS.items():
            if made_by[what] != getattr(expected, what):
                raise RecordError(
                    f"{expected.path}: was made {meaning} than this sweep's "
                    f"(it says {made_by[what]}, the sweep {getattr(expected, what)})."
                )
        return record


MISFITS = {
    "settings": "with other settings",
    "code": "by other code",
    "upstream": "from other earlier steps",
}
LABEL = re.compile(r"^(?P<state>[a-z-]+?)(?:@r(?P<rank>\d+))?$")


def split_label(label: str) -> tuple[str, int | None]:
    """Return state and rank of a label: `trained@r4` is ("trained", 4), `trained` is ("trained", None)."""
    found = LABEL.match(label)
    if found is None:
        raise RecordError(f"{label!r}: is not the label of a state, such as 'trained' or 'trained@r4'.")
    return found["state"], int(found["rank"]) if found["rank"] else None


def load(path: Path) -> Sweep:
    """Read `results/tables/<sweep>/sweep.json`.

    Raises:
        RecordError: the plan is missing, damaged, or lacks a key that a table needs.
    """
    plan = records.read(path, "plan").result
    try:
        return Sweep(
            path=path,
            results=path.parents[2],
            name=plan["name"],
            overrides=tuple(plan["overrides"]),
            tasks=tuple(TaskPlan(t["name"], t["generation_id"], t["role"], tuple(t["scoring"])) for t in plan["tasks"]),
            states=tuple(plan["states"]),
            bases=tuple(_subject(node) for node in plan["bases"]),
            runs=tuple(_subject(node) for node in plan["runs"]),
            data={task: Expected(**node) for task, node in plan["data"].items()},
            report=parse(Report, plan["report"], "report"),
            price_per_hour=plan["price_per_hour"],
        )
    except (KeyError, TypeError) as error:
        raise RecordError(
            f"{path}: the plan lacks or misspells {error}; run `python -m pipeline plan` again."
        ) from None


def _subject(node: dict[str, Any]) -> Subject:
    expected = {stage: Expected(**entry) for stage, entry in node["records"].items()}
    tasks = {task: Expected(**entry) for task, entry in node["tasks"].items()}
    size = node.get("size")
    fixed = {"records": expected, "tasks": tasks, "kept": tuple(node["kept"]), "size": tuple(size) if size else None}
    return Subject(**node | fixed)


def variants(subjects: tuple[Subject, ...]) -> dict[str, str]:
    """Name, for each group of runs, what tells it from groups of the same model, format, method and size.

    Returns:
        group -> "" where nothing needs telling, else such as "learning_rate=0.001".
    """
    alike: dict[tuple[Any, ...], dict[str, Subject]] = {}
    for one in subjects:
        alike.setdefault((one.model, one.quantization, one.adapter, one.size), {}).setdefault(one.group, one)
    return {group: told for groups in alike.values() for group, told in _told_apart(groups).items()}


def _told_apart(groups: dict[str, Subject]) -> dict[str, str]:
    """Name of each group the files of conf/ that differ, and the settings that still differ under equal files."""
    settings = {group: dict(leaves(one.settings)) for group, one in groups.items()}
    axes = {axis for one in groups.values() for axis in one.files}
    named = {axis for axis in axes if len({one.files.get(axis) for one in groups.values()}) > 1}

    def differs(key: str) -> bool:
        axis, values = key.partition(".")[0], defaultdict(set)
        for group, one in groups.items():
            values[one.files.get(axis) if axis in named else None].add(digest(settings[group].get(key)))
        return any(len(digests) > 1 for digests in values.values())

    keys = [key for key in sorted({key for of in settings.values() for key in of} - {"seed"}) if differs(key)]
    return {
        group: ", ".join(
            [f"{axis}={one.files.get(axis)}" for axis in sorted(named)]
            + [f"{key.rpartition('.')[2]}={settings[group].get(key)}" for key in keys]
        )
        for group, one in groups.items()
    }


def leaves(node: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of everything in a node of settings."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value
