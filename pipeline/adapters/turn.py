"""The path of every adapter that turns the input block by block: x becomes x R, given as x + x (R - I).

Given as a difference, no turn at all is exactly x in every dtype, and small turns keep their digits in bf16.

Shapes: x (M, I) seen as (N, M, C) without a copy, turn = R - I (N, C, C).
"""

from typing import Any

import torch
from torch import Tensor


class Turn(torch.autograd.Function):
    """x + x turn, with gradients for both. The products add to a copy of x; nothing else of its size is made."""

    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, turn_NCC: Tensor) -> Tensor:
        ctx.save_for_backward(x_MI, turn_NCC)
        return _add_products(x_MI, turn_NCC)

    @staticmethod
    def backward(ctx: Any, dy_MI: Tensor) -> tuple[Tensor | None, Tensor]:  # type: ignore[override]
        x_MI, turn_NCC = ctx.saved_tensors
        dturn_NCC = _blocks(x_MI, turn_NCC).mT @ _blocks(dy_MI, turn_NCC)
        return _add_products(dy_MI, turn_NCC.mT) if ctx.needs_input_grad[0] else None, dturn_NCC


def turned(x: Tensor, turn_NCC: Tensor) -> Tensor:
    """Return x R for x (..., I), computed in the dtype of x."""
    y_MI: Any = Turn.apply(x.flatten(0, -2), turn_NCC.to(x.dtype))
    return y_MI.view(x.shape)


def _blocks(x_MI: Tensor, turn_NCC: Tensor) -> Tensor:
    return x_MI.unflatten(-1, turn_NCC.shape[:2]).transpose(0, 1)


def _add_products(x_MI: Tensor, turn_NCC: Tensor) -> Tensor:
    y_MI = x_MI.clone(memory_format=torch.contiguous_format)
    _blocks(y_MI, turn_NCC).baddbmm_(_blocks(x_MI, turn_NCC), turn_NCC)
    return y_MI
