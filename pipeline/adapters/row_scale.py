"""Scales what a layer makes of its input, but not its bias: y = s (W x) + b.

Written as y + (s - 1)(y - b), a scale of one is exactly no change in every dtype, and small ones keep their digits.

Shapes: y (..., O); gain = s - 1 and bias (O,).
"""

from torch import Tensor


def scaled_rows(y: Tensor, gain_O: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return s (y - b) + b for y = W x + b, in the dtype of y."""
    without_bias = y if bias_O is None else y - bias_O.to(y.dtype)
    return y + gain_O.to(y.dtype) * without_bias


def kept_bias(scale_O: Tensor, bias_O: Tensor | None) -> Tensor | None:
    """Return what an update must add to the bias, for its row scale scales the bias too."""
    return None if bias_O is None else (1 - scale_O) * bias_O.to(scale_O.dtype)
