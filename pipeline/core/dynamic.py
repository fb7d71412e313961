"""The 8-bit dynamic data types: signed for scales of scales and first moments, unsigned for second moments.

Source: Dettmers et al., 8-bit Optimizers via Block-wise Quantization (arXiv 2110.02861), as bitsandbytes 0.50 has it.
Its CPU kernel does not search for the nearest code: it rounds to one of 65,536 evenly spaced points and looks the code
of that point up. Zero is no such point, so an exact zero is stored as 1.2e-5 of the block's scale. We do the same, to
be equal byte for byte.
"""

from functools import cache

import torch
from torch import Tensor

CELLS = 65536


@cache
def codebook(device: torch.device, signed: bool = True) -> Tensor:
    """Return the 256 ascending values: seven decades 1e-6..1, the decade e split into equal parts, 0 and 1.

    A sign takes one bit: there are 2^e parts with it and 2^(e + 1) without.
    """
    positive: list[float] = []
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1)
        positive += (10.0 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)).tolist()
    negative = [-value for value in positive] if signed else []
    return torch.tensor(sorted([0.0, 1.0, *positive, *negative]), device=device)


@cache
def _code_of_cell(device: torch.device, signed: bool = True) -> Tensor:
    """Return the code of each of the CELLS points from -1 to 1, as uint8."""
    points = torch.arange(CELLS, dtype=torch.float32) * 2 / (CELLS - 1) - 1
    values = codebook(torch.device("cpu"), signed)
    return torch.bucketize(points, (values[:-1] + values[1:]) / 2).to(torch.uint8).to(device)


def quantize(values_N: Tensor, block_size: int, signed: bool = True) -> tuple[Tensor, Tensor]:
    """Return the codes (N) as uint8 and the scales (S) as float32 of blocks of `block_size` values.

    If a block's scale is so small that its reciprocal overflows, positive values get the last code, others the first.
    """
    N = values_N.numel()
    blocks_SK = torch.nn.functional.pad(values_N, (0, -N % block_size)).view(-1, block_size)
    scale_S = blocks_SK.abs().amax(1)
    reciprocal_S1 = (1 / scale_S)[:, None]
    unit_SK = (blocks_SK * reciprocal_S1).clamp(-1, 1).nan_to_num(nan=-1)  # zero times an infinite reciprocal
    # The kernel rounds this once, as a fused multiply-add; at no edge between two codes does that make a difference.
    cell_SK = ((unit_SK + 1) * 0.5 * (CELLS - 1) + 0.5).int()
    code_SK = _code_of_cell(values_N.device, signed)[cell_SK]
    return code_SK.flatten()[:N], scale_S


def dequantize(code_N: Tensor, scale_S: Tensor, block_size: int, signed: bool = True) -> Tensor:
    """Return code value * scale of its block, as float32."""
    scale_N = scale_S.repeat_interleave(block_size)[: code_N.numel()]
    return codebook(code_N.device, signed).index_select(0, code_N.int()) * scale_N
