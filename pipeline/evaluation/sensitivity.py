"""`python -m pipeline sensitivity PLAN`: what quantizing one layer alone does to the loss of the model.

Every layer computes with its original weight but one, which computes as the base stores it; then the same once more
with that layer's outliers, the largest 0.1 % of its weights, kept in 16 bits. That takes two passes over the texts a
layer, so it is asked for and no part of a sweep. The record lies beside the base, and the next table, figures and
report show it.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.core import provenance, records
from pipeline.core.frozen import FrozenLinear
from pipeline.core.machine import ready
from pipeline.core.settings import SettingsError, build, digest
from pipeline.core.site import Site
from pipeline.evaluation.likelihood import Chunks
from pipeline.models.load import Base, load_base
from pipeline.quantization.base import StoredLinear
from pipeline.quantization.errors import outliers
from pipeline.quantization.none import Dense
from pipeline.tasks import rows
from pipeline.tasks.base import Task
from pipeline.tasks.generation import Texts

NAME = "sensitivity.json"


class Mended(FrozenLinear):
    """A stored layer whose outliers are kept in 16 bits, added to what it computes."""

    def __init__(self, stored: StoredLinear, weight_OI: Tensor) -> None:
        super().__init__()
        self.stored, self.out_features, self.in_features = stored, stored.out_features, stored.in_features
        kept_OI = weight_OI if weight_OI.dtype.itemsize == 2 else weight_OI.bfloat16()  # noqa: PLR2004  (bytes)
        lost_OI = kept_OI.float() - stored.dense_weight(torch.float32)
        self.lost_OI = lost_OI * outliers(weight_OI)

    def product(self, x_MI: Tensor) -> Tensor:
        return self.stored.product(x_MI) + x_MI @ self.lost_OI.to(x_MI.dtype).T


def measure(base: Base, texts: Chunks) -> dict[str, Any]:
    """Return the loss of the unquantized model in nats a token, and by layer what quantizing it alone adds.

    `base` is left as it was found.
    """
    stored: dict[Site, Any] = {site: layer for site, layer in base.frozen().items() if site.rows is None}
    weights = {site: base.weights.linear(site).to(base.device) for site in stored}
    base.detach()
    try:
        for site, layer in stored.items():
            base.places[site].frozen = Dense().frozen(Dense().quantize(weights[site].to(base.dtype)), layer.bias)
        loss, layers = _loss(base, texts), []
        for site, layer in stored.items():
            place = base.places[site]
            original, added = place.frozen, []
            for one in (layer, Mended(layer, weights[site])):
                place.frozen = one
                added.append(_loss(base, texts) - loss)
            place.frozen = original
            layers.append({"site": site.name, "loss_change": added[0], "loss_change_outliers_kept": added[1]})
    finally:
        for site, layer in stored.items():
            base.places[site].frozen = layer
    return {"loss": loss, "layers": layers}


def _loss(base: Base, texts: Chunks) -> float:
    found = texts.items(base.model)
    return -math.fsum(item["log_likelihood"] for item in found) / sum(item["tokens"] for item in found)


def main(argv: list[str]) -> int:
    """Measure every quantized base of a plan, and write a record beside each."""
    parser = argparse.ArgumentParser(prog="python -m pipeline sensitivity", description=__doc__)
    parser.add_argument("plan", type=Path, help="results/tables/<sweep>/sweep.json of a finished sweep")
    parser.add_argument("--task", help="whose test texts to read; the first that is scored by likelihood if not said")
    parser.add_argument("--rows", type=int, default=64, help="texts at most (default: %(default)s)")
    given = parser.parse_args(argv)
    plan, results = records.read(given.plan, "plan").result, given.plan.parents[2]
    for node in plan["bases"]:
        made = records.read(results / node["records"]["quantize_base"]["path"], "quantize_base")
        if made.result["files"]:
            task, asked = _asked(node, results, given.task)
            data = results / plan["data"][task.name]["path"]
            _write(made, results / node["records"]["prepare_model"]["path"], task, data, asked, given.rows)
    return 0


def _asked(node: dict[str, Any], results: Path, name: str | None) -> tuple[Task, records.Record]:
    """Return the task to read and the record of its evaluation on this base, whose settings are taken.

    Raises:
        SettingsError: there is no such task that is scored by the likelihood of texts.
    """
    for task_name, evaluation in node["tasks"].items():
        record = records.read(results / evaluation["path"], "evaluate")
        task = build(record.settings["task"], "task")
        assert isinstance(task, Task)
        if name in (None, task_name) and isinstance(task.generation, Texts):
            return task, record
    known = ", ".join(node["tasks"])
    raise SettingsError(
        f"--task: a task of the sweep scored by the likelihood of texts is needed, got {name!r}; it has {known}."
    )


def _write(made: records.Record, model: Path, task: Task, data: Path, asked: records.Record, limit: int) -> None:
    started = time.time()
    hardware, precision = asked.settings["hardware"], asked.settings["evaluation"]["precision"]
    device = str(ready(hardware["device"], hardware["threads"]))
    base = load_base(model, made.path, device=device, dtype=precision)
    assert task.generation is not None
    texts = Chunks(
        task,
        rows.split(data, task.generation.split)[:limit],
        base.tokenizer,
        base.model.config.max_position_embeddings,
    )
    result = measure(base, texts) | {"base": digest(made.result, 64), "task": task.name, "items": len(texts)}
    settings = {"task": task.node(), "rows": limit, "precision": precision, "hardware": hardware}
    about = provenance.about(started, device=provenance.device_name(device))
    records.write(made.path.with_name(NAME), stage="sensitivity", settings=settings, result=result, about=about)
    worst = max(result["layers"], key=lambda row: row["loss_change"])
    print(
        f"{made.path.with_name(NAME)}: loss {result['loss']:.4f}; most at {worst['site']}: {worst['loss_change']:+.5f}"
    )
