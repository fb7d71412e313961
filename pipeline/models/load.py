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
from pipeline.core.settings import build
from pipeline.core.site import LINEAR_ROLES, Site
from pipeline.models import sites
from pipeline.models.stack import Stack, stacked
from pipeline.models.weights import Weights
from pipeline.quantization import files
from pipeline.quantization.base import Format, QuantizedWeight, StoredLinear

TAKEN = "taken.safetensors"
"""Beside the manifest of a base: what was taken out of its weights, for the adapters that start from it."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Place(nn.Module):
    """One site in the model: what is frozen there, and the adapter that sits on it, if any."""

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.frozen = frozen
        # Not a submodule: an adapter belongs to its method, which owns its parameters and its train / eval mode.
        self.__dict__["adapter"] = None

    def forward(self, x: Tensor) -> Tensor:
        """Return what the adapter makes of the frozen layer, or the frozen layer's own output."""
        adapter = self.__dict__["adapter"]
        return self.frozen(x) if adapter is None else adapter(x, self.frozen)


@dataclass
class Base:
    """A loaded base. `places` holds every site in forward order; norms are sites too, and last all blocks as one."""

    model: Any  # of transformers, as the tokenizer: its own types do not say what every model has
    tokenizer: Any
    format: Format
    places: dict[Site, Place | Stack]
    weights: Weights
    dtype: torch.dtype
    device: torch.device

    def frozen(self) -> dict[Site, FrozenLinear]:
        """Return what is frozen at each linear site."""
        return {site: place.frozen for site, place in self.places.items() if site.role in LINEAR_ROLES}  # type: ignore[misc]

    def offered(self) -> dict[Site, nn.Module]:
        """Return what is frozen at every site where a method may put a layer, norms included."""
        return {site: place.frozen for site, place in self.places.items()}

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
    linears = [site.name for site in found if site.role in LINEAR_ROLES]
    weights = Weights(folder)
    taken = load_taken(base, made)
    if made.result["files"]:
        quantized, rest = files.read(base.parent / "base", format_, linears)
    else:
        quantized = {name: _dense(format_, _rest(weights, name, taken), DTYPES[dtype]) for name in linears}
        skip = {f"{name}.weight" for name in linears}
        rest = {name: weights.tensor(name) for name in weights.names() if name not in skip}
    places = _fill(empty, found, quantized, rest, format_, DTYPES[dtype])
    for site, place in places.items():
        if isinstance(frozen := place.frozen, FrozenLinear):
            frozen.taken = taken.get(site.name)
    empty.to(device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Base(empty, tokenizer, format_, places, weights, DTYPES[dtype], torch.device(device))


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


def _rest(weights: Weights, name: str, taken: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    """Return a weight of the model's folder, without what was taken out of it."""
    weight_OI = weights.tensor(f"{name}.weight")
    if name not in taken:
        return weight_OI
    A_RI, B_OR = taken[name]
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
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    raw = json.loads((folder / "config.json").read_text())
    raw.pop("quantization_config", None)
    config = AutoConfig.for_model(**raw)
    with _parameters_on_meta():
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
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


def _fill(
    model: Any,
    found: list[Site],
    quantized: dict[str, QuantizedWeight],
    rest: dict[str, Tensor],
    format_: Format,
    dtype: torch.dtype,
) -> dict[Site, Place | Stack]:
    """Replace every site by a place with its frozen layer, and give every other parameter its tensor."""
    places: dict[Site, Place | Stack] = {}
    for site in found:
        module: Any = model.get_submodule(site.name)
        if site.role in LINEAR_ROLES:
            bias = rest.pop(f"{site.name}.bias") if site.bias else None
            module = StoredLinear(format_, quantized[site.name], bias)
        parent, _, leaf = site.name.rpartition(".")
        places[site] = Place(module)
        setattr(model.get_submodule(parent), leaf, places[site])
    norms = {site.name for site in found if site.role == "norm"}
    renamed = {_inside(name, norms): tensor.to(dtype) for name, tensor in rest.items()}
    _, extra = model.load_state_dict(renamed, strict=False, assign=True)
    if model.config.tie_word_embeddings:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    absent = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if absent or extra:
        raise records.RecordError(f"the model's files do not fit its config: missing {absent}, unknown {extra}.")
    return places | stacked(model, found)


def _inside(name: str, norms: set[str]) -> str:
    """Rename a norm's tensor to where it lies now, inside its place."""
    module, _, leaf = name.rpartition(".")
    return f"{module}.frozen.{leaf}" if module in norms else name
