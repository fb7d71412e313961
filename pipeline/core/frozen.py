"""The doorway between storage and adapters: a linear layer that does not train, however its weight is stored.

Letters: I in_features, O out_features, M rows of a batch.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.update import Update


class FrozenMatmul(torch.autograd.Function):
    """y = x W^T + b with a gradient for x alone; W is made again in backward, never kept between the passes."""

    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, frozen: "FrozenLinear") -> Tensor:
        ctx.frozen = frozen
        return frozen.product(x_MI)

    @staticmethod
    def backward(ctx: Any, dy_MO: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.frozen.input_gradient(dy_MO), None


class FrozenLinear(nn.Module):
    """y = W x + b. How W is stored is the subclass's own business; an adapter sees this class only."""

    in_features: int
    out_features: int
    bias: Tensor | None
    taken: tuple[Tensor, Tensor] | None = None
    """A (R, I) and B (O, R), where B A was taken out of the weight before it was stored; on the CPU."""

    @property
    def device(self) -> torch.device:
        """Where the layer is, and where an adapter makes its tensors."""
        raise NotImplementedError  # each way of storing a weight has its own

    def dense_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return W as (O, I), exactly as `forward` uses it for inputs of `dtype` (None: the stored dtype)."""
        raise NotImplementedError  # each way of storing a weight has its own

    def absorb(self, update: Update) -> Update:
        """Take into the stored weight what can be taken without loss; return what could not be taken."""
        return update

    def product(self, x_MI: Tensor) -> Tensor:
        """Return x W^T + b without a graph."""
        bias_O = None if self.bias is None else self.bias.to(x_MI.dtype)
        return nn.functional.linear(x_MI, self.dense_weight(x_MI.dtype), bias_O)

    def input_gradient(self, dy_MO: Tensor) -> Tensor:
        """Return dy W, the gradient of the input."""
        return dy_MO @ self.dense_weight(dy_MO.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + b for x of shape (..., I), in the dtype of x."""
        x_MI = x.flatten(0, -2)
        # 2-D inside and a view outside: some models add in place to what a projection returns, which autograd
        # forbids on the output of a custom function itself.
        learning = torch.is_grad_enabled() and x.requires_grad
        y_MO: Any = FrozenMatmul.apply(x_MI, self) if learning else self.product(x_MI)
        return y_MO.view(*x.shape[:-1], self.out_features)
