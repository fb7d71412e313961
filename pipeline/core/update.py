"""What an adapter does to a linear layer, written as weights.

Letters: O out_features, I in_features, N blocks along I, C block size (N C = I).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Update:
    """W' = row_scale (W rotation^T column_scale + delta), b' = row_scale b + bias. The order is part of the contract.

    `rotation_NCC` acts block by block on the input: x is rotated to x R, so W is multiplied by R^T from the right.
    """

    delta_OI: Tensor | None = None
    rotation_NCC: Tensor | None = None
    row_scale_O: Tensor | None = None
    column_scale_I: Tensor | None = None
    bias_O: Tensor | None = None

    def empty(self) -> bool:
        """Say whether nothing is left to do."""
        return all(value is None for value in vars(self).values())

    def apply(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the merged weight (O, I) and bias (O), new tensors in the dtype of `weight_OI`."""
        dtype, merged = weight_OI.dtype, weight_OI
        if self.rotation_NCC is not None:
            N, C, _ = self.rotation_NCC.shape
            blocks_ONC = merged.reshape(-1, N, C)
            merged = torch.einsum("onc,ndc->ond", blocks_ONC, self.rotation_NCC.to(dtype)).reshape(weight_OI.shape)
        if self.column_scale_I is not None:
            merged = merged * self.column_scale_I.to(dtype)
        if self.delta_OI is not None:
            merged = merged + self.delta_OI.to(dtype)
        if self.row_scale_O is not None:
            merged = self.row_scale_O.to(dtype)[:, None] * merged
            bias_O = None if bias_O is None else self.row_scale_O.to(bias_O.dtype) * bias_O
        if self.bias_O is not None:
            bias_O = self.bias_O.to(dtype) if bias_O is None else bias_O + self.bias_O.to(bias_O.dtype)
        return merged, bias_O
