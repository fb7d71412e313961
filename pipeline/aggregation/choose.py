"""`python -m pipeline choose NAME --within 1`: the cheapest that is not worse than the best, on dev; then test says.

Of a run with several ranks it chooses the smallest rank, of a sweep the line that holds the fewest bytes of weights,
base and adapter. A contender is good enough where the whole paired interval of how far it is behind the best lies
within `--within`, in units of the score. The best and the choice are found on dev alone. Test rows are looked at once,
for the choice: it is confirmed where the same holds there, refuted where the whole interval lies outside, and open in
between. A choice that is the best of dev itself has nothing to be confirmed.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.aggregation import statistics
from pipeline.aggregation.contenders import Contender, Contest, contest
from pipeline.aggregation.groups import rounded
from pipeline.aggregation.rows import Score, summarize
from pipeline.aggregation.wording import MINUS, seeds
from pipeline.core import records
from pipeline.core.records import RecordError


@dataclass(frozen=True)
class Behind:
    """By how much one contender is behind another, with its interval, in units of the score."""

    by: float
    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """What was chosen, what it was held against, and how far each contender is behind that on dev."""

    contest: Contest
    within: float
    best: Contender
    chosen: Contender
    behind: list[Behind]
    on_test: Behind

    @property
    def verdict(self) -> str:
        """Return what test says of the choice, a key of VERDICTS."""
        if self.chosen is self.best:
            return "itself"
        if self.on_test.high <= self.within:
            return "confirmed"
        return "refuted" if self.on_test.low > self.within else "open"


VERDICTS = {
    "confirmed": "Confirmed on test", "refuted": "REFUTED on test", "open": "Not settled by test",
    "itself": "It is the best itself, so test has nothing to confirm",
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Choose, print the contenders and the choice, and keep a record where `--output` says."""
    given = _parser().parse_args(argv)
    if not given.within >= 0:
        raise RecordError(f"--within: must be 0 or more, in units of the score, got {given.within}.")
    choice = choose(contest(given.results, given.name), given.within)
    print(said(choice))
    if given.output:
        settings = {"name": given.name, "within": given.within, "report": choice.contest.sweep.report.node()}
        records.write(given.output, stage="choose", settings=settings, result=result(choice), about={})
    return 0


def choose(of: Contest, within: float) -> Choice:
    """Return the cheapest contender that is within reach of the best of dev."""
    sign = 1 if next(iter(of.contenders[0].dev.values())).better == "higher" else -1
    best = max(of.contenders, key=lambda one: (sign * _score(one.dev), -one.cost.weights, -one.cost.adapter))
    behind = [_behind(of, best.dev, one.dev) for one in of.contenders]
    fit = [one for one, gap in zip(of.contenders, behind, strict=True) if gap.high <= within]
    chosen = min(fit, key=lambda one: (one.cost.weights, one.cost.adapter))
    return Choice(of, within, best, chosen, behind, _behind(of, best.test, chosen.test))


def _score(scores: dict[str, Score]) -> float:
    return float(np.mean([one.score for one in scores.values()]))


def _behind(of: Contest, best: dict[str, Score], other: dict[str, Score]) -> Behind:
    """Return how far `other` is behind `best`: both see the same draws of items, and of seeds."""
    report, first = of.sweep.report, next(iter(best.values()))
    sign = 1 if first.better == "higher" else -1
    if len({one.items for scores in (best, other) for one in scores.values()}) > 1:
        raise RecordError(f"{of.sweep.name}: the contenders were scored on different items. Score them again.")
    items_DN = statistics.item_weights(len(first.items), report.draws, report.seed, first.task)
    means = []
    for scores in (best, other):
        stack_SN = np.stack([one.item_scores_N for one in scores.values()])
        weights_DS = statistics.seed_weights(len(stack_SN), report.draws, report.seed)
        means.append(summarize(statistics.bootstrap(stack_SN, items_DN, weights_DS), first.aggregate))
    low, high = statistics.interval(sign * (means[0] - means[1]), report.confidence)
    return Behind(rounded(sign * (_score(best) - _score(other))), rounded(low), rounded(high))


