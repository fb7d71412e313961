"""Stores one model in one format: a base that every run on it shares."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.core import provenance, records
from pipeline.core.machine import ready
from pipeline.core.settings import build, digest
from pipeline.core.site import Site
from pipeline.models import sites
from pipeline.models.load import TAKEN, check_files, skeleton
from pipeline.models.places import stored
from pipeline.models.weights import Weights
from pipeline.quantization.base import Format, QuantizationError, QuantizedWeight
from pipeline.quantization.errors import layer_errors
from pipeline.quantization.files import CONFIG, Writer

if TYPE_CHECKING:  # most bases are made for no adapter, and then no edit of one concerns them
    from pipeline.adapters.base import AdapterSettings


def run(settings: dict[str, Any], inputs: dict[str, Path], outputs: dict[str, Path], about: dict[str, Any]) -> None:
    """Write `<record's folder>/base/` and the manifest `outputs["record"]`, whose table has a row a linear site.

    An adapter in the settings starts from a part of the weights: that part is taken out first and kept beside the base.

    A format without a folder of its own (none) has the manifest alone: its base is the model's folder.
    """
    ready("cpu", settings["hardware"]["threads"])  # bytes are those of the CPU, wherever the base is used
    record, made = outputs["record"], records.read(inputs["model"], "prepare_model")
    model, folder = inputs["model"].parent / "model", record.parent / "base"
    check_files(made, model)
    format_ = build(settings["quantization"], "quantization")
    assert isinstance(format_, Format)
    split = Split(format_, _adapter(settings))
    if format_.own_folder:
        with records.writing(folder) as unfinished:
            result = _convert(model, split, Writer(unfinished, format_))
            _copy_rest(model, unfinished, made.result["files"])
    else:
        result = _convert(model, split, None)
    paths = sorted(folder.iterdir()) if format_.own_folder else []
    files = {path.name: records.file_sha256(path) for path in paths}
    result |= {
        "taken": split.save(record.parent / TAKEN),
        "format": format_.name,
        "files": files,
        "model": digest(made.result, 64),
    }
    made_here = [*paths, *([record.parent / TAKEN] if result["taken"] else [])]
    about = provenance.about(about.pop("started"), files=records.sizes(record, made_here), **about)
    records.write(record, stage="quantize_base", settings=settings, result=result, about=about)


@dataclass
class Split:
    """Stores weights, and keeps what the adapter, if any, takes out of those that it is to sit on."""

    format: Format
    adapter: "AdapterSettings | None"
    taken: dict[str, Tensor] = field(default_factory=dict)

    def store(self, site: Site, weight_OI: Tensor) -> tuple[QuantizedWeight, Tensor]:
        """Return the stored weight of a site, and what it and the part taken out are together."""
        if self.adapter is None or site.role not in self.adapter.roles:
            stored = self.format.quantize(weight_OI)
            return stored, self.format.dequantize(stored)
        rest_OI, A_RI, B_OR = self.adapter.take(
            weight_OI, lambda one: self.format.dequantize(self.format.quantize(one))
        )
        self.taken |= {f"{site.name}.A": A_RI, f"{site.name}.B": B_OR}
        stored = self.format.quantize(rest_OI)
        return stored, self.format.dequantize(stored, torch.float32) + B_OR @ A_RI

    def save(self, path: Path) -> str | None:
        """Write what was taken, if any; return the file's SHA-256."""
        if self.adapter is None:
            return None
        records.write_atomic(path, save(self.taken))
        return records.file_sha256(path)


def _adapter(settings: dict[str, Any]) -> "AdapterSettings | None":
    """Return the adapter that takes a part of the weights."""
    return cast("AdapterSettings", build(settings["adapter"], "adapter")) if "adapter" in settings else None


def _convert(model: Path, split: Split, writer: Writer | None) -> dict[str, Any]:
    """Store the weights one at a time; return the error table and the bits that a stored parameter takes."""
    bare, weights = skeleton(model), Weights(model)
    linear = {site.name: site for site in stored(sites.find(bare))}
    public = sites.foreign(bare, linear.values()) is None
    rows, bits, parameters = {}, 0, 0
    for name in weights.names():
        site = linear.get(name.removesuffix(".weight"))
        if site is None:
            if writer:
                writer.add(name, weights.tensor(name))
            continue
        weight_OI = weights.linear(site)
        try:
            quantized, whole = split.store(site, weight_OI)
        except QuantizationError as error:
            raise QuantizationError(f"{model}: {name}: {error}") from None
        rows[site] = layer_errors(weight_OI, whole)
        bits, parameters = bits + quantized.bits, parameters + weight_OI.numel()
        if writer:
            writer.add_quantized(site.name, quantized)
    if writer:
        rest = [name for name, module in bare.named_modules() if isinstance(module, nn.Linear) and name not in linear]
        writer.finish(json.loads((model / "config.json").read_text(encoding="utf-8")), rest, public=public)
    return {"layers": [_row(site, rows[site]) for site in linear.values()], "bits_per_parameter": bits / parameters}


def _row(site: Site, errors: dict[str, float | None]) -> dict[str, Any]:
    return {"site": site.name, "role": site.role, "layer": site.layer} | errors


def _copy_rest(model: Path, folder: Path, names: dict[str, str]) -> None:
    """Copy tokenizer and generation files: whatever neither is weights nor says how to read them."""
    for name in names:
        if name != CONFIG and not name.endswith((".safetensors", ".safetensors.index.json")):
            shutil.copyfile(model / name, folder / name)
