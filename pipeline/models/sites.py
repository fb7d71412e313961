"""Finds every linear layer and norm of an architecture and gives it its role, or refuses the architecture.

A new architecture is a row of TABLE. A matrix that no pattern names is an error, so that a model is never half adapted.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from pipeline.core.settings import SettingsError
from pipeline.core.site import Site

LLAMA = {
    **{role: rf"self_attn\.{role}_proj" for role in "qkvo"},
    **{role: rf"mlp\.{role}_proj" for role in ("gate", "up", "down")},
    "norm": r"(input|post_attention)_layernorm",
}
GPT2 = {
    "qkv": r"attn\.c_attn", "o": r"attn\.c_proj", "up": r"mlp\.c_fc", "down": r"mlp\.c_proj", "norm": r"ln_[12]",
}  # fmt: skip
FALCON = {
    "qkv": r"self_attention\.query_key_value",
    "o": r"self_attention\.dense",
    "up": r"mlp\.dense_h_to_4h",
    "down": r"mlp\.dense_4h_to_h",
    "norm": r"input_layernorm|post_attention_layernorm|ln_attn|ln_mlp",
}
BERT = {
    "q": r"attention\.self\.query",
    "k": r"attention\.self\.key",
    "v": r"attention\.self\.value",
    "o": r"attention\.output\.dense",
    "up": r"intermediate\.dense",
    "down": r"output\.dense",
    "norm": r"(attention\.)?output\.LayerNorm",
}
TABLE = {"llama": LLAMA, "qwen2": LLAMA, "mistral": LLAMA, "gpt2": GPT2, "falcon": FALCON, "bert": BERT}
"""Role -> the module's path below its block, by `model_type`."""
DECODERS = tuple(kind for kind in sorted(TABLE) if kind != "bert")
"""The causal language models, which is what a sweep trains and asks."""
NO_SITE = r"(.*\.)?(lm_head|pooler\.dense|cls\..*)"
"""Linear layers that carry no adapter and stay unquantized: what stands behind the last block."""


def find(model: Any) -> list[Site]:
    """Return the sites of a transformers model in forward order; slices follow the fused projection that they are of.

    Raises:
        SettingsError: the architecture has no row in TABLE, or a matrix that no pattern names.
    """
    kind = model.config.model_type
    if kind not in TABLE:
        raise SettingsError(f"model: architecture {kind!r} is not known; allowed: {', '.join(sorted(TABLE))}.")
    sites = []
    for name, module in model.named_modules():
        if (place := _place(kind, name)) is not None:
            role, layer = place
            sites += _sites(model.config, site_of(name, module, role, layer))
        elif _has_matrix(module) and not isinstance(module, nn.Embedding) and not re.fullmatch(NO_SITE, name):
            what = "linear layer" if isinstance(module, nn.Linear) else f"{type(module).__name__}"
            raise SettingsError(f"model: {what} {name!r} of architecture {kind!r} has no role in TABLE.")
    return sites


def site_of(name: str, module: Any, role: str, layer: int) -> Site:
    """Return the site that a linear module, or a norm, is."""
    shape, transposed = tuple(module.weight.shape), _is_conv1d(module)
    out_features, in_features = (shape[-1], shape[0]) if transposed else (shape[0], shape[-1])
    bias = getattr(module, "bias", None) is not None
    return Site(name, role, in_features, out_features, layer, bias, transposed=transposed)


def layer_of(name: str) -> int:
    """Return the first number in a module's path, the block that it is in; 0 where there is none."""
    found = re.search(r"(?<![^.])\d+(?![^.])", name)
    return int(found[0]) if found else 0


def is_linear(module: nn.Module) -> bool:
    """Say whether a module is a linear layer."""
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def foreign(model: nn.Module, found: Iterable[Site]) -> str | None:
    """Return the first linear layer that transformers 5 does not load quantized: of no class that it replaces.

    It replaces nn.Linear and Conv1D, but no subclass of them, such as Falcon's.
    """
    linear = [site for site in found if site.linear and not site.transposed]
    return next((site.module for site in linear if type(model.get_submodule(site.module)) is not nn.Linear), None)


def _is_conv1d(module: Any) -> bool:
    from transformers.pytorch_utils import Conv1D  # noqa: PLC0415  (seconds; a model of it has it loaded)

    return isinstance(module, Conv1D)


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))


def _place(kind: str, name: str) -> tuple[str, int] | None:
    """Return role and block of a module that TABLE names."""
    for role, pattern in TABLE[kind].items():
        if found := re.fullmatch(rf".*?\.(?P<layer>\d+)\.({pattern})", name):
            return role, int(found["layer"])
    return None


def _sites(config: Any, site: Site) -> Iterator[Site]:
    """Yield the site, and if it is a fused projection its slices."""
    yield site
    if site.role == "qkv":
        for role, rows in _rows(config, site).items():
            name = f"{site.name}:{role}"
            yield Site(name, role, site.in_features, len(rows), site.layer, site.bias, rows, site.transposed)


def _rows(config: Any, site: Site) -> dict[str, tuple[int, ...]]:
    """Return which outputs of a fused projection are q, k and v.

    GPT-2 has q, k and v one after the other. Falcon has heads of a group beside each other, with their key and their
    value behind: groups of one head at first, all heads in one group with `multi_query`, `num_kv_heads` groups now.
    """
    if config.model_type == "gpt2":
        groups, queries, width = 1, 1, site.in_features
    else:
        heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        one = 1 if config.multi_query else heads
        groups = config.num_kv_heads if config.new_decoder_architecture else one
        queries = heads // groups
    rows_GHW = torch.arange(site.out_features, device="cpu").view(groups, queries + 2, width)
    parts = {"q": rows_GHW[:, :-2], "k": rows_GHW[:, -2], "v": rows_GHW[:, -1]}
    return {role: tuple(part.flatten().tolist()) for role, part in parts.items()}
