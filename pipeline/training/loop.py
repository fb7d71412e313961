"""The training loop. It never asks which method it runs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.adapters.base import Method, Rows
from pipeline.optimizers.base import Optimizer
from pipeline.steps.train import Batch
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.schedule import learning_rate
from pipeline.training.settings import Training

WINDOW = 20
"""Steps whose mean loss is held against the first loss."""


@dataclass
class Outcome:
    """What a training leaves behind besides the method's own parameters. `reason` is set if it diverged."""

    curve: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None
    resumed_at: int = 0


@dataclass
class Run:
    """One training: how to run a batch forward, and which batches make step `n`."""

    forward: Callable[[Batch], Rows]
    parts: Callable[[int], list[Batch]]
    method: Method
    optimizer: Optimizer
    settings: Training
    checkpoints: Checkpoints
    report: Callable[[dict[str, Any]], None]


def train(run: Run) -> Outcome:
    """Train to the last step, from the newest whole checkpoint if there is one."""
    start, progress = run.checkpoints.resume(run.method, run.optimizer)
    outcome = Outcome(progress.get("curve", []), resumed_at=start)
    run.method.refresh()
    run.method.train()
    for step in range(start, run.settings.steps):
        point = one_step(run, step)
        outcome.curve.append(point)
        run.report(point)
        if reason := _diverged(outcome.curve, run.settings):
            outcome.reason = reason
            break
        if (step + 1) % run.settings.checkpoint_every == 0 and step + 1 < run.settings.steps:
            run.checkpoints.save(step + 1, run.method, run.optimizer, {"curve": outcome.curve})
    run.method.eval()
    return outcome


def one_step(run: Run, step: int) -> dict[str, Any]:
    """Run one optimizer step and return its point of the curve."""
    rate = learning_rate(run.settings.schedule, run.settings.learning_rate, step, run.settings.steps)
    run.method.before_step(step)
    total, labelled = 0.0, 0
    for batch in run.parts(step):
        loss = run.method.loss(run.forward, batch) * batch.share
        loss.backward()
        total += float(loss.detach())
        labelled += int((batch.labels_BT >= 0).sum())
    run.method.after_backward(step)
    norm = float(run.optimizer.clip(run.settings.max_grad_norm))
    if math.isfinite(total) and math.isfinite(norm):
        run.optimizer.step(rate)
        run.method.after_step(step)
        run.method.refresh()
    run.optimizer.zero_grad()
    return {"step": step, "loss": total, "learning_rate": rate, "grad_norm": norm, "labelled_tokens": labelled}


def _diverged(curve: list[dict[str, Any]], settings: Training) -> str | None:
    last, factor = curve[-1], settings.divergence_factor
    if not (math.isfinite(last["loss"]) and math.isfinite(last["grad_norm"])):
        reason = f"loss {last['loss']}, gradient norm {last['grad_norm']} at step {last['step']}"
        last |= {key: None for key in ("loss", "grad_norm") if not math.isfinite(last[key])}  # JSON has no NaN
        return reason
    recent = [point["loss"] for point in curve[-WINDOW:]]
    mean, first = sum(recent) / len(recent), curve[0]["loss"]
    if len(recent) == min(WINDOW, settings.steps) and mean > factor * first:
        steps = f"steps {last['step'] - len(recent) + 1} to {last['step']}"
        return f"mean loss {mean:.3g} of {steps} is above {factor:g} times the first, {first:.3g}"
    return None
