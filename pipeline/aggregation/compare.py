"""Builds the comparison from the evidence: intervals, tests and marks, column by column."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pipeline.aggregation import statistics
from pipeline.aggregation.comparison import Cell, Column, Comparison, TaskInfo
from pipeline.aggregation.groups import Group, grouped, line, rounded
from pipeline.aggregation.rows import Evidence, Score, missing, summarize
from pipeline.aggregation.settings import Report
from pipeline.aggregation.sweep import Sweep, TaskPlan
from pipeline.core.records import RecordError
from pipeline.core.settings import SettingsError, nearest

PAIRS_SHOWN = 60
"""Above so many lines nobody reads a matrix of pairs."""


@dataclass(frozen=True)
class Measured:
    """One column's numbers, by position of the line; bases stand in every column, to be compared with."""

    scores: dict[int, dict[str, Score]]
    stacks: dict[int, np.ndarray]
    means: dict[int, np.ndarray]


@dataclass(frozen=True)
class Contest:
    """The lines of one column that may be called best, and the corrected p of each pair of them."""

    rivals: list[int]
    p_KK: np.ndarray


def compare(sweep: Sweep, evidence: list[Evidence]) -> Comparison:
    """Compute the comparison of a sweep from what was found of it."""
    report = sweep.report
    if report.state not in sweep.states:
        allowed = ", ".join(sweep.states)
        hint = nearest(report.state, list(sweep.states))
        raise SettingsError(f"report.state: must be a state of the sweep ({allowed}), got {report.state!r}.{hint}")
    groups = grouped(evidence)
    columns = _columns(sweep, evidence)
    cells: list[dict[str, Cell]] = [{} for _ in groups]
    pairs: dict[str, dict[str, float]] = {}
    for column in columns:
        measured = _measure(column, groups, report)
        contests = _contests(groups, measured)
        for position, cell in _cells(column, groups, measured, contests, report).items():
            cells[position][column.key] = cell
        if column.leading and column.role == "target" and column.state == report.state:
            pairs |= _spelled_out(groups, contests)
    return Comparison(
        name=sweep.name, overrides=sweep.overrides, state=report.state, states=sweep.states,
        tasks=tuple(TaskInfo(name=t.name, protocol=t.generation_id, role=t.role) for t in sweep.tasks),
        confidence=report.confidence, draws=report.draws, seed=report.seed, missing=tuple(missing(evidence)),
        columns=tuple(columns), lines=tuple(map(line, groups, cells)),
        p_pairs=pairs,
    )  # fmt: skip


def _columns(sweep: Sweep, evidence: list[Evidence]) -> list[Column]:
    """Return the columns in which any run or its base has a number, in the order of tasks, rules and states."""
    known = {(score.task, score.rule): score for one in evidence for score in one.scores}
    found = {(score.task, score.rule, score.state) for one in evidence for score in one.scores}
    return [
        _column(task, known[task.name, rule], state)
        for task in sweep.tasks
        for rule in task.scoring
        for state in ("base", *sweep.states)
        if found & {(task.name, rule, state), (task.name, rule, "base")}
    ]


def _column(task: TaskPlan, score: Score, state: str) -> Column:
    return Column(
        task=task.name, protocol=task.generation_id, role=task.role, rule=score.rule, unit=score.unit,
        better=score.better, state=state, leading=score.rule == task.scoring[0],
    )  # fmt: skip


def _measure(column: Column, groups: list[Group], report: Report) -> Measured:
    """Stack the item scores of every line of a column and bootstrap those of a model on the same draws of items."""
    scores = {}
    for position, group in enumerate(groups):
        found = group.scores.get((column.task, column.rule, "base" if group.is_base else column.state))
        if found:
            scores[position] = found
    stacks = {at: np.stack([one.item_scores_N for one in found.values()]) for at, found in scores.items()}
    _same_items(column, groups, scores)
    items_DN = {
        count: statistics.item_weights(count, report.draws, report.seed, column.task)
        for count in {stack_SN.shape[1] for stack_SN in stacks.values()}
    }
    weights = {
        count: statistics.seed_weights(count, report.draws, report.seed)
        for count in {len(stack_SN) for stack_SN in stacks.values()}
    }
    aggregate = next(one.aggregate for found in scores.values() for one in found.values())
    means = {
        at: summarize(statistics.bootstrap(stack_SN, items_DN[stack_SN.shape[1]], weights[len(stack_SN)]), aggregate)
        for at, stack_SN in stacks.items()
    }
    return Measured(scores, stacks, means)


