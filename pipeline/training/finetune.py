"""One fine-tune: a base, a method, rows of one task."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pipeline.adapters.base import AdapterSettings, Method
from pipeline.core.settings import SettingsError
from pipeline.models.adapt import adapt
from pipeline.models.load import Base
from pipeline.optimizers.base import OptimizerSettings
from pipeline.steps.train import Batch, forward, mean_loss
from pipeline.tasks.base import Chat
from pipeline.training import batches
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.loop import Outcome, Run, train
from pipeline.training.settings import Training

Pairs = list[batches.Pair]
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Plan:
    """What to train and how."""

    adapter: AdapterSettings
    optimizer: OptimizerSettings
    training: Training
    seed: int
    chat: Chat | None = None


@dataclass
class Trained:
    """A trained method with what its training left behind."""

    method: Method
    outcome: Outcome
    result: dict[str, Any]
    optimizer: dict[str, Any]


def finetune(base: Base, plan: Plan, pairs: dict[str, Pairs], checkpoints: Checkpoints, report: Report) -> Trained:
    """Fine-tune `base` on the pairs of train and return the method in eval mode, placed on it.

    Each new point of the curve goes to `report`; what stands in a checkpoint already does not.

    Raises:
        SettingsError: a row has no labelled token.
        torch.OutOfMemoryError: the device is too small.
    """
    kept, pad = plan.training, base.tokenizer.pad_token_id or 0
    encode = partial(batches.encode, base.tokenizer, max_length=kept.max_length, loss_on=kept.loss_on, chat=plan.chat)
    kept_pairs = batches.few(pairs["train"], kept.train_rows, plan.seed)
    examples, dev = encode(kept_pairs), encode(pairs["dev"])
    if kept.choice_losses and not all(row.wrong for row in examples.rows):
        raise SettingsError(
            f"training.choice_losses: rows of {kept.task} have no wrong answers. Set it to null, or training.task to a "
            "task with choices."
        )
    indices = batches.order(plan.seed, len(examples.rows), kept.batch_size)

    def parts(step: int) -> list[Batch]:
        chosen = [examples.rows[i] for i in indices(step)]
        return batches.parts(chosen, kept.micro_batch_size, pad, base.device, kept.choice_losses)

    method = adapt(base, plan.adapter, plan.seed, kept.steps)
    start = started(base, method, parts(0))
    run_forward = partial(forward, base.model)
    optimizer = plan.optimizer.build(method.groups())
    outcome = train(Run(run_forward, parts, method, optimizer, kept, checkpoints, report))
    dev_loss = None
    if dev.rows and not outcome.reason:
        dev_loss = mean_loss(base.model, batches.parts(dev.rows, kept.micro_batch_size, pad, base.device))
        if not math.isfinite(dev_loss):  # the last update blew up, after the last loss was taken
            outcome.reason, dev_loss = f"dev loss {dev_loss} after the last step", None
    sizes = {
        "trainable_parameters": sum(p.numel() for p in method.parameters() if p.requires_grad),
        "parameters_at": {str(at): _elements(method, at) for at in method.points},
        "total_parameters": base.parameters(),
    }
    result = sizes | {
        "start": start,
        "steps": len(outcome.curve),
        "points": list(method.points),
        "curve": outcome.curve,
        "final_loss": outcome.curve[-1]["loss"],
        "dev_loss": dev_loss,
        "truncated_rows": examples.truncated,
        "trained_on": "all" if kept.train_rows == "all" else [name for name, *_ in kept_pairs],
        "insight": method.insight() if not outcome.reason else {},
    }
    return Trained(method, outcome, result, optimizer.about())


def started(base: Base, method: Method, first: list[Batch]) -> dict[str, Any]:
    """Return how a method starts and, where that is not the base itself, the loss of both on the first step's rows."""
    kind, _ = method.start
    if kind == "identity":
        return {"kind": kind}
    method.eval()
    loss = mean_loss(base.model, first)
    base.detach()
    base_loss = mean_loss(base.model, first)
    base.attach(method.placed)
    print(f"start: loss {loss:.4f}, of the base alone {base_loss:.4f}", flush=True)
    return {"kind": kind, "loss": loss, "base_loss": base_loss}


def _elements(method: Method, at: int) -> int:
    """Return the number of parameters of the plain adapter at one point."""
    return sum(parameter.numel() for layer in method.export(at).values() for parameter in layer.parameters())


def out_of_memory(error: torch.OutOfMemoryError) -> str:
    """Return the first line of what the allocator says."""
    return str(error).splitlines()[0]
