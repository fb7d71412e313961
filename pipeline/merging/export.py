"""`python -m pipeline export RUN --to FOLDER`: what a run has trained, as a folder for other tools.

It is an adapter in PEFT's format; `--at 4` makes of a DyLoRA the plain LoRA of rank 4. With `--merged` it is a whole
model for transformers or vLLM in one of the merged states, and what is written is what was scored: the digest of its
weights is held against the merge report.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.adapters import files
from pipeline.adapters.base import Method
from pipeline.core import provenance, records
from pipeline.core.machine import ready
from pipeline.core.records import Record, RecordError
from pipeline.core.results import find_run
from pipeline.core.settings import SettingsError
from pipeline.models import sites
from pipeline.models.load import Base, skeleton
from pipeline.models.states import STATES, Label, entered, labels
from pipeline.models.trained import open_run
from pipeline.quantization.base import StoredLinear
from pipeline.quantization.files import Writer
from pipeline.quantization.none import Dense

MERGED = STATES[2:]
MANIFEST = "export.json"


def main(argv: list[str]) -> int:
    """Write the folder and say what it holds."""
    given = _parser().parse_args(argv)
    run = find_run(given.results, given.run)
    if given.to.exists():
        raise SettingsError(f"--to: {given.to} is there already, and nothing is written over. Name another folder.")
    train = records.read(run / "train.json", "finetune")
    hardware = train.settings["hardware"]
    device = ready(given.device or hardware["device"], hardware["threads"])
    base, method = open_run(run, device=str(device))
    if given.at is not None and not method.points:
        raise SettingsError(f"--at: {method.settings.label} is one adapter, without ranks to choose from.")
    if given.merged is None:
        said = export_adapter(base, method, given.at, given.to)
    else:
        at = (given.at or max(method.points)) if method.points else None
        merge = records.read(run / "merge.json", "merge")
        said = export_merged(base, method, Label(given.merged, at), merge, given.to)
    print(f"{given.to}: {said}")
    return 0


def export_adapter(base: Base, method: Method[Any, Any], at: int | None, folder: Path) -> str:
    """Write the adapter, at one of its points if it has any, and return what the folder is."""
    shipped = method.shipped(at)
    with records.writing(folder) as unfinished:
        files.save(shipped, unfinished, base_name=base.model.config.model_type)
    size = " ".join(map(str, shipped.settings.size() or ()))
    what = " ".join(part for part in (shipped.settings.label, size) if part)
    obstacle = files.not_in_peft(shipped)
    return f"{what}, in PEFT's format" if obstacle is None else f"{what}, for this package alone: {obstacle}"


def export_merged(base: Base, method: Method[Any, Any], label: Label, merge: Record, folder: Path) -> str:
    """Write the whole model in a merged state and return what the folder is.

    Raises:
        SettingsError: there is no such state of this run, or the architecture cannot hold it.
        RecordError: it is not the state that the merge report tells of.
    """
    _, skipped = labels([label.state], method, base.format)
    if skipped:
        raise SettingsError(f"--merged: {label.state}: {skipped[label.state]}.")
    if label.state.startswith("requantized") and (obstacle := _unreadable(base)):
        raise SettingsError(f"--merged: {obstacle}; got {label.state}, allowed: {', '.join(MERGED[:2])}.")
    with entered(base, method, label) as digest, records.writing(folder) as unfinished:
        assert digest is not None
        # A rank that no sweep scores is in no report.
        if digest != (reported := merge.result["states"].get(str(label), {"digest": digest})["digest"]):
            raise RecordError(
                f"{merge.path}: reports other weights of {label}: {reported[:16]}…, got {digest[:16]}…. Export on the "
                "device that merged them, or else adapter or base have changed since."
            )
        _write_model(base, unfinished, quantized=label.state.startswith("requantized"))
        result = {"run": merge.path.parent.name, "state": str(label), "digest": digest}
        about = {"commit": provenance.commit()}
        records.write(unfinished / MANIFEST, stage="export", settings=merge.settings, result=result, about=about)
    return f"a model for transformers, {label}, weights {digest[:16]}…"


def _unreadable(base: Base) -> str | None:
    """Return why transformers cannot read this model in the base's format, None where it can."""
    if base.format.transformers_config(torch.float32, []) is None:
        return f"no other tool reads {base.format.name}"
    empty = skeleton(base.weights.folder)
    if (name := sites.foreign(empty, sites.find(empty))) is None:
        return None
    return f"transformers loads no {type(empty.get_submodule(name)).__name__} quantized, and {name} is one"


@torch.no_grad()
def _write_model(base: Base, folder: Path, *, quantized: bool) -> None:
    """Write the model as its places are now; a layer without an adapter is the base's own, dense or as it is stored."""
    stored = {site.module: site for site in base.frozen() if site.rows is None}
    layers = {module: base.frozen()[site] for module, site in stored.items()}
    names, origin = base.weights.names(), base.weights.folder
    if new := [name for name, layer in layers.items() if layer.bias is not None and f"{name}.bias" not in names]:
        raise SettingsError(f"--merged: {new[0]} has a bias now, and this architecture has none there.")
    writer = Writer(folder, base.format if quantized else Dense())
    for name in names:
        module, _, part = name.rpartition(".")
        layer = layers.get(module)
        if layer is None:
            writer.add(name, base.weights.tensor(name))
            continue
        assert isinstance(layer, StoredLinear)
        if part == "bias":
            assert layer.bias is not None
            writer.add(name, layer.bias)
        elif quantized:
            writer.add_quantized(module, layer.quantized)
        else:
            weight_OI = layer.dense_weight()
            writer.add(name, weight_OI.T if stored[module].transposed else weight_OI)
    rest = [name for name, module in base.model.named_modules() if isinstance(module, nn.Linear)]
    writer.finish(json.loads((origin / "config.json").read_text(encoding="utf-8")), rest)
    for path in origin.iterdir():
        if not path.name.startswith("model") and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline export", description=__doc__)
    parser.add_argument("run", help="the run's folder, or the beginning of its name")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="a folder that is not there yet")
    parser.add_argument("--at", type=int, metavar="RANK", help="of a DyLoRA: any rank; without it the largest")
    parser.add_argument(
        "--merged", nargs="?", const="merged-original", choices=MERGED, help="a whole model (default: merged-original)"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="where to merge (default: where it was trained)")
    parser.add_argument("--results", type=Path, default=Path("results"))
    return parser
