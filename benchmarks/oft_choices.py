"""Trains and scores conf/sweep/oft-choices.yaml in one process, and writes what it found.

    python -m benchmarks.oft_choices

It needs the model, base and data of a finished default sweep in results/. The record is docs/results/oft-choices.json;
docs/oft-choices.md is made from it and from nothing else.
"""

import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.core import provenance, records
from pipeline.core.machine import ready
from pipeline.core.settings import build
from pipeline.evaluation.score import scores
from pipeline.evaluation.states import Subject, evaluate
from pipeline.models.load import Base, load_base
from pipeline.models.states import Label
from pipeline.stages.finetune import pairs_of, plan_of
from pipeline.sweeps import plan as plans
from pipeline.tasks import rows
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.finetune import finetune

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "docs/results/oft-choices.json", ROOT / "docs/oft-choices.md"
SWEEP = "oft-choices"


def main() -> None:
    """Run the sweep, write the record and its page."""
    started = time.time()
    ready("cpu", 1)
    plan = plans.load({"sweep": SWEEP})
    found: dict[str, list[dict[str, Any]]] = {}
    for run in plan.runs:
        inputs = {name: plan.root / job.record for name, job in run.finetune.needs.items()}
        measured = _measured(run.finetune.settings, plan.grid.tasks["gsm8k-demo"].node, inputs)
        found.setdefault(_variant(run.point.settings["adapter"]), []).append(measured)
        print(run.point.title, {key: value for key, value in measured.items() if key != "per_item"}, flush=True)
    records.write(RECORD, stage="oft_choices", settings={"sweep": SWEEP}, result=found, about=provenance.about(started))
    PAGE.write_text(page(found), encoding="utf-8")


def _variant(adapter: dict[str, Any]) -> str:
    kind = "adaptive" if "keep" in adapter else "oft"
    return f"{kind} b={adapter['block_size']} k={adapter['terms'] or 'exact'}"


def _measured(settings: dict[str, Any], node: dict[str, Any], inputs: dict[str, Path]) -> dict[str, Any]:
    """Train one run and ask it the test questions; seconds are of this process's CPU."""
    base: Base = load_base(inputs["model"], inputs["base"], device="cpu", dtype="fp32")
    taught: Any = build(settings["task"], "task")
    training = plan_of(settings, taught)
    pairs, began = pairs_of(taught, training.training, inputs["data"]), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trained = finetune(base, training, pairs, Checkpoints(Path(folder), {}), lambda _: None)
    seconds = time.process_time() - began
    task: Any = build(node | {"name": "gsm8k-demo"}, "task")
    asked = rows.split(inputs["data"], task.generation.split)[: task.generation.limit]
    items, _ = evaluate(Subject(base, [Label("trained")], trained.method, {}), task, asked, None)
    references = {row["id"]: task.reference(row) for row in asked}
    (scored,) = list(scores(task.scoring[:1], items, references).values())
    insight = trained.result["insight"]
    return {
        "seed": settings["seed"],
        "trainable_parameters": trained.result["trainable_parameters"],
        "shipped_parameters": insight.get("shipped_parameters", trained.result["trainable_parameters"]),
        "orthogonality_error": max(insight["orthogonality_error"].values()),
        "blocks": insight.get("blocks"),
        "dev_loss": trained.result["dev_loss"],
        "score": scored["states"]["trained"]["score"],
        "cpu_seconds": round(seconds, 2),
    }


def page(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return the page of a record's result."""
    head = ["variant", "parameters", "shipped", "orthogonality error", "dev loss", "score, %", "CPU s"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for name, runs in found.items():
        cells = [
            name,
            f"{runs[0]['trainable_parameters']:,}",
            f"{runs[0]['shipped_parameters']:,}",
            f"{max(run['orthogonality_error'] for run in runs):.1e}",
            _spread([run["dev_loss"] for run in runs], 4),
            _spread([run["score"] for run in runs], 1),
            _spread([run["cpu_seconds"] for run in runs], 1),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(
        [
            "# Choices within OFT, on the demo", "",
            "Made by `python -m benchmarks.oft_choices` from `docs/results/oft-choices.json`. Mean and deviation over "
            f"{len(next(iter(found.values())))} seeds; 200 steps on q and v of two blocks.", "",
            *lines, "", *(sentence(found, *pair) for pair in PAIRS),
            CAVEAT,
        ]
    ) + "\n"  # fmt: skip


PAIRS = (
    ("adaptive b=16 k=5", "oft b=8 k=5", "half of the blocks of 16, chosen by importance,", "all blocks of 8"),
    ("adaptive b=16 k=5", "oft b=16 k=5", "half of the blocks of 16, chosen by importance,", "all blocks of 16"),
    ("oft b=16 k=4", "oft b=16 k=5", "k = 4", "k = 5"),
    ("oft b=16 k=5", "oft b=16 k=exact", "k = 5", "the exact transform"),
)
"""Variants that are compared, and their names in a sentence."""
CAVEAT = """\
- All variants have the learning rate that the common grid chose for k = 5. Where the orthogonality error, the largest
  norm of R^T R - I, is above 1, the series has left its region of convergence: what it trains there is no rotation, and
  a gain over the exact transform is one of freedom, not of a better series."""
STUDENT = {3: 4.303, 5: 2.776}
"""The 0.975 quantile of Student's t, by the number of seeds."""


def sentence(found: dict[str, list[dict[str, Any]]], one: str, other: str, name: str, other_name: str) -> str:
    """Say whether the seeds tell the dev losses of two variants apart, by a 95 % interval of the paired gap."""
    pairs = zip(found[one], found[other], strict=True)
    gaps = [a["dev_loss"] - b["dev_loss"] for a, b in pairs]
    mean, error = statistics.mean(gaps), STUDENT[len(gaps)] * statistics.stdev(gaps) / math.sqrt(len(gaps))
    verdict = "cannot be told from" if abs(mean) <= error else ("is better than" if mean < 0 else "is worse than")
    return f"- By dev loss {name} {verdict} {other_name}: {mean:+.4f} ± {error:.4f} nats over {len(gaps)} seeds."


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    main()
