"""The path of every low-rank adapter: y = W x + b + B A x in as few passes as its products need.

Written as an expression the branch is formed, scaled and added in three passes over y, and again over dx in backward;
here its products add to what the frozen layer has just made. Scales and masks go into B, which is small.

Shapes: x (M, I), A (R, I), B (O, R), h = A x (M, R).
"""

from typing import Any

import torch
from torch import Tensor

from pipeline.core.frozen import FrozenLinear


class LowRank(torch.autograd.Function):
    """frozen(x) + x A^T B^T, with gradients for x, A and B."""

    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, A_RI: Tensor, B_OR: Tensor, frozen: FrozenLinear) -> Tensor:
        h_MR = x_MI @ A_RI.T
        ctx.frozen = frozen
        ctx.save_for_backward(x_MI, h_MR, A_RI, B_OR)
        return frozen.product(x_MI).addmm_(h_MR, B_OR.T)

    @staticmethod
    def backward(ctx: Any, dy_MO: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:  # type: ignore[override]
        x_MI, h_MR, A_RI, B_OR = ctx.saved_tensors
        dh_MR = dy_MO @ B_OR
        dx_MI = ctx.frozen.input_gradient(dy_MO).addmm_(dh_MR, A_RI) if ctx.needs_input_grad[0] else None
        return dx_MI, dh_MR.T @ x_MI, (h_MR.T @ dy_MO).T, None


def low_rank(x: Tensor, A_RI: Tensor, B_OR: Tensor, frozen: FrozenLinear) -> Tensor:
    """Return frozen(x) + x A^T B^T for x (..., I), computed in the dtype of x."""
    y_MO: Any = LowRank.apply(x.flatten(0, -2), A_RI.to(x.dtype), B_OR.to(x.dtype), frozen)
    return y_MO.view(*x.shape[:-1], frozen.out_features)
