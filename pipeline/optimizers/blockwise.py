"""AdamW whose moments are stored in 8 bits: codes of a dynamic data type, and one scale for 256 of them.

Source: Dettmers et al., 8-bit Optimizers via Block-wise Quantization (arXiv 2110.02861), as bitsandbytes 0.50 has it:
the first moment in the signed type, the second in the unsigned one, the weight moved by the moments before they are
rounded. Every bit is that of its CPU kernels, oddities included: `core/dynamic.py` says how they round. Its CUDA
kernels round to the nearest code instead, so on a GPU the library's own row differs from ours by rounding.

Shapes: N elements, S = N / BLOCK scales.
"""

import math

import torch
from torch import Tensor

from pipeline.core import dynamic
from pipeline.optimizers.adamw import AdamW
from pipeline.optimizers.pages import BLOCK, Page, Piece

# There is no public name for these. One kernel over many tensors:
_copy_all, _zero_all = torch._foreach_copy_, torch._foreach_zero_  # pyright: ignore[reportPrivateImportUsage]

Fields = dict[str, Tensor]
"""first_code, second_code (N, uint8), first_scale, second_scale (S, float32)."""


def moved(moments: Fields, gradient_N: Tensor, settings: AdamW) -> tuple[Tensor, Tensor]:
    """Return both moments (N, float32) after this gradient."""
    b1, b2 = settings.betas
    first_N = dynamic.dequantize(moments["first_code"], moments["first_scale"], BLOCK, signed=True)
    second_N = dynamic.dequantize(moments["second_code"], moments["second_scale"], BLOCK, signed=False)
    first_N.mul_(b1).add_(gradient_N, alpha=1 - b1)
    second_N.mul_(b2).addcmul_(gradient_N, gradient_N, value=1 - b2)
    return first_N, second_N


def store(moments: Fields, first_N: Tensor, second_N: Tensor) -> None:
    """Round both moments into their codes and scales."""
    for name, values_N, signed in (("first", first_N, True), ("second", second_N, False)):
        code_N, scale_S = dynamic.quantize(values_N, BLOCK, signed)
        moments[f"{name}_code"].copy_(code_N)
        moments[f"{name}_scale"].copy_(scale_S)


def move(weight_N: Tensor, first_N: Tensor, second_N: Tensor, settings: AdamW, rates: tuple[float, float, int]) -> None:
    """Move a weight in place. `rates`: the learning rate, the decay, and which step of this parameter it is."""
    (b1, b2), (rate, decay, t) = settings.betas, rates
    denominator_N = (second_N.sqrt() / math.sqrt(1 - b2**t)).add_(settings.eps)
    if decay > 0:
        weight_N.mul_(1 - rate * decay)
    weight_N.addcdiv_(first_N, denominator_N, value=-rate / (1 - b1**t))


def update_pieces(page: Page, views: Fields, settings: AdamW, lr: float) -> None:
    """Move the pieces of a page that have a gradient, one after the other: the readable form."""
    for piece in page.pieces:
        if piece.parameter.grad is not None:
            piece.count += 1
            moments = {name: piece.part(name, views, page.layout) for name in views}
            first_N, second_N = moved(moments, piece.gradient, settings)
            move(piece.weight, first_N, second_N, settings, _rates(page, piece, settings, lr))
            store(moments, first_N, second_N)


def update_page(page: Page, views: Fields, settings: AdamW, lr: float) -> None:
    """Move the pieces of a page at once, gathered into one tensor: the fast form, 40 kernels for a million elements.

    Pieces that do not all have a gradient, or not all the same count of steps, are left to the readable form.
    """
    if any(piece.parameter.grad is None for piece in page.pieces) or len({int(p.count) for p in page.pieces}) > 1:
        update_pieces(page, views, settings, lr)
        return
    for piece in page.pieces:
        piece.count += 1
    weight_N, gradient_N = torch.zeros(2, page.elements, device=page.pieces[0].parameter.device)
    weights, gradients = ([N[piece.within] for piece in page.pieces] for N in (weight_N, gradient_N))
    _copy_all(weights, [piece.weight for piece in page.pieces])
    _copy_all(gradients, [piece.gradient for piece in page.pieces])
    first_N, second_N = moved(views, gradient_N, settings)
    # Between the end of a piece and the next block there is nothing; it must not decide a scale.
    gaps = [N[gap] for gap in page.gaps for N in (first_N, second_N)]
    if gaps:
        _zero_all(gaps)
    move(weight_N, first_N, second_N, settings, _rates(page, page.pieces[0], settings, lr))
    store(views, first_N, second_N)
    _copy_all([piece.weight for piece in page.pieces], weights)


def _rates(page: Page, piece: Piece, settings: AdamW, lr: float) -> tuple[float, float, int]:
    return lr * page.group.lr_scale, settings.weight_decay * page.group.decay, int(piece.count)
