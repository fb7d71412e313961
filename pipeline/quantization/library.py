"""bitsandbytes' own formats, as rows to compare ours with: its kernels store, restore and multiply.

Kernels are called as functions: its `Linear4bit` repacks weights in place at the first forward in eval mode on CPUs
with AVX512-BF16, after which gradients are dropped and the dequantized weight is another one. `Linear8bitLt` computes
with the dequantized weight in train mode on a CPU; here inputs are rounded in both modes, as it does on a device.
"""

from typing import Any

import torch
from torch import Tensor

from pipeline.core import library
from pipeline.quantization.base import QuantizedWeight, StoredLinear, check_weight
from pipeline.quantization.codebook import SCALES_PER_BLOCK
from pipeline.quantization.int8 import Int8
from pipeline.quantization.nf4 import NF4


class LibraryNF4(NF4):
    """The layout is ours too, for it is the library's."""

    @property
    def name(self) -> str:
        return f"bnb-{super().name}"

    def quantize(self, weight_OI: Tensor) -> QuantizedWeight:
        check_weight(weight_OI)
        O, I = weight_OI.shape
        packed, state = _bitsandbytes(self).functional.quantize_4bit(
            weight_OI.detach().contiguous(),
            blocksize=self.block_size,
            compress_statistics=self.double,
            quant_type="nf4",
        )
        tensors = {"packed": packed, "absmax": state.absmax}
        if self.double:
            tensors |= {"nested_absmax": state.state2.absmax, "offset": state.offset[None]}
        return QuantizedWeight(tensors, (O, I), weight_OI.dtype)

    def dequantize(self, stored: QuantizedWeight, dtype: torch.dtype | None = None) -> Tensor:
        state = self.state(stored, dtype or stored.dtype)
        return _bitsandbytes(self).functional.dequantize_4bit(stored.tensors["packed"], state)

    def frozen(self, stored: QuantizedWeight, bias_O: Tensor | None) -> StoredLinear:
        return LibraryLinear4bit(self, stored, bias_O)

    def state(self, stored: QuantizedWeight, dtype: torch.dtype) -> Any:
        """Return the library's QuantState of a weight to be dequantized to `dtype`."""
        functional = _bitsandbytes(self).functional
        held, device = stored.tensors, stored.tensors["packed"].device
        nested = {}
        if self.double:
            code = functional.create_dynamic_map().to(device)
            scales = functional.QuantState(held["nested_absmax"], code=code, blocksize=SCALES_PER_BLOCK)
            scales.dtype = torch.float32
            nested = {"offset": held["offset"][0], "state2": scales}
        return functional.QuantState(
            held["absmax"],
            shape=torch.Size(stored.shape),
            code=functional.get_4bit_type("nf4", device=device),
            blocksize=self.block_size,
            quant_type="nf4",
            dtype=dtype,
            **nested,
        )


class LibraryLinear4bit(StoredLinear):
    """y = W x + b by the library's product."""

    def product(self, x_MI: Tensor) -> Tensor:
        assert isinstance(self.format, LibraryNF4)
        bias_O = None if self.bias is None else self.bias.to(x_MI.dtype)
        packed, state = self.quantized.tensors["packed"], self.format.state(self.quantized, x_MI.dtype)
        return _bitsandbytes(self.format).matmul_4bit(x_MI, packed, state, bias=bias_O)


class LibraryInt8(Int8):
    """The layout is ours too, for it is the library's."""

    @property
    def name(self) -> str:
        return "bnb-int8"

    def quantize(self, weight_OI: Tensor) -> QuantizedWeight:
        self.check(weight_OI)
        O, I = weight_OI.shape
        code_OI, absmax_O, _ = _bitsandbytes(self).functional.int8_vectorwise_quant(weight_OI.detach().half())
        return QuantizedWeight({"code": code_OI, "absmax": absmax_O}, (O, I), weight_OI.dtype)

    def dequantize(self, stored: QuantizedWeight, dtype: torch.dtype | None = None) -> Tensor:
        functional = _bitsandbytes(self).functional
        weight_OI = functional.int8_vectorwise_dequant(stored.tensors["code"], stored.tensors["absmax"])
        return weight_OI.to(dtype or stored.dtype)

    def frozen(self, stored: QuantizedWeight, bias_O: Tensor | None) -> StoredLinear:
        return LibraryLinear8bit(self, stored, bias_O)


class LibraryLinear8bit(StoredLinear):
    """y = W x + b by the library's mixed product."""

    def product(self, x_MI: Tensor) -> Tensor:
        assert isinstance(self.format, LibraryInt8)
        held, functional = self.quantized.tensors, _bitsandbytes(self.format).functional
        bias_O = None if self.bias is None else self.bias.to(x_MI.dtype)
        # A copy, for the library zeroes outliers in what it is given and puts them back.
        code_MI, absmax_M, outliers = functional.int8_vectorwise_quant(
            x_MI.to(torch.float16, copy=True), self.format.threshold
        )
        y_MO, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(
            x_MI, code_MI, held["code"], absmax_M, held["absmax"], outliers, bias_O
        )
        return y_MO


def _bitsandbytes(format_: NF4 | Int8) -> Any:
    return library.bitsandbytes("quantization", f"quantization={format_.name.removeprefix('bnb-')}")
