"""Tidy rows from records: one row per run, state and scoring rule, seeds kept apart.

What did not end well has a row too, with its status (`diverged`, `oom`, `missing`) and the reason instead of a score.
"""

import csv
import io
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.aggregation.sweep import Subject, Sweep, TaskPlan, split_label, variants
from pipeline.core.records import Record, RecordError


@dataclass(frozen=True)
class Score:
    """One run, in one state, by one scoring rule; `item_scores_N` are in the unit that the rule averages."""

    task: str
    rule: str
    state: str
    rank: int | None
    score: float
    items: tuple[str, ...]
    item_scores_N: np.ndarray
    unit: str
    better: str
    aggregate: str
    failures: int
    truncated: int


@dataclass
class Evidence:
    """Everything that was found of one run or base.

    `status` is the run's own (ok, diverged, oom, missing); `unscored` names each task that ended otherwise than ok,
    `skipped` each state that cannot be built, both with the reason.
    """

    subject: Subject
    variant: str
    status: str = "ok"
    reason: str = ""
    train: dict[str, Any] = field(default_factory=dict)
    merge: dict[str, Any] = field(default_factory=dict)
    scores: list[Score] = field(default_factory=list)
    unscored: dict[str, tuple[str, str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def parameters(self, rank: int | None) -> int | None:
        """Return how many trained parameters ship: all of them, or those of one of the ranks held at once."""
        shipped = self.train.get("parameters_at", {}).get(str(rank))
        return shipped if shipped is not None else self.train.get("trainable_parameters")

    def problems(self) -> list[tuple[str, str]]:
        """Return (status, reason) of everything that is not as it should be, each reason once."""
        own = [(self.status, self.reason)] if self.status != "ok" else []
        return list(dict.fromkeys(own or self.unscored.values()))


def collect(sweep: Sweep) -> list[Evidence]:
    """Read every record of a sweep, bases first, in the order of the plan."""
    names = variants(sweep.runs)
    told_apart = variants(sweep.bases)
    bases = [_base(sweep, base, told_apart[base.group]) for base in sweep.bases]
    return bases + [_run(sweep, run, names[run.group]) for run in sweep.runs]


def missing(evidence: list[Evidence]) -> list[str]:
    """Say what a complete table would need and does not have, one line each; ended badly is not missing."""
    return [
        f"{one.subject.name}: {reason}" for one in evidence for status, reason in one.problems() if status == "missing"
    ]


def _base(sweep: Sweep, subject: Subject, variant: str) -> Evidence:
    evidence = Evidence(subject, variant)
    _scored(sweep, evidence)
    return evidence


def _run(sweep: Sweep, subject: Subject, variant: str) -> Evidence:
    evidence = Evidence(subject, variant)
    try:
        trained = sweep.fetch(subject.records["finetune"], "finetune")
    except RecordError as error:
        evidence.status, evidence.reason = "missing", str(error)
        return evidence
    evidence.train = trained.result
    if trained.status != "ok":
        evidence.status, evidence.reason = trained.status, _reason(trained)
        return evidence
    _merged(sweep, evidence)
    _scored(sweep, evidence)
    return evidence


def _merged(sweep: Sweep, evidence: Evidence) -> None:
    """Add the merge report, or the reason why there is none."""
    try:
        merged = sweep.fetch(evidence.subject.records["merge"], "merge")
    except RecordError as error:
        evidence.unscored["merge"] = ("missing", str(error))
        return
    if merged.status == "ok":
        evidence.merge, evidence.skipped = merged.result["states"], dict(merged.result["skipped"])
    else:
        evidence.unscored["merge"] = (merged.status, _reason(merged))


def _scored(sweep: Sweep, evidence: Evidence) -> None:
    """Add the scores of every task, or the reason why there are none."""
    subject = evidence.subject
    try:
        scored = sweep.fetch(subject.records["score"], "score")
    except RecordError as error:
        evidence.unscored |= {task.name: ("missing", str(error)) for task in sweep.tasks}
        return
    for task in sweep.tasks:
        try:
            evaluated = sweep.fetch(subject.tasks[task.name], "evaluate")
        except RecordError as error:
            evidence.unscored[task.name] = ("missing", str(error))
            continue
        _score(evidence, task, evaluated, scored)


def _score(evidence: Evidence, task: TaskPlan, evaluated: Record, scored: Record) -> None:
    """Add the scores of one task; where some or all of its states failed, the reason as well."""
    found = scored.result["tasks"][task.name]
    if found["generation_id"] != task.generation_id:
        got = found["generation_id"]
        raise RecordError(f"{scored.path}: scores {got!r}, the plan says {task.generation_id!r}. Score the run again.")
    if found["status"] != "ok":
        evidence.unscored[task.name] = (found["status"], found["reason"])
    evidence.skipped |= evaluated.result.get("skipped", {})
    evidence.scores += scores_of(scored, task.name)


def _reason(record: Record) -> str:
    return record.result.get("reason", f"{record.stage} ended {record.status}")


def scores_of(record: Record, task: str) -> list[Score]:
    """Return one `Score` per rule and state of a task in a score record.

    Raises:
        RecordError: a score is not what its own items give.
    """
    kept = record.result["tasks"][task]
    items = tuple(str(item) for item in kept["items"])
    found = []
    for rule, of in kept["rules"].items():
        for label, entry in of["states"].items():
            item_scores_N = np.asarray(entry["per_item"], dtype=np.float64)
            score, again = entry["score"], summarize(item_scores_N.mean(), of["aggregate"])
            if item_scores_N.shape != (len(items),) or not math.isclose(again, score, rel_tol=1e-6, abs_tol=1e-6):
                raise RecordError(
                    f"{record.path}: {task}, {rule}, {label}: the score {score} does not follow from its "
                    f"{item_scores_N.size} item scores ({again:.6g}, {len(items)} items). Score the run again."
                )
            state, rank = split_label(label)
            facts = {key: of[key] for key in ("unit", "better", "aggregate")}
            counts = {key: entry[key] for key in ("failures", "truncated")}
            found.append(Score(task, rule, state, rank, score, items, item_scores_N, **facts, **counts))
    return found


def summarize(mean: Any, aggregate: str) -> Any:
    """Turn a mean over items, or an array of such means, into the unit of the score.

    Raises:
        RecordError: no such aggregation is known.
    """
    if aggregate == "mean":
        return mean
    if aggregate == "exp-mean":
        return np.exp(mean)
    raise RecordError(f"aggregate: must be 'mean' or 'exp-mean', got {aggregate!r}.")


COLUMNS: tuple[str, ...] = (
    "model", "quantization", "adapter", "size_axis", "size", "variant", "seed", "state", "rank", "task", "protocol",
    "rule", "unit", "better", "score", "items", "failures", "truncated", "trainable_parameters", "shipped_parameters",
    "code", "status", "reason", "folder",
)  # fmt: skip


def to_csv(sweep: Sweep, evidence: list[Evidence]) -> bytes:
    """Return the tidy rows as CSV."""
    protocols = {task.name: task.generation_id for task in sweep.tasks}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for one in evidence:
        for score in one.scores:
            writer.writerow(_identity(one) | _measured(one, score) | {"protocol": protocols[score.task]})
        lacking = {"": (one.status, one.reason)} if one.status != "ok" else one.unscored
        for task, (status, reason) in lacking.items():
            told = {"task": task, "protocol": protocols.get(task, ""), "status": status, "reason": reason}
            writer.writerow(_identity(one) | told)
    return text.getvalue().encode()


def _identity(one: Evidence) -> dict[str, Any]:
    run = one.subject
    axis, size = run.size or ("", "")
    return {
        "model": run.model, "quantization": run.quantization, "adapter": run.adapter or "", "variant": one.variant,
        "seed": "" if run.seed is None else run.seed, "size_axis": axis, "size": size, "folder": run.folder,
        "code": "kept" if run.kept else "", "trainable_parameters": one.train.get("trainable_parameters", ""),
    }  # fmt: skip


def _measured(one: Evidence, score: Score) -> dict[str, Any]:
    return {
        "state": score.state, "rank": "" if score.rank is None else score.rank, "task": score.task,
        "rule": score.rule, "unit": score.unit, "better": score.better, "score": repr(score.score),
        "items": len(score.items), "failures": score.failures, "truncated": score.truncated, "status": "ok",
        "shipped_parameters": one.parameters(score.rank) if one.train else "",
    }  # fmt: skip
