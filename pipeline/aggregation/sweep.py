"""What a sweep expects to find: the runs, the bases, and what each of their records must say.

The plan (`sweep.json`) lists, for every record, its path, the digest of its settings, and the digests of the code and
of the earlier steps it was made by. A record that says anything else belongs to another table, and is a missing one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.aggregation.settings import Report
from pipeline.core import records
from pipeline.core.records import Record, RecordError
from pipeline.core.settings import TARGET, deciding, digest, parse


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
    alike: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for one in subjects:
        point = (one.model, one.quantization, one.adapter, one.size)
        alike.setdefault(point, {}).setdefault(one.group, dict(leaves(one.settings)))
    return {group: _told_apart(group, groups) for groups in alike.values() for group in groups}


def _told_apart(group: str, groups: dict[str, dict[str, Any]]) -> str:
    """Name the settings that differ; of two classes their names, and not fields that only one of them has."""
    keys = sorted({key for leaves in groups.values() for key in leaves} - {"seed"})

    def differs(key: str) -> bool:
        node, dot, field = key.rpartition(".")
        alike: dict[str, set[str]] = {}
        for leaves in groups.values():
            kind = "" if field == TARGET else str(leaves.get(f"{node}{dot}{TARGET}"))
            alike.setdefault(kind, set()).add(digest(leaves.get(key)))
        return any(len(values) > 1 for values in alike.values())

    shown = {key: groups[group][key] for key in keys if differs(key) and key in groups[group]}
    return ", ".join(_shown(key, value) for key, value in shown.items())


def _shown(key: str, value: Any) -> str:
    node, _, field = key.rpartition(".")
    return f"{node}={value.rpartition('.')[2]}" if field == TARGET else f"{field}={value}"


def leaves(node: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of everything in a node of settings."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value
