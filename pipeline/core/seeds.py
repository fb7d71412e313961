"""Named random streams: a draw is a pure function of (seed, name, step), so nothing random is ever stored.

All methods at one seed therefore see the same data in the same order, whatever else they draw.
"""

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def number(seed: int, name: str, step: int = 0) -> int:
    """Return 56 bits that depend on nothing but the arguments."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}/{step}".encode()).digest()[:7], "big")


def generator(seed: int, name: str, step: int = 0) -> "torch.Generator":
    """Return a fresh CPU generator of the stream `name` at `step`."""
    import torch  # noqa: PLC0415  (light stages draw orders without loading torch)

    return torch.Generator().manual_seed(number(seed, name, step))


def shuffled(seed: int, name: str, n: int) -> list[int]:
    """Return a permutation of range(n)."""
    order = list(range(n))
    random.Random(number(seed, name)).shuffle(order)  # noqa: S311  (not for secrets)
    return order
