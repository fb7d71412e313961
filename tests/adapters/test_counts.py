"""Trainable parameters of real models, as OFTv2 (arXiv:2506.19847) prints them, to the unit."""

import pytest
import torch

from pipeline.adapters.lora import LoRA
from pipeline.adapters.oft import OFT
from pipeline.core.frozen import FrozenLinear
from pipeline.core.site import LINEAR_ROLES, Site

# hidden, intermediate, width of k and v, layers, LoRA of rank 16, OFT of block 32
MODELS = {
    "Llama-2-7B": (4096, 11008, 4096, 32, 39_976_960, 17_649_664),
    "Llama-2-13B": (5120, 13824, 5120, 40, 62_586_880, 27_617_280),
    "Qwen2.5-0.5B": (896, 4864, 128, 24, 8_798_208, 3_809_280),
    "Qwen2.5-1.5B": (1536, 8960, 256, 28, 18_464_768, 7_888_384),
    "Qwen2.5-3B": (2048, 11008, 256, 36, 29_933_568, 12_999_168),
    "Qwen2.5-7B": (3584, 18944, 512, 28, 40_370_176, 17_554_432),
    "Qwen2.5-14B": (5120, 13824, 1024, 48, 68_812_800, 33_140_736),
    "Qwen2.5-32B": (5120, 27648, 1024, 64, 134_217_728, 57_901_056),
    "Qwen2.5-72B": (8192, 29568, 1024, 80, 210_534_400, 97_612_800),
}


class Shape(FrozenLinear):
    """A layer without a weight: counting needs none."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")


def one_block(hidden: int, inner: int, kv: int) -> dict[Site, FrozenLinear]:
    sizes = {
        "q": (hidden, hidden), "k": (hidden, kv), "v": (hidden, kv), "o": (hidden, hidden),
        "gate": (hidden, inner), "up": (hidden, inner), "down": (inner, hidden),
    }  # fmt: skip
    return {Site(role, role, i, o, 0, bias=False): Shape() for role, (i, o) in sizes.items()}


@pytest.mark.parametrize("name", MODELS)
def test_counts_are_the_published_ones(name):
    hidden, inner, kv, layers, lora, oft = MODELS[name]
    for settings, expected in (
        (LoRA(rank=16, alpha=16.0, roles=LINEAR_ROLES), lora),
        (OFT(block_size=32, terms=5, shared=False, roles=LINEAR_ROLES), oft),
    ):
        method = settings.method(seed=0, total_steps=1)
        method.place(one_block(hidden, inner, kv))
        assert layers * sum(parameter.numel() for parameter in method.parameters()) == expected
