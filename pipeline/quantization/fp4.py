"""FP4 as bitsandbytes has it: a sign, two bits of exponent, one of mantissa, and an order of codes of its own.

The levels are 0, 1/16, 2, 3, 4, 6, 8 and 12 twelfths; the code is no binary float that others would read (E2M1 has 0,
1/2, 1, 1.5, 2, 3, 4, 6). Code 8 is a second zero: a value above zero that is nearest to it gets this one.
"""

from typing import ClassVar

from pipeline.quantization.codebook import Codebook

TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
LEVELS = tuple(sign * twelfths / 12 for sign in (1, -1) for twelfths in TWELFTHS)


class FP4(Codebook):
    """The high bit of a code is the sign."""

    kind: ClassVar[str] = "fp4"
    levels: ClassVar[tuple[float, ...]] = LEVELS
