"""A tiny Llama whose linear layers are places, and batches for it: enough model to train an adapter in a second."""

import copy
import itertools
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from pipeline.adapters.base import AdapterSettings, Method
from pipeline.core.frozen import FrozenLinear
from pipeline.core.settings import Settings, build
from pipeline.core.site import Site
from pipeline.models import places, sites
from pipeline.models.adapt import adapt
from pipeline.models.load import Base
from pipeline.models.stack import stacked
from pipeline.optimizers.adamw import AdamW
from pipeline.optimizers.base import Optimizer
from pipeline.quantization.base import Format
from pipeline.steps.train import IGNORED, Batch, forward

ROOT = Path(__file__).parents[2]
ADAPTERS = sorted((ROOT / "conf" / "adapter").glob("*.yaml"))
VOCABULARY, ROWS, TIME, LAYERS = 48, 4, 12, 2
TOTAL_STEPS = 12
"""Short, yet long enough for methods that follow a schedule to warm up, prune and cool."""


def crossed(seeds: range, *axes: list[Path], quick: bool = True) -> list[Any]:
    """Every combination of axes and seeds. Each of the first axis is quick once, its neighbor elsewhere."""
    found = []
    for chosen in itertools.product(*map(enumerate, axes), seeds):
        *places, seed = chosen
        name = "-".join([*(value.stem for _, value in places), str(seed)])
        first, *others = (index for index, _ in places)
        once = (seed - first) % len(seeds) == 0 and all((first + index) % len(seeds) == 0 for index in others)
        marks = [] if quick and once else [pytest.mark.slow]
        found.append(pytest.param(*(value for _, value in places), seed, id=name, marks=marks))
    return found


def settings(path: Path) -> Settings:
    return build(OmegaConf.to_container(OmegaConf.load(path)))


@cache
def _weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(config())
    return model.state_dict()


def config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, attention_bias=True, initializer_range=0.08,
    )  # fmt: skip


def model() -> LlamaForCausalLM:
    """The same weights each time; biases are not zero."""
    made = LlamaForCausalLM(config()).eval().requires_grad_(False)
    made.load_state_dict({k: v + 0.05 if k.endswith("bias") else v for k, v in _weights().items()})
    return made


def base(format_: Format) -> Base:
    """The model with every linear layer stored in `format_`, without files and tokenizer."""
    return on(model(), format_)


def on(made: Any, format_: Format) -> Base:
    """Any decoder, likewise."""
    found, weights, frozen = sites.find(made), Weights(), {}
    for site in places.stored(found):
        module = made.get_submodule(site.name)
        weights[site.module] = module.weight.T.contiguous() if site.transposed else module.weight
        frozen[site] = format_.frozen(format_.quantize(weights[site.module]), module.bias)
    put = places.put(made, found, frozen)
    return Base(made, None, format_, put | stacked(made, found), weights, made.dtype, torch.device("cpu"))


class Weights(dict[str, torch.Tensor]):
    """The weights as they were, by module, in the place of a model's folder."""

    def linear(self, site: Site) -> torch.Tensor:
        return self[site.module] if site.rows is None else self[site.module][list(site.rows)]


def parts(count: int = 1, step: int = 0, seed: int = 0) -> list[Batch]:
    """One optimizer step in `count` parts that carry unequal numbers of labels."""
    generator = torch.Generator().manual_seed(2 * seed + step % 2)
    ids_BT = torch.randint(VOCABULARY, (ROWS, TIME + 1), generator=generator)
    labels_BT = ids_BT[:, 1:].clone()
    for row in range(ROWS):
        labels_BT[row, : 3 * row] = IGNORED
    total = int((labels_BT != IGNORED).sum())
    cut = zip(ids_BT[:, :-1].chunk(count), labels_BT.chunk(count), strict=True)
    return [Batch(ids, labels, int((labels != IGNORED).sum()) / total) for ids, labels in cut]