def result(choice: Choice) -> dict[str, Any]:
    """Return the choice as JSON."""
    of = choice.contest
    return {
        "dev": of.protocols[0], "test": of.protocols[1], "rule": of.rule, "state": of.sweep.report.state,
        "best": choice.best.line.name, "chosen": choice.chosen.line.name, "rank": choice.chosen.line.rank,
        "folders": list(choice.chosen.line.folders), "test_verdict": choice.verdict,
        "test_behind": vars(choice.on_test), "price_per_hour": of.sweep.price_per_hour,
        "contenders": [
            {"name": one.line.name, "rank": one.line.rank, "dev": rounded(_score(one.dev)),
             "test": rounded(_score(one.test)), "dev_behind": vars(gap)} | vars(one.cost)
            for one, gap in zip(of.contenders, choice.behind, strict=True)
        ],
    }  # fmt: skip


def said(choice: Choice) -> str:
    """Return the contenders, a line each, and the choice in words."""
    of, unit = choice.contest, next(iter(choice.best.dev.values())).unit
    report = of.sweep.report
    rows = [_heads(of)] + [_row(choice, one, gap) for one, gap in zip(of.contenders, choice.behind, strict=True)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    table = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    gap = choice.on_test
    lines = [
        f"{of.rule} ({unit}), {report.state}; dev: {of.protocols[0]}, n = {_items(choice.best.dev)}; "
        f"test: {of.protocols[1]}, n = {_items(choice.best.test)}; {seeds({len(one.dev) for one in of.contenders})}",
        *table,
        f"* chosen, = best on dev. Behind: the best minus the line, with the paired {report.confidence:.0%} interval "
        "(bootstrap over items and seeds). Weights: base and adapter. Times are those of the evaluation on test and of "
        "training, whatever else ran beside them.",
        f"Best on dev: {choice.best.line.name}. Chosen: {choice.chosen.line.name}, the cheapest whose interval ends "
        f"within {choice.within:g} ({unit}).",
        f"{VERDICTS[choice.verdict]}: there it is {_number(gap.by)} behind ({_number(gap.low)} to {_number(gap.high)})."
        if choice.verdict != "itself"
        else f"{VERDICTS['itself']}; its score there is {_score(choice.chosen.test):.4g}.",
    ]
    if of.sweep.price_per_hour is None:
        lines.append(
            "No prices: say overrides='hardware.price_per_hour=2.5' to snakemake, which plans the table again and "
            "makes nothing else."
        )
    return "\n".join(lines)


def _heads(of: Contest) -> list[str]:
    priced = ["price of 1000", "price of training"] if of.sweep.price_per_hour else []
    return ["", "adapter", "weights", "GPU peak", "s for 1000", *priced, "dev", "behind", "from", "to", "test"]


def _row(choice: Choice, one: Contender, gap: Behind) -> list[str]:
    cost, price = one.cost, choice.contest.sweep.price_per_hour
    priced = [_price(price, cost.serving), _price(price, cost.training)] if price else []
    marks = "".join(mark if who is one else " " for mark, who in (("*", choice.chosen), ("=", choice.best)))
    return [
        f"{marks} {one.line.name}", _megabytes(cost.adapter), _megabytes(cost.weights),
        _megabytes(cost.memory), f"{cost.serving:.3g}", *priced,
        f"{_score(one.dev):.4g}", *map(_number, (gap.by, gap.low, gap.high)), f"{_score(one.test):.4g}",
    ]  # fmt: skip


def _items(scores: dict[str, Score]) -> int:
    return len(next(iter(scores.values())).items)


def _megabytes(count: int | None) -> str:
    return "n/a" if count is None else f"{count / 1e6:.4g} MB"


def _price(per_hour: float, seconds: float) -> str:
    return f"{per_hour * seconds / 3600:.3g}"


def _number(value: float) -> str:
    return f"{value:+.2f}".replace("-", MINUS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline choose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="a sweep's table, or a run with several ranks (its folder, or how that begins)")
    parser.add_argument("--within", type=float, required=True, help="how far behind is good enough (score's unit)")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--output", type=Path, help="a file for the record of the choice")
    return parser
