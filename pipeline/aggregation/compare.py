"""Builds the comparison from the evidence: groups seeds, computes intervals, tests and marks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from pipeline.aggregation import statistics
from pipeline.aggregation.comparison import Cell, Column, Comparison, Line, Note, Survival, TaskInfo
from pipeline.aggregation.rows import Evidence, Score, missing, summarize
from pipeline.aggregation.settings import Report
from pipeline.aggregation.sweep import Sweep, TaskPlan, split_label
from pipeline.core.records import RecordError
from pipeline.core.settings import SettingsError, nearest

PAIRS_SHOWN = 60
"""Above so many lines nobody reads a matrix of pairs."""
DIGITS = 6
"""Decimals kept: what different processors make of the last bits of a sum must not reach a file."""


@dataclass(frozen=True)
class Group:
    """The runs of one line, and the rank they are looked at (None: the whole)."""

    runs: tuple[Evidence, ...]
    rank: int | None

    @property
    def is_base(self) -> bool:
        """Return whether this is a base alone."""
        return self.runs[0].subject.adapter is None

    @property
    def model(self) -> str:
        """Return the name of the model; lines of two models are not compared."""
        return self.runs[0].subject.model

    @property
    def competes(self) -> bool:
        """Return whether the line may be called best: a mean over the seeds that survived flatters."""
        return not self.is_base and not any(run.problems() for run in self.runs)

    @cached_property
    def scores(self) -> dict[tuple[str, str, str], dict[str, Score]]:
        """Return (task, rule, state) -> seed -> score."""
        found: dict[tuple[str, str, str], dict[str, Score]] = {}
        for run in self.runs:
            for one in run.scores:
                if one.rank == self.rank:
                    found.setdefault((one.task, one.rule, one.state), {})[str(run.subject.seed)] = one
        return found


@dataclass(frozen=True)
class Measured:
    """One column's numbers, by position of the line; bases stand in every column, to be compared with."""

    scores: dict[int, dict[str, Score]]
    stacks: dict[int, np.ndarray]
    means: dict[int, np.ndarray]


def compare(sweep: Sweep, evidence: list[Evidence], report: Report) -> Comparison:
    """Compute the comparison of a sweep from what was found of it."""
    if report.state not in sweep.states:
        allowed = ", ".join(sweep.states)
        hint = nearest(report.state, list(sweep.states))
        raise SettingsError(f"report.state: must be a state of the sweep ({allowed}), got {report.state!r}.{hint}")
    groups = _groups(evidence)
    columns = _columns(sweep, evidence)
    cells: list[dict[str, Cell]] = [{} for _ in groups]
    pairs: dict[str, dict[str, float]] = {}
    for column in columns:
        measured = _measure(column, groups, report)
        p_pairs = _pairs(groups, measured)
        for position, cell in _cells(column, groups, measured, p_pairs, report).items():
            cells[position][column.key] = cell
        if column.leading and column.role == "target" and column.state == report.state:
            pairs |= {_key(groups[i]): {_key(groups[j]): p for j, p in of.items()} for i, of in p_pairs.items()}
    return Comparison(
        name=sweep.name, overrides=sweep.overrides, state=report.state, states=sweep.states,
        tasks=tuple(TaskInfo(name=t.name, protocol=t.generation_id, role=t.role) for t in sweep.tasks),
        confidence=report.confidence, draws=report.draws, seed=report.seed, missing=tuple(missing(evidence)),
        columns=tuple(columns), lines=tuple(map(_line, groups, cells)),
        p_pairs=pairs if len(pairs) <= PAIRS_SHOWN else {},
    )  # fmt: skip


def _groups(evidence: list[Evidence]) -> list[Group]:
    """Return the lines in the order of the table: by model its bases, then method, size, rank and format."""
    together: dict[str, list[Evidence]] = {}
    for one in evidence:
        together.setdefault(one.subject.group, []).append(one)
    place = _order(evidence)
    groups = []
    for runs in together.values():
        ranks = sorted({score.rank for run in runs for score in run.scores}, key=lambda rank: rank or 0)
        groups += [Group(tuple(runs), rank) for rank in ranks or [None]]
    return sorted(groups, key=place)