@torch.no_grad()
def logits(on: Base) -> torch.Tensor:
    return forward(on.model, parts(step=1)[0]).logits()


def place(adapter: AdapterSettings, on: Base, seed: int = 0) -> Method:
    take(adapter, on)
    return adapt(on, adapter, seed, TOTAL_STEPS)


def take(adapter: AdapterSettings, on: Base) -> None:
    """Make the base anew for an adapter that starts from a part of its weights, as quantize_base does."""
    if not adapter.takes:
        return
    for site in places.stored(on.places):
        if site.role in adapter.roles:
            frozen, weight_OI = on.places[site].frozen, on.weights.linear(site)
            rest_OI, *taken = adapter.take(weight_OI, lambda one: on.format.dequantize(on.format.quantize(one)))
            fresh = on.format.frozen(on.format.quantize(rest_OI), frozen.bias)
            fresh.taken = tuple(taken)
            on.places[site].frozen = fresh.to(frozen.device)


def points(method: Method) -> list[int | None]:
    return method.points or [None]


def logits_at(on: Base, method: Method, at: int | None) -> torch.Tensor:
    """The logits with what the method exports at one of its points."""
    on.attach(method.export(at))
    return logits(on)


def optimizer(method: Method, eps: float = 1e-8) -> Optimizer:
    return AdamW(betas=(0.9, 0.999), eps=eps, weight_decay=0.01).build(method.groups())


def train(on: Base, method: Method, moves: Optimizer, steps: range, count: int = 1, lr: float = 5e-3) -> list[float]:
    """Call the hooks in the order of the training loop; return the losses. The data follow the method's seed."""
    method.train()
    losses = []
    for step in steps:
        method.before_step(step)
        total = 0.0
        for batch in parts(count, step, method.seed):
            loss = method.loss(lambda batch: forward(on.model, batch), batch) * batch.share
            loss.backward()
            total += float(loss.detach())
        method.after_backward(step)
        moves.clip(1.0)
        moves.step(lr)
        method.after_step(step)
        method.refresh()
        moves.zero_grad()
        losses.append(total)
    method.eval()
    return losses


def shake(method: Method, seed: int = 0, size: float = 0.05) -> None:
    """Move every trained weight away from where it starts, so that a no-op cannot pass."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter.device))
    method.refresh()


class Dense(FrozenLinear):
    """A frozen layer over a plain matrix."""

    weight_OI: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape
        self.register_buffer("weight_OI", weight_OI)
        self.register_buffer("bias", bias_O)

    @property
    def device(self) -> torch.device:
        return self.weight_OI.device

    def dense_weight(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        return self.weight_OI.to(dtype or self.weight_OI.dtype)


class Block(nn.Module):
    """A block of a decoder, as far as an adapter of the whole stack sees it."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner, self.dropout = nn.Linear(width, width), nn.Dropout(dropout)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(torch.tanh(self.inner(x)))


def frozen(site: Site, dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Module:
    """What may be frozen at a site, drawn."""
    if site.role == "stack":
        return nn.ModuleList(Block(site.in_features).to(device, dtype) for _ in range(LAYERS))
    if site.role == "norm":
        return LlamaRMSNorm(site.in_features).to(device, dtype)
    weight_OI = torch.randn(site.out_features, site.in_features, device=device) / 8
    made = Dense(weight_OI.to(dtype), torch.randn(site.out_features, device=device).to(dtype))
    made.taken = (torch.randn(8, site.in_features) / 8, torch.randn(site.out_features, 8) / 8)
    return made


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of what is frozen at a site, in another dtype."""
    return copy.deepcopy(module).to(dtype)


def merged(on: Base, layers: dict[Site, nn.Module]) -> Base:
    """A new base whose adapted layers are replaced by plain dense ones that hold the update."""
    fresh = base(on.format)
    for site, layer in layers.items():
        frozen = on.places[site].frozen
        fresh.places[site].frozen = Dense(*layer.update().apply(frozen.dense_weight(), frozen.bias))
    return fresh
