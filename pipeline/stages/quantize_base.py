"""Stores one model in one format: a base that every run on it shares."""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.core import provenance, records
from pipeline.core.machine import ready
from pipeline.core.settings import build, digest
from pipeline.core.site import Site
from pipeline.models import sites
from pipeline.models.load import check_files, skeleton
from pipeline.models.places import stored
from pipeline.models.weights import Weights
from pipeline.quantization.base import Format, QuantizationError
from pipeline.quantization.errors import layer_errors
from pipeline.quantization.files import CONFIG, Writer


def run(settings: dict[str, Any], inputs: dict[str, Path], outputs: dict[str, Path], about: dict[str, Any]) -> None:
    """Write `<record's folder>/base/` and the manifest `outputs["record"]`, whose table has a row a linear site.

    A format without a folder of its own (none) has the manifest alone: its base is the model's folder.
    """
    ready("cpu", settings["hardware"]["threads"])  # bytes are those of the CPU, wherever the base is used
    record, made = outputs["record"], records.read(inputs["model"], "prepare_model")
    model, folder = inputs["model"].parent / "model", record.parent / "base"
    check_files(made, model)
    format_ = build(settings["quantization"], "quantization")
    assert isinstance(format_, Format)
    if format_.own_folder:
        with records.writing(folder) as unfinished:
            result = _convert(model, format_, Writer(unfinished, format_))
            _copy_rest(model, unfinished, made.result["files"])
    else:
        result = _convert(model, format_, None)
    paths = sorted(folder.iterdir()) if format_.own_folder else []
    files = {path.name: records.file_sha256(path) for path in paths}
    result |= {"format": format_.name, "files": files, "model": digest(made.result, 64)}
    about = provenance.about(about.pop("started"), files=records.sizes(record, paths), **about)
    records.write(record, stage="quantize_base", settings=settings, result=result, about=about)


def _convert(model: Path, format_: Format, writer: Writer | None) -> dict[str, Any]:
    """Store the weights one at a time; return the error table and the bits that a stored parameter takes."""
    bare, weights = skeleton(model), Weights(model)
    linear = {site.name: site for site in stored(sites.find(bare))}
    rows, bits, parameters = {}, 0, 0
    for name in weights.names():
        site = linear.get(name.removesuffix(".weight"))
        if site is None:
            if writer:
                writer.add(name, weights.tensor(name))
            continue
        weight_OI = weights.linear(site)
        try:
            quantized = format_.quantize(weight_OI)
        except QuantizationError as error:
            raise QuantizationError(f"{model}: {name}: {error}") from None
        rows[site] = layer_errors(weight_OI, format_.dequantize(quantized))
        bits, parameters = bits + quantized.bits, parameters + weight_OI.numel()
        if writer:
            writer.add_quantized(site.name, quantized)
    if writer:
        rest = [name for name, module in bare.named_modules() if isinstance(module, nn.Linear) and name not in linear]
        writer.finish(json.loads((model / "config.json").read_text(encoding="utf-8")), rest)
    return {"layers": [_row(site, rows[site]) for site in linear.values()], "bits_per_parameter": bits / parameters}


def _row(site: Site, errors: dict[str, float | None]) -> dict[str, Any]:
    return {"site": site.name, "role": site.role, "layer": site.layer} | errors


def _copy_rest(model: Path, folder: Path, names: dict[str, str]) -> None:
    """Copy tokenizer and generation files: whatever neither is weights nor says how to read them."""
    for name in names:
        if name != CONFIG and not name.endswith((".safetensors", ".safetensors.index.json")):
            shutil.copyfile(model / name, folder / name)
