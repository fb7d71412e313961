"""Tiny models of every architecture of the matrix, to be adapted by slices of a fused projection or as a whole."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.adapters.base import AdapterSettings
from pipeline.models.load import Base
from pipeline.quantization.base import Format
from tests.adapters import tiny

SIZES = {
    "vocab_size": tiny.VOCABULARY, "hidden_size": 64, "num_hidden_layers": tiny.LAYERS, "num_attention_heads": 4,
    "initializer_range": 0.08, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GATED = {"intermediate_size": 128, "num_key_value_heads": 2}
FALCON = SIZES | {"ffn_hidden_size": 128, "alibi": False}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SIZES | GATED,
    "qwen2": SIZES | GATED | {"tie_word_embeddings": False},
    "qwen2-tied": SIZES | GATED | {"tie_word_embeddings": True},
    "gpt2": SIZES | {"n_inner": 128},
    "gpt2-whole": SIZES | {"n_inner": 128},
    "falcon-old": FALCON | {"multi_query": True, "new_decoder_architecture": False, "bias": False},
    "falcon-new": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    "falcon-new-whole": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
}
"""`model_type` with a variant behind the hyphen; -whole takes a fused projection as one place, not by its slices."""


def model(architecture: str) -> Any:
    """The same weights each time; biases are not zero."""
    config = AutoConfig.for_model(architecture.partition("-")[0], **ARCHITECTURES[architecture])
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            parameter.add_(0.05)
    return made


def base(architecture: str, format_: Format) -> Base:
    """A model with every linear layer stored in `format_`."""
    return tiny.on(model(architecture), format_)


def aimed(adapter: AdapterSettings, architecture: str) -> AdapterSettings:
    """The adapter as it is set up for an architecture."""
    if not architecture.endswith("-whole"):
        return adapter
    roles = dict.fromkeys("qkv" if role in ("q", "k", "v") else role for role in adapter.roles)
    return adapter.model_copy(update={"roles": tuple(roles)})
