"""No quantization: the weight as the model has it."""

import torch
from torch import Tensor

from pipeline.quantization.base import Format, QuantizedWeight, check_weight


class Dense(Format):
    """Keep the weight in its own dtype."""

    own_folder = False

    @property
    def name(self) -> str:
        return "none"

    def bits_per_parameter(self, dtype: torch.dtype) -> float:
        return 8.0 * dtype.itemsize

    def quantize(self, weight_OI: Tensor) -> QuantizedWeight:
        check_weight(weight_OI)
        O, I = weight_OI.shape
        return QuantizedWeight({"weight": weight_OI.detach()}, (O, I), weight_OI.dtype)

    def dequantize(self, stored: QuantizedWeight, dtype: torch.dtype | None = None) -> Tensor:
        return stored.tensors["weight"].to(dtype or stored.dtype)
