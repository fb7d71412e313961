"""Loads a base: a transformers model whose linear sites are frozen places where an adapter may sit.

Letters: B batch, T time, D hidden width, V vocabulary.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.core import records
from pipeline.core.frozen import FrozenLinear
from pipeline.core.settings import SettingsError, build
from pipeline.core.site import Site
from pipeline.models import places, sites
from pipeline.models.places import Place
from pipeline.models.stack import Stack, stacked
from pipeline.models.weights import Weights
from pipeline.quantization import files
from pipeline.quantization.base import Format, QuantizedWeight

TAKEN = "taken.safetensors"
"""Beside the manifest of a base: what was taken out of its weights, for the adapters that start from it."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Base:
    """A loaded base. `places` holds every site in forward order, norms and slices too, and last all blocks as one."""

    model: Any  # of transformers, as the tokenizer: its own types do not say what every model has
    tokenizer: Any
    format: Format
    places: dict[Site, Place | Stack]
    weights: Weights
    dtype: torch.dtype
    device: torch.device

    def frozen(self) -> dict[Site, FrozenLinear]:
        """Return what is frozen at each linear site."""
        return {site: place.frozen for site, place in self.places.items() if site.linear}  # type: ignore[misc]

    def offered(self) -> dict[Site, nn.Module]:
        """Return what is frozen at every site where a method may put a layer, norms included."""
        return {site: place.frozen for site, place in self.places.items()}

    def whole(self, site: Site) -> Site:
        """Return the site whose weight is stored: the fused projection that a slice is of, else the site itself."""
        return site if site.rows is None else next(one for one in self.places if one.name == site.module)

    def attach(self, layers: Mapping[Site, nn.Module]) -> None:
        """Put these adapter layers on their sites, and nothing on all others."""
        self.detach()
        for site, layer in layers.items():
            self.places[site].__dict__["adapter"] = layer

    def detach(self) -> None:
        """Take every adapter off."""
        for place in self.places.values():
            place.__dict__["adapter"] = None

    def parameters(self) -> int:
        """Return the number of parameters of the unquantized model; a tied head is stored and counted once."""
        return sum(self.weights.elements(name) for name in self.weights.names())


def load_base(model: Path, base: Path, *, device: str, dtype: str) -> Base:
    """Load a prepared model in the format of a quantized base.

    Args:
        model: manifest.json of `prepare_model`.
        base: manifest.json of `quantize_base` on that model.
        device: "cpu" or a CUDA device.
        dtype: compute dtype, "fp32" or "bf16".

    Raises:
        RecordError: a file is missing or damaged.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415  (seconds; needed only where a model is really loaded)

    made = records.read(base, "quantize_base")
    format_ = build(made.settings["quantization"], "quantization")
    assert isinstance(format_, Format)
    folder = model.parent / "model"
    check_files(records.read(model, "prepare_model"), folder)
    check_files(made, base.parent / "base")
    empty = skeleton(folder)
    found = sites.find(empty)
    linears, weights = places.stored(found), Weights(folder)
    taken = load_taken(base, made)
    if made.result["files"]:
        quantized, rest = files.read(base.parent / "base", format_, [site.name for site in linears])
    else:
        quantized = {site.name: _dense(format_, _rest(weights, site, taken), DTYPES[dtype]) for site in linears}
        skip = {f"{site.name}.weight" for site in linears}
        rest = {name: weights.tensor(name) for name in weights.names() if name not in skip}
    biases = {site.name: rest.pop(f"{site.name}.bias") if site.bias else None for site in linears}
    frozen = {site: format_.frozen(quantized[site.name], biases[site.name]) for site in linears}
    for site, layer in frozen.items():
        layer.taken = taken.get(site.name)
    filled = places.put(empty, found, frozen)
    _fill(empty, found, rest, DTYPES[dtype])
    stack = stacked(empty, found)
    empty.to(device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Base(empty, tokenizer, format_, filled | stack, weights, DTYPES[dtype], torch.device(device))


def load_taken(base: Path, made: records.Record) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B of what was taken out of each weight before it was stored, by the site's name."""
    if (expected := made.result["taken"]) is None:
        return {}
    path = base.parent / TAKEN
    records.check_sha256(path, expected)
    found = load_file(path)
    return {
        key.removesuffix(".A"): (found[key], found[f"{key.removesuffix('.A')}.B"])
        for key in found
        if key.endswith(".A")
    }


def _rest(weights: Weights, site: Site, taken: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    """Return a weight of the model's folder, without what was taken out of it."""
    weight_OI = weights.linear(site)
    if site.name not in taken:
        return weight_OI
    A_RI, B_OR = taken[site.name]
    return (weight_OI.float() - B_OR @ A_RI).to(weight_OI.dtype)


def _dense(format_: Format, weight_OI: Tensor, compute: torch.dtype) -> QuantizedWeight:
    """Return a dense weight in the compute dtype, so that no pass casts it; merged states keep to the stored dtype."""
    return replace(format_.quantize(weight_OI.to(compute)), dtype=weight_OI.dtype)


def check_files(record: records.Record, folder: Path) -> None:
    """Check every file that a manifest names against its SHA-256."""
    for name, expected in record.result["files"].items():
        records.check_sha256(folder / name, expected)


def skeleton(folder: Path) -> Any:
    """Return the folder's transformers model with parameters on the meta device and buffers in place."""
    with _parameters_on_meta():
        return unfilled(json.loads((folder / "config.json").read_text()))


def unfilled(config: dict[str, Any]) -> Any:
    """Return the transformers model of a config.json, its parameters not initialized.

    Raises:
        SettingsError: it is no causal language model of an architecture in the table of sites.
    """
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    if (kind := config.get("model_type")) not in sites.DECODERS:
        raise SettingsError(f"model: architecture {kind!r} is not known; allowed: {', '.join(sites.DECODERS)}.")
    kept = {key: value for key, value in config.items() if key != "quantization_config"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**kept), attn_implementation="sdpa")
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Let modules be built without memory for parameters; buffers such as rotary frequencies stay real."""
    plain = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        plain(module, name, None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False))

    nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = plain  # type: ignore[method-assign]


def _fill(model: Any, found: list[Site], rest: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Give every parameter that is not of a linear site its tensor."""
    norms = {site.name for site in found if site.role == "norm"}
    renamed = {_inside(name, norms): tensor.to(dtype) for name, tensor in rest.items()}
    _, extra = model.load_state_dict(renamed, strict=False, assign=True)
    if model.config.tie_word_embeddings:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    absent = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if absent or extra:
        raise records.RecordError(f"the model's files do not fit its config: missing {absent}, unknown {extra}.")


def _inside(name: str, norms: set[str]) -> str:
    """Rename a norm's tensor to where it lies now, inside its place."""
    module, _, leaf = name.rpartition(".")
    return f"{module}.frozen.{leaf}" if module in norms else name