def _order(evidence: list[Evidence]) -> Callable[[Group], tuple[int, ...]]:
    seen = [one.subject for one in evidence]
    models = list(dict.fromkeys(one.model for one in seen))
    adapters = list(dict.fromkeys(one.adapter for one in seen))
    formats = list(dict.fromkeys(one.quantization for one in seen))

    def place(group: Group) -> tuple[int, ...]:
        one = group.runs[0].subject
        size = one.size[1] if one.size else 0
        adapter = -1 if one.adapter is None else adapters.index(one.adapter)
        return models.index(one.model), adapter, size, group.rank or 0, formats.index(one.quantization)

    return place


def _columns(sweep: Sweep, evidence: list[Evidence]) -> list[Column]:
    """Return the columns for which there is any number, in the order of tasks, rules and states."""
    known = {(score.task, score.rule): score for one in evidence for score in one.scores}
    found = {(score.task, score.rule, score.state) for one in evidence for score in one.scores}
    return [
        _column(task, known[task.name, rule], state)
        for task in sweep.tasks
        for rule in task.scoring
        for state in ("base", *sweep.states)
        if (task.name, rule, state) in found
    ]


def _column(task: TaskPlan, score: Score, state: str) -> Column:
    return Column(
        task=task.name, protocol=task.generation_id, role=task.role, rule=score.rule, unit=score.unit,
        better=score.better, state=state, leading=score.rule == task.scoring[0],
    )  # fmt: skip


def _measure(column: Column, groups: list[Group], report: Report) -> Measured:
    """Stack the item scores of every line of a column and bootstrap them all on the same draws of items."""
    scores = {}
    for position, group in enumerate(groups):
        found = group.scores.get((column.task, column.rule, "base" if group.is_base else column.state))
        if found:
            scores[position] = found
    stacks = {at: np.stack([one.item_scores_N for one in found.values()]) for at, found in scores.items()}
    items = _same_items(column, scores)
    items_DN = statistics.item_weights(items, report.draws, report.seed, column.task)
    weights = {
        count: statistics.seed_weights(count, report.draws, report.seed)
        for count in {len(stack_SN) for stack_SN in stacks.values()}
    }
    aggregate = next(one.aggregate for found in scores.values() for one in found.values())
    means = {
        at: summarize(statistics.bootstrap(stack_SN, items_DN, weights[len(stack_SN)]), aggregate)
        for at, stack_SN in stacks.items()
    }
    return Measured(scores, stacks, means)


def _same_items(column: Column, scores: dict[int, dict[str, Score]]) -> int:
    """Return how many items the column has, and refuse to compare lines that were not scored on the same ones."""
    lists = {one.items for found in scores.values() for one in found.values()}
    if len(lists) != 1:
        sizes = ", ".join(sorted(str(len(items)) for items in lists))
        raise RecordError(f"{column.key}: runs were scored on different items (lists of {sizes}). Score them again.")
    return len(lists.pop())


def _pairs(groups: list[Group], measured: Measured) -> dict[int, dict[int, float]]:
    """Return the corrected p of each pair of competing lines, model by model."""
    found: dict[int, dict[int, float]] = {}
    for model in dict.fromkeys(group.model for group in groups):
        rivals = [at for at in measured.stacks if groups[at].competes and groups[at].model == model]
        if not any(len(measured.stacks[at]) > 1 for at in rivals):
            continue  # with one seed each, what looks best is as often luck: see the simulation in the tests
        p_KK = statistics.pairwise([measured.stacks[at] for at in rivals])
        for row, at in enumerate(rivals):
            found[at] = {other: _rounded(p_KK[row, k]) for k, other in enumerate(rivals) if other != at}
    return found


def _cells(
    column: Column, groups: list[Group], measured: Measured, p_pairs: dict[int, dict[int, float]], report: Report
) -> dict[int, Cell]:
    """Return the cells of one column by position of the line."""
    shown = {at: found for at, found in measured.scores.items() if groups[at].is_base == (column.state == "base")}
    bases = {_footing(groups[at]): at for at in measured.scores if groups[at].is_base}
    marks = _marks(column, measured, p_pairs, 1 - report.confidence)
    shifts = _shifts(column, groups, measured)
    spread = partial(statistics.interval, confidence=report.confidence)
    cells = {}
    for at, found in shown.items():
        cell = {
            "score": _score(found), "by_seed": {seed: one.score for seed, one in found.items()},
            "items": len(next(iter(found.values())).items),
            "failures": sum(one.failures for one in found.values()),
            "truncated": sum(one.truncated for one in found.values()),
        }  # fmt: skip
        cell["low"], cell["high"] = map(_rounded, spread(measured.means[at]))
        base = bases.get(_footing(groups[at]))
        if base is not None and not groups[at].is_base:
            cell["gain"] = _rounded(cell["score"] - _score(measured.scores[base]))
            cell["gain_low"], cell["gain_high"] = map(_rounded, spread(measured.means[at] - measured.means[base]))
        cells[at] = Cell(**cell | marks.get(at, {}) | _shift_mark(column, shifts.get(at), 1 - report.confidence))
    return cells


