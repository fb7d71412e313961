"""`python -m pipeline learning-rates PLAN`: the learning rate of each method, chosen on dev from one grid for all.

Every method gets the same grid and the same effort; test rows are never read. A rate is chosen by the mean dev loss
over sizes and seeds, so that all sizes of a method share one rate and no rank is favored by a rate of its own. A rate
at which any run diverged is out.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

from pipeline.aggregation.sweep import Subject, Sweep, load
from pipeline.core import records
from pipeline.core.records import RecordError

Losses = dict[str, dict[float, list[float | None]]]
"""Method -> learning rate -> dev loss of each size and seed in nats a token; None where the run diverged."""


def main(argv: list[str]) -> int:
    """Choose, write the record, and print the grid and the lines for a sweep's `per_adapter`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline learning-rates", description=__doc__)
    parser.add_argument("plan", type=Path, help="results/tables/<sweep>/sweep.json of a sweep over learning rates")
    parser.add_argument("--output", type=Path, default=Path("docs/results/learning-rates.json"))
    given = parser.parse_args(argv)
    sweep = load(given.plan)
    losses, about = _collect(sweep)
    _keep_others(given.output, set(losses))
    result = {"grid": sorted({rate for rates in losses.values() for rate in rates}), "methods": choose(losses)}
    settings = {"sweep": sweep.name, "overrides": list(sweep.overrides)}
    records.write(given.output, stage="learning_rates", settings=settings, result=result, about=about)
    for name, method in result["methods"].items():
        means = "  ".join(f"{rate:g}: {_shown(mean)}" for rate, mean in method["mean_dev_loss"])
        print(f"{name:10} chosen {method['chosen']:g}{' (edge of the grid)' if method['at_edge'] else ''}   {means}")
    return 0


def _keep_others(path: Path, methods: set[str]) -> None:
    """Refuse to replace a record that holds methods which this sweep has not.

    Raises:
        RecordError: names them, and what to do.
    """
    if path.exists() and (lost := set(records.read(path, "learning_rates").result["methods"]) - methods):
        raise RecordError(
            f"{path}: also holds {', '.join(sorted(lost))}, which this sweep has not. Sweep them all together "
            "(one grid for all), or say --output FILE."
        )


def choose(losses: Losses) -> dict[str, dict[str, Any]]:
    """Return of each method the rate of the least mean dev loss, the means, and all losses.

    Raises:
        RecordError: every rate of some method diverged.
    """
    found = {}
    for name, rates in sorted(losses.items()):
        means = {rate: None if None in each else sum(each) / len(each) for rate, each in sorted(rates.items())}  # type: ignore[arg-type]
        finite = {rate: mean for rate, mean in means.items() if mean is not None}
        if not finite:
            raise RecordError(f"{name}: diverged at every learning rate of the grid ({', '.join(map(str, rates))}).")
        chosen = min(finite, key=lambda rate: finite[rate])
        found[name] = {
            "chosen": chosen,
            "at_edge": chosen in (min(means), max(means)),
            "mean_dev_loss": [list(pair) for pair in means.items()],
            "dev_losses": [[rate, each] for rate, each in sorted(rates.items())],
        }
    return found


def _collect(sweep: Sweep) -> tuple[Losses, dict[str, Any]]:
    losses: Losses = defaultdict(lambda: defaultdict(list))
    about: dict[str, Any] = {}
    for run in sweep.runs:
        record = sweep.fetch(run.records["finetune"], "finetune")
        losses[_adapter(run)][run.settings["training"]["learning_rate"]].append(record.result["dev_loss"])
        about = {key: record.about[key] for key in ("commit", "versions", "device", "time")}
    return losses, about


def _adapter(run: Subject) -> str:
    assert run.adapter is not None
    return run.adapter


def _shown(mean: float | None) -> str:
    return "diverged" if mean is None else f"{mean:.4f}"
