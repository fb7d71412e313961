"""Groups runs to lines: the seeds of one point of the sweep, looked at as a whole or at one rank."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.aggregation.comparison import Cell, Line, Note, Survival
from pipeline.aggregation.rows import Evidence, Score
from pipeline.aggregation.sweep import split_label

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

    @property
    def key(self) -> str:
        """Name the line among all lines."""
        return self.runs[0].subject.group + ("" if self.rank is None else f"@r{self.rank}")

    @property
    def footing(self) -> str | tuple[str, str]:
        """Return what the line has in common with the base that it is compared with."""
        subject = self.runs[0].subject
        return subject.base or (subject.model, subject.quantization)


def grouped(evidence: list[Evidence]) -> list[Group]:
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
    seen = sorted(
        (one.subject for one in evidence), key=lambda one: one.adapter is None
    )  # the sweep's order of formats
    models = list(dict.fromkeys(one.model for one in seen))
    adapters = list(dict.fromkeys(one.adapter for one in seen if one.adapter))
    formats = list(dict.fromkeys(one.quantization for one in seen))

    def place(group: Group) -> tuple[int, ...]:
        one = group.runs[0].subject
        size = one.size[1] if one.size else 0
        adapter = -1 if one.adapter is None else adapters.index(one.adapter)
        return models.index(one.model), adapter, size, group.rank or 0, formats.index(one.quantization)

    return place


def line(group: Group, cells: dict[str, Cell]) -> Line:
    """Return one line of the comparison with its cells."""
    first = group.runs[0].subject
    trained = next((run for run in group.runs if run.train.get("trainable_parameters") is not None), None)
    return Line(
        key=group.key, model=first.model, quantization=first.quantization, adapter=first.adapter,
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
    found: dict[str, list[dict[str, float | None]]] = {}
    for run in group.runs:
        for label, entry in run.merge.items():
            state, rank = split_label(label)
            if rank == group.rank:
                found.setdefault(state, []).append(entry)
    kept = Survival.model_fields
    return {
        state: Survival(**{key: _mean([entry.get(key) for entry in entries]) for key in kept})
        for state, entries in found.items()
    }


def _mean(values: list[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return rounded(np.mean(defined)) if defined else None


def rounded(number: float | np.floating) -> float:
    """Return a number without the decimals that must not reach a file."""
    return round(float(number), DIGITS)