def _same_items(column: Column, groups: list[Group], scores: dict[int, dict[str, Score]]) -> None:
    """Refuse to compare lines of one model that were not scored on the same items.

    Those of two models may differ: chunks are cut from the tokens of a model's own tokenizer.
    """
    lists: dict[str, set[tuple[str, ...]]] = {}
    for at, found in scores.items():
        lists.setdefault(groups[at].model, set()).update(one.items for one in found.values())
    for model, of in lists.items():
        if len(of) != 1:
            sizes = ", ".join(sorted(str(len(items)) for items in of))
            raise RecordError(
                f"{column.key}: runs of {model} were scored on different items (lists of {sizes}). Score them again."
            )


def _contests(groups: list[Group], measured: Measured) -> list[Contest]:
    """Compare all lines of each model that may be called best."""
    contests = []
    for model in dict.fromkeys(group.model for group in groups):
        rivals = [at for at in measured.stacks if groups[at].competes and groups[at].model == model]
        # With one seed each, what looks best is as often luck: a test simulates it.
        if len(rivals) > 1 and any(len(measured.stacks[at]) > 1 for at in rivals):
            contests.append(Contest(rivals, statistics.pairwise([measured.stacks[at] for at in rivals])))
    return contests


def _spelled_out(groups: list[Group], contests: list[Contest]) -> dict[str, dict[str, float]]:
    """Return corrected p by the keys of two lines, of contests small enough to be shown."""
    return {
        groups[at].key: {groups[to].key: rounded(p) for to, p in zip(one.rivals, p_K, strict=True) if to != at}
        for one in contests
        if len(one.rivals) <= PAIRS_SHOWN
        for at, p_K in zip(one.rivals, one.p_KK, strict=True)
    }


def _cells(
    column: Column, groups: list[Group], measured: Measured, contests: list[Contest], report: Report
) -> dict[int, Cell]:
    """Return the cells of one column by position of the line."""
    shown = {at: found for at, found in measured.scores.items() if groups[at].is_base == (column.state == "base")}
    bases = {groups[at].footing: at for at in measured.scores if groups[at].is_base}
    marks = _marks(column, measured, contests, 1 - report.confidence)
    shifts = _shifts(column, groups, measured)
    spread = partial(statistics.interval, confidence=report.confidence)
    cells = {}
    for at, found in shown.items():
        cell: dict[str, Any] = {
            "score": _score(found), "by_seed": {seed: one.score for seed, one in found.items()},
            "items": len(next(iter(found.values())).items),
            "failures": sum(one.failures for one in found.values()),
            "truncated": sum(one.truncated for one in found.values()),
        }  # fmt: skip
        cell["low"], cell["high"] = map(rounded, spread(measured.means[at]))
        base = bases.get(groups[at].footing)
        if base is not None and not groups[at].is_base:
            cell["gain"] = rounded(cell["score"] - _score(measured.scores[base]))
            cell["gain_low"], cell["gain_high"] = map(rounded, spread(measured.means[at] - measured.means[base]))
        cells[at] = Cell(**cell | marks.get(at, {}) | _shift_mark(column, shifts.get(at), 1 - report.confidence))
    return cells


def _score(found: dict[str, Score]) -> float:
    """Return the mean over seeds of the scores, each in the unit of the score."""
    return rounded(np.mean([one.score for one in found.values()]))


def _marks(column: Column, measured: Measured, contests: list[Contest], alpha: float) -> dict[int, dict[str, Any]]:
    """Mark the best of each contest: alone only if it differs from all the others beyond noise."""
    marks: dict[int, dict[str, Any]] = {}
    for contest in contests:
        standing = [column.sign * _score(measured.scores[at]) for at in contest.rivals]
        p_K = contest.p_KK[int(np.argmax(standing))]
        mark = "best" if (p_K >= alpha).sum() == 1 else "tie"
        for at, p in zip(contest.rivals, p_K, strict=True):
            marks[at] = {"p_best": rounded(p), "mark": mark if p >= alpha else ""}
    return marks


def _shifts(column: Column, groups: list[Group], measured: Measured) -> dict[int, tuple[float, float]]:
    """Return, for a merged state, (difference to the trained one, p corrected within its model) by position."""
    if column.state in ("base", "trained"):
        return {}
    differences = {}
    for at, found in measured.scores.items():
        trained = groups[at].scores.get((column.task, column.rule, "trained"), {})
        both = [found[seed].item_scores_N - trained[seed].item_scores_N for seed in found if seed in trained]
        if both:
            differences[at] = np.stack(both)
    shifts = {}
    for model in dict.fromkeys(groups[at].model for at in differences):
        own = {at: one for at, one in differences.items() if groups[at].model == model}
        p_P = statistics.shifts(list(own.values()))
        shifts |= {at: (float(one.mean()), float(p)) for (at, one), p in zip(own.items(), p_P, strict=True)}
    return shifts


def _shift_mark(column: Column, shift: tuple[float, float] | None, alpha: float) -> dict[str, Any]:
    if shift is None:
        return {}
    difference, p = shift
    word = "" if p >= alpha else "better" if difference * column.sign > 0 else "worse"
    return {"shift": word, "p_shift": rounded(p)}
