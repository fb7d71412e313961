"""Weights of a shape alone, to measure what a model costs: drawn from a seed one tensor at a time.

The tokenizer knows bytes and no words.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from pipeline.core.seeds import generator
from pipeline.core.settings import SettingsError
from pipeline.models.load import unfilled
from pipeline.quantization.files import Shards

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STD = 0.02
SPECIAL = ("<pad>", "<s>", "</s>")
"""Ids 0, 1 and 2."""


def draw(config: dict[str, Any], dtype: Literal["fp32", "bf16", "fp16"], seed: int, folder: Path) -> None:
    """Write a model folder with weights from `seed`, in shards.

    Raises:
        SettingsError: the vocabulary is too small for bytes.
    """
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415  (seconds; a plan of a preset needs none of it)

    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    ids = dict(zip(("pad_token_id", "bos_token_id", "eos_token_id"), range(3), strict=True))
    with torch.device("meta"):
        model = unfilled(config | ids)
    if model.config.vocab_size < len(tokens):
        raise SettingsError(
            f"model.config.vocab_size: must be at least {len(tokens)} (bytes and {', '.join(SPECIAL)}), "
            f"got {model.config.vocab_size}."
        )
    shards = Shards(folder)
    for name, parameter in model.named_parameters():
        shards.add(name, _drawn(name, parameter, DTYPES[dtype], seed))
    shards.close()
    model.config.dtype = DTYPES[dtype]
    model.config.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def _drawn(name: str, parameter: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """Return a tensor as training starts with it: matrices from a normal distribution, scales one, biases zero."""
    if parameter.dim() > 1:
        return torch.empty(parameter.shape, dtype=dtype).normal_(0, STD, generator=generator(seed, f"init/{name}"))
    return torch.full(parameter.shape, 0.0 if name.endswith("bias") else 1.0, dtype=dtype)
