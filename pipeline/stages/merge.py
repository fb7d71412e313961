"""Merges one adapter in every way that there is, and reports what survives; no merged weight is written."""

from pathlib import Path
from typing import Any

import torch

from pipeline.adapters.base import AdapterSettings
from pipeline.core import provenance, records
from pipeline.core.machine import ready
from pipeline.core.settings import build
from pipeline.merging.report import report
from pipeline.models.adapt import restore
from pipeline.models.load import load_base


def run(settings: dict[str, Any], inputs: dict[str, Path], outputs: dict[str, Path], about: dict[str, Any]) -> None:
    """Write the report `outputs["record"]`; a fine-tune that failed has none, and its status is passed on."""
    device = ready(settings["hardware"]["device"], settings["hardware"]["threads"])
    train = records.read(inputs["train"], "finetune")
    status, result = _merged(settings, inputs, train, str(device)) if train.status == "ok" else _failed(train)
    about = provenance.about(about.pop("started"), device=provenance.device_name(str(device)), **about)
    records.write(outputs["record"], stage="merge", settings=settings, result=result, about=about, status=status)
    said = result.get("reason") or ", ".join(map(_said, result["states"].items())) or "nothing to merge"
    print(f"merge: {said}", flush=True)


def _said(state: tuple[str, dict[str, Any]]) -> str:
    """Return a state's name and, where codes were made anew, for how many sites and why, and at what error."""
    name, found = state
    again = "; ".join(f"{count} sites: {why}" for why, count in found["requantized"].items())
    return f"{name} (error {found['error'] or 0:.2g}; {again})" if again else name


def _failed(train: records.Record) -> tuple[str, dict[str, Any]]:
    return train.status, {"reason": train.result["reason"]}


def _merged(
    settings: dict[str, Any], inputs: dict[str, Path], train: records.Record, device: str
) -> tuple[str, dict[str, Any]]:
    adapter = build(settings["adapter"], "adapter")
    assert isinstance(adapter, AdapterSettings)
    try:
        base = load_base(inputs["model"], inputs["base"], device=device, dtype="fp32")
        return "ok", report(base, restore(base, adapter, train), settings["states"])
    except torch.OutOfMemoryError as error:
        return "oom", {"reason": str(error).splitlines()[0]}
