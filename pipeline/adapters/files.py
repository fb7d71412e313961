"""Keeps a trained method on disk, in PEFT's format wherever PEFT can compute the same.

| file | holds |
|---|---|
| adapter_model.safetensors | every saved tensor as `base_model.model.<module path>.<name in PEFT's format>` |
| adapter_config.json | PEFT's configuration; left out where PEFT cannot compute the same |
| pipeline.json | a record: what makes the method again, hashes, why PEFT cannot hold it (null where it can) |

PEFT takes a wrong or missing key for a warning and goes on with an untrained layer; here it is an error.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from pipeline.adapters.base import AdapterSettings, Method
from pipeline.core import records
from pipeline.core.records import RecordError
from pipeline.core.settings import build
from pipeline.core.site import Site

WEIGHTS, CONFIG, RECORD = "adapter_model.safetensors", "adapter_config.json", "pipeline.json"
TRANSPOSED = ("LORA", "ADALORA", "IA3")
"""What PEFT can put on a Conv1D."""
PEFT_VERSION = "0.21.2"
"""The release of PEFT that the format follows; PEFT computes OFT files of releases before 0.18 otherwise."""


def save(method: Method[Any, Any], folder: Path, *, base_name: str) -> None:
    """Write a method's folder, the record last. `base_name` says on which model it was trained."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in _tensors(method).items()}
    contents = {WEIGHTS: to_bytes(tensors, metadata={"format": "pt"})}
    obstacle = not_in_peft(method)
    if obstacle is None:
        config = _peft_config(method, base_name)
        contents[CONFIG] = (json.dumps(config, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        records.write_atomic(folder / name, data)
    result = {
        "seed": method.seed,
        "total_steps": method.total_steps,
        "start": method.start,
        "mergeable": method.mergeable,
        "not_in_peft": obstacle,
        "files": {name: records.file_sha256(folder / name) for name in contents},
    }
    records.write(folder / RECORD, stage="adapter", settings=method.settings.node(), result=result, about={})


def made_of(folder: Path) -> tuple[AdapterSettings, int, int]:
    """Return the settings, the seed and the number of steps of the method that was saved in a folder.

    Raises:
        RecordError: there is no whole record in it.
    """
    record = records.read(folder / RECORD, "adapter")
    settings = build(record.settings, "adapter")
    assert isinstance(settings, AdapterSettings)
    return settings, record.result["seed"], record.result["total_steps"]


def load(method: Method[Any, Any], folder: Path) -> None:
    """Fill a placed method in place from its folder.

    Raises:
        RecordError: a file is missing, damaged or of other settings; a tensor is missing, unknown or of another shape.
    """
    record = records.read(folder / RECORD, "adapter")
    own_settings = method.settings.node()
    for key in sorted(own_settings | record.settings):
        if own_settings.get(key) != record.settings.get(key):
            got, wanted = record.settings.get(key), own_settings.get(key)
            raise RecordError(f"{record.path}: adapter.{key} was {got!r} in training, but {wanted!r} is asked for.")
    for name, expected in record.result["files"].items():
        records.check_sha256(folder / name, expected)
    fill(method, folder / WEIGHTS)


@torch.no_grad()
def fill(method: Method[Any, Any], path: Path) -> None:
    """Fill a placed method in place from a file in PEFT's format, ours or PEFT's own.

    Raises:
        RecordError: the file cannot be read; a tensor is missing, unknown or of another shape.
    """
    try:
        found = load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise RecordError(f"{path}: cannot be read ({error}).") from None
    own = _tensors(method)
    missing, unknown = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    if missing or unknown:
        raise RecordError(
            f"{path}: {len(missing)} tensors are missing {missing[:3]} and {len(unknown)} are unknown {unknown[:3]}: "
            "the file belongs to another model, to other roles or to another method."
        )
    for key, tensor in own.items():
        if found[key].shape != tensor.shape:
            raise RecordError(f"{path}: {key} must be {tuple(tensor.shape)}, got {tuple(found[key].shape)}.")
    for site, layer in method.placed.items():
        layer.fill({name: found[_key(site, name)] for name in layer.tensors()})
    method.refresh()


def _tensors(method: Method[Any, Any]) -> dict[str, Tensor]:
    return {
        _key(site, name): tensor for site, layer in method.placed.items() for name, tensor in layer.tensors().items()
    }


def _key(site: Site, name: str) -> str:
    return f"base_model.model.{site.name}.{name}"


def not_in_peft(method: Method[Any, Any]) -> str | None:
    """Return why PEFT cannot compute what the method does, or None where it can."""
    if (own := method.peft()) is None:
        return method.not_peft
    if any(site.rows is not None for site in method.placed):
        return "PEFT has no adapter on a part of a module, and here one projection of a fused module has its own"
    if (kind := own["peft_type"]) not in TRANSPOSED and any(site.transposed for site in method.placed):
        return f"PEFT's {kind} has no layer for Conv1D, whose weight is transposed"
    return None


def _peft_config(method: Method[Any, Any], base_name: str) -> dict[str, Any]:
    return {
        **(method.peft() or {}),
        "base_model_name_or_path": base_name,
        "fan_in_fan_out": any(site.transposed for site in method.placed),
        "inference_mode": True,
        "peft_version": PEFT_VERSION,
        "target_modules": [site.name for site in method.placed],
        "task_type": None,
    }
