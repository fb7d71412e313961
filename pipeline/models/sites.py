"""Finds every linear layer and norm of an architecture and gives it its role, or refuses the architecture.

A new architecture is a row of TABLE. A linear layer that no pattern names is an error, so that a model is never half
adapted.
"""

import re
from typing import Any

from torch import nn

from pipeline.core.settings import SettingsError
from pipeline.core.site import Site

LLAMA = (
    (r"\.(?P<layer>\d+)\.self_attn\.(?P<role>[qkvo])_proj$", None),
    (r"\.(?P<layer>\d+)\.mlp\.(?P<role>gate|up|down)_proj$", None),
    (r"\.(?P<layer>\d+)\.(?:input|post_attention)_layernorm$", "norm"),
)
TABLE = {"llama": LLAMA, "qwen2": LLAMA, "mistral": LLAMA}
NO_SITE = (r"(^|\.)lm_head$", r"^model\.norm$")
"""Layers that carry no adapter and stay unquantized: the output head and the final norm."""


def find(model: Any) -> list[Site]:
    """Return the sites of a transformers model in forward order; names are module paths.

    Raises:
        SettingsError: the architecture has no row in TABLE, or a linear layer that no pattern names.
    """
    kind = model.config.model_type
    if kind not in TABLE:
        raise SettingsError(f"model: architecture {kind!r} is not known; allowed: {', '.join(sorted(TABLE))}.")
    sites = []
    for name, module in model.named_modules():
        if any(re.search(pattern, name) for pattern in NO_SITE):
            continue
        site = _match(kind, name, module)
        if site is not None:
            sites.append(site)
        elif type(module) is nn.Linear:
            raise SettingsError(f"model: linear layer {name!r} of architecture {kind!r} has no role in TABLE.")
    return sites


def _match(kind: str, name: str, module: Any) -> Site | None:
    for pattern, fixed_role in TABLE[kind]:
        if found := re.search(pattern, name):
            weight = module.weight
            out_features, in_features = (weight.shape[0], weight.shape[-1])
            bias = getattr(module, "bias", None) is not None
            role = fixed_role or found["role"]
            return Site(name, role, in_features, out_features, int(found["layer"]), bias)
    return None
