"""NF4: the 16 levels are quantiles of a normal distribution, with an exact zero.

Source: Dettmers et al., QLoRA (arXiv 2305.14314), with the levels that bitsandbytes ships (not the paper's equation 4).
"""

from typing import ClassVar

from pipeline.quantization.codebook import Codebook

LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


class NF4(Codebook):
    """Seven levels below zero, eight above, ascending with the code."""

    kind: ClassVar[str] = "nf4"
    levels: ClassVar[tuple[float, ...]] = LEVELS
