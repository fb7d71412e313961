"""Sample replies: the same test items, answered by the base, by each method as trained, and in each merged state."""

from dataclasses import dataclass, field

import numpy as np

from pipeline.aggregation.comparison import Column, Comparison, Line
from pipeline.aggregation.sweep import Subject, Sweep
from pipeline.core.records import RecordError
from pipeline.core.settings import SettingsError
from pipeline.tasks import rows

METHODS_SHOWN = 8


@dataclass(frozen=True)
class Reply:
    """One reply and what the leading rule gives it."""

    text: str
    score: float
    cut_short: bool


@dataclass(frozen=True)
class Sample:
    """One test item: its row of the data, and the replies by name of the line and state."""

    item: str
    fields: dict[str, str]
    replies: dict[str, dict[str, Reply]]


@dataclass(frozen=True)
class Samples:
    """All samples, and what could not be read."""

    states: tuple[str, ...] = ()
    samples: list[Sample] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answers:
    """All replies of one line's first whole seed: state -> item -> reply."""

    by_state: dict[str, dict[str, Reply]]
    split: str


def choose(sweep: Sweep, comparison: Comparison) -> Samples:
    """Return the items that tell most: won by training, lost by merging, and never learned, in turn."""
    column = comparison.target
    if column is None:
        return Samples()
    found = Samples(("base", *comparison.states))
    answers: dict[str, Answers] = {}
    for line in _shown(comparison, column):
        try:
            answers[line.key] = _answers(sweep, comparison, column, line)
        except (RecordError, SettingsError) as error:
            found.unread.append(f"{line.name}: {str(error).replace(f'{sweep.results}/', '')}")
    items = _telling(answers, column)[: sweep.report.samples]
    rows_by_item = _rows(sweep, column, next(iter(answers.values())).split, found) if items else {}
    names = {line.key: line.name + f", seed {_seed(line, column)}" for line in _shown(comparison, column)}
    for item in items:
        replies = {
            names[key]: {state: of[item] for state, of in one.by_state.items() if item in of}
            for key, one in answers.items()
        }
        found.samples.append(Sample(item, rows_by_item.get(item, {}), replies))
    return found


def _shown(comparison: Comparison, column: Column) -> list[Line]:
    """Return for each method its best line, among those that were scored in most states."""
    best: dict[tuple[str, str | None], Line] = {}
    for line in comparison.lines:
        if column.key in line.cells:
            rival = best.setdefault((line.model, line.adapter), line)
            best[line.model, line.adapter] = max(rival, line, key=lambda one: _standing(comparison, column, one))
    return list(best.values())[:METHODS_SHOWN]


def _standing(comparison: Comparison, column: Column, line: Line) -> tuple[int, float]:
    states = sum(column.sibling(state) in line.cells for state in comparison.states)
    return states, column.sign * line.cells[column.key].score


def _seed(line: Line, column: Column) -> str:
    return min(line.cells[column.key].by_seed, key=lambda seed: (len(seed), seed))


def _answers(sweep: Sweep, comparison: Comparison, column: Column, line: Line) -> Answers:
    """Read the replies of one line, and of its base alone.

    Raises:
        RecordError: a file is missing, or is not the one that was scored.
    """
    run = next(one for one in sweep.runs if one.folder in line.folders and str(one.seed) == _seed(line, column))
    at = "" if line.rank is None else f"@r{line.rank}"
    answers = _read(sweep, run, column, {state + at: state for state in comparison.states})
    footing = (run.base, run.model, run.quantization)
    base = next((b for b in sweep.bases if (b.base, b.model, b.quantization) == footing), None)
    if base is not None:
        answers.by_state.update(_read(sweep, base, column, {"base": "base"}).by_state)
    return answers


def _read(sweep: Sweep, subject: Subject, column: Column, states: dict[str, str]) -> Answers:
    """Read what one run or base replied and what the rule gave it, for labels -> states."""
    expected = subject.tasks[column.task]
    evaluated = sweep.fetch(expected, "evaluate").result
    scored = sweep.fetch(subject.records["score"], "score").result["tasks"][column.task]
    if evaluated["kind"] != "replies":
        return Answers({}, "")
    labels = scored["rules"][column.rule]["states"]
    items = [str(item) for item in scored["items"]]
    worth = {label: dict(zip(items, labels[label]["per_item"], strict=True)) for label in states if label in labels}
    by_state: dict[str, dict[str, Reply]] = {states[label]: {} for label in worth}
    replies = (sweep.results / expected.path).with_suffix(".jsonl")
    for row in rows.read(replies, evaluated["items_sha256"]):
        label, item = row["state"], str(row["item"])
        if label in worth:
            by_state[states[label]][item] = Reply(row["reply"].strip(), worth[label][item], row["stop"] == "length")
    return Answers(by_state, evaluated["generation"]["split"])


def _telling(answers: dict[str, Answers], column: Column) -> list[str]:
    """Order the items by what they tell, the three kinds in turn; equal ones stay in the order of the test."""
    methods = [one.by_state for one in answers.values() if "trained" in one.by_state]
    bases = [one.by_state["base"] for one in answers.values() if "base" in one.by_state]
    if not methods:
        return []
    items = list(methods[0]["trained"])
    trained = _worth(items, [one["trained"] for one in methods])
    base = _worth(items, bases) if bases else trained
    merged = [of for one in methods for state, of in one.items() if state not in ("base", "trained")]
    worst = np.min([_worth(items, [of]) for of in merged], axis=0) if merged else trained
    kinds = [column.sign * (trained - base), column.sign * (trained - worst), -column.sign * trained]
    orders = [np.argsort(-kind, kind="stable").tolist() for kind in kinds]
    turns = [index for turn in zip(*orders, strict=True) for index in turn]
    return [items[index] for index in dict.fromkeys(turns)]


def _worth(items: list[str], replies: list[dict[str, Reply]]) -> np.ndarray:
    """Return the mean over several sets of replies of what the rule gave each item."""
    return np.mean([[of[item].score if item in of else 0.0 for item in items] for of in replies], axis=0)


def _rows(sweep: Sweep, column: Column, split: str, found: Samples) -> dict[str, dict[str, str]]:
    """Return what the data says of each item, by item; nothing if the data is not there."""
    try:
        manifest = sweep.fetch(sweep.data[column.task], "prepare_data")
        data = rows.split(manifest.path, split)
    except RecordError as error:
        found.unread.append(f"questions of {column.task}: {str(error).replace(f'{sweep.results}/', '')}")
        return {}
    return {str(row["id"]): {key: str(value) for key, value in row.items() if key != "id"} for row in data}