def _footing(group: Group) -> tuple[str, str]:
    """Return what a line and the base that it is compared with have in common."""
    return group.model, group.runs[0].subject.quantization


def _score(found: dict[str, Score]) -> float:
    """Return the mean over seeds of the scores, each in the unit of the score."""
    return _rounded(np.mean([one.score for one in found.values()]))


def _marks(
    column: Column, measured: Measured, p_pairs: dict[int, dict[int, float]], alpha: float
) -> dict[int, dict[str, str | float]]:
    """Mark the best of each set of rivals: alone only if it differs from all of them beyond noise."""
    marks: dict[int, dict[str, str | float]] = {}
    for rivals in {frozenset([at, *others]) for at, others in p_pairs.items() if others}:
        best = max(sorted(rivals), key=lambda at: column.sign * _score(measured.scores[at]))
        p_best = {at: 1.0 if at == best else p_pairs[at][best] for at in rivals}
        leaders = [at for at in rivals if p_best[at] >= alpha]
        mark = "best" if len(leaders) == 1 else "tie"
        marks |= {at: {"p_best": p_best[at], "mark": mark if at in leaders else ""} for at in rivals}
    return marks


def _shifts(column: Column, groups: list[Group], measured: Measured) -> dict[int, tuple[float, float]]:
    """Return, for a merged state, (difference to the trained one, corrected p) by position of the line."""
    if column.state in ("base", "trained"):
        return {}
    differences = {}
    for at, found in measured.scores.items():
        trained = groups[at].scores.get((column.task, column.rule, "trained"), {})
        both = [found[seed].item_scores_N - trained[seed].item_scores_N for seed in found if seed in trained]
        if both:
            differences[at] = np.stack(both)
    p_P = statistics.shifts(list(differences.values()))
    return {at: (float(one.mean()), float(p)) for (at, one), p in zip(differences.items(), p_P, strict=True)}


def _shift_mark(column: Column, shift: tuple[float, float] | None, alpha: float) -> dict[str, str | float]:
    if shift is None:
        return {}
    difference, p = shift
    word = "" if p >= alpha else "better" if difference * column.sign > 0 else "worse"
    return {"shift": word, "p_shift": _rounded(p)}


def _line(group: Group, cells: dict[str, Cell]) -> Line:
    first = group.runs[0].subject
    trained = next((run for run in group.runs if run.train.get("trainable_parameters") is not None), None)
    return Line(
        key=_key(group), model=first.model, quantization=first.quantization, adapter=first.adapter,
        method=first.adapter_label or "base alone", size_axis=first.size[0] if first.size else None,
        size=first.size[1] if first.size else None, rank=group.rank, variant=group.runs[0].variant,
        seeds=tuple(str(run.subject.seed) for run in group.runs if run.subject.seed is not None),
        folders=tuple(run.subject.folder for run in group.runs),
        trained_parameters=trained.train["trainable_parameters"] if trained else None,
        shipped_parameters=trained.parameters(group.rank) if trained else None,
        kept=tuple(dict.fromkeys(stage for run in group.runs for stage in run.subject.kept)),
        notes=tuple(
            Note(status=status, where=run.subject.name, reason=reason)
            for run in group.runs for status, reason in run.problems()
        ),
        skipped={split_label(label)[0]: reason for run in group.runs for label, reason in run.skipped.items()},
        survival=_survival(group), cells=cells,
    )  # fmt: skip


def _survival(group: Group) -> dict[str, Survival]:
    """Return, for each merged state, how much of the update it kept, mean over seeds."""
    found: dict[str, list[dict[str, float]]] = {}
    for run in group.runs:
        for label, entry in run.merge.items():
            state, rank = split_label(label)
            if rank == group.rank:
                found.setdefault(state, []).append(entry)
    kept = Survival.model_fields
    return {
        state: Survival(**{key: _rounded(np.mean([entry[key] for entry in entries])) for key in kept})
        for state, entries in found.items()
    }


def _key(group: Group) -> str:
    return group.runs[0].subject.group + ("" if group.rank is None else f"@r{group.rank}")


def _rounded(number: float | np.floating) -> float:
    return round(float(number), DIGITS)
