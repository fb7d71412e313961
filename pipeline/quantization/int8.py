"""LLM.int8(): eight bits a weight with one scale a row, and inputs rounded to eight bits row by row in every pass.

Source: Dettmers et al. 2022 (arXiv 2208.07339), equal to bitsandbytes 0.50 in every bit: stored codes and scales,
dequantized weights, and the layer's output as its `Linear8bitLt` computes it in eval mode.

    code = round(127 w / absmax_o)           w' = code absmax_o / 127         absmax_o = max |w| over row o
    y    = (code_x code^T) absmax_x absmax_o / 127^2 + x_outlier W'^T + b

A column of x in which any |x| >= `threshold` is an outlier: it is kept as it is, and meets the dequantized weight.

- Weights and inputs pass through float16, as in the library; weights that it cannot hold are refused.
- On a CPU the library computes with the dequantized weight in train mode and as above in eval mode; on a device, and
  here everywhere, as above in both. The gradient of the input is that of the dequantized weight.
- A row of zeros is stored as zeros; the library casts 0 / 0 to an integer there, which gives zero on x86.
"""

from dataclasses import replace
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from pipeline.quantization.base import (
    Format,
    QuantizationError,
    QuantizedWeight,
    StoredLinear,
    check_weight,
)

ONE_STEP = 7.874015718698502e-3  # 1 / 127 and 1 / 127^2, as the library writes them
TWO_STEPS = 6.200124e-05


class Int8(Format):
    """Inputs of at least `threshold` are kept out of the integers; 0 keeps none out."""

    threshold: Annotated[float, Ge(0)]

    @property
    def name(self) -> str:
        return "int8"

    def bits_per_parameter(self, dtype: torch.dtype) -> float:
        return 8.0

    def quantize(self, weight_OI: Tensor) -> QuantizedWeight:
        self.check(weight_OI)
        O, I = weight_OI.shape
        code_OI, absmax_O = quantize_rows(weight_OI.detach().half())
        return QuantizedWeight({"code": code_OI, "absmax": absmax_O}, (O, I), weight_OI.dtype)

    def check(self, weight_OI: Tensor) -> None:
        """Refuse what no format can store, and what float16 cannot hold."""
        check_weight(weight_OI)
        if not torch.isfinite(weight_OI.half()).all():
            largest = weight_OI.detach().abs().max().item()
            raise QuantizationError(f"int8 passes weights through float16, which ends at 65504; got {largest:g}.")

    def dequantize(self, stored: QuantizedWeight, dtype: torch.dtype | None = None) -> Tensor:
        return dequantize_rows(stored.tensors["code"], stored.tensors["absmax"]).to(dtype or stored.dtype)

    def block_absmax(self, weight_OI: Tensor) -> Tensor:
        return weight_OI.detach().float().abs().amax(1)

    def row_scaled(self, stored: QuantizedWeight, scale_O: Tensor) -> QuantizedWeight:
        if not bool((scale_O > 0).all()):
            raise QuantizationError("a row scale that is not positive would make an absmax that is none")
        return replace(stored, tensors=stored.tensors | {"absmax": stored.tensors["absmax"] * scale_O})

    def frozen(self, stored: QuantizedWeight, bias_O: Tensor | None) -> StoredLinear:
        return Int8Linear(self, stored, bias_O)

    def to_file(self, stored: QuantizedWeight) -> dict[str, Tensor]:
        """Return the key layout of bitsandbytes, which transformers reads."""
        row_major = torch.tensor(0, dtype=torch.uint8)
        return {"weight": stored.tensors["code"], "SCB": stored.tensors["absmax"], "weight_format": row_major}

    def from_file(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> QuantizedWeight:
        code_OI, absmax_O, layout = tensors["weight"], tensors["SCB"], tensors["weight_format"]
        if code_OI.dtype != torch.int8 or layout.item() != 0:
            raise QuantizationError(f"int8 codes, row by row, are needed; got {code_OI.dtype} in layout {layout}.")
        O, I = code_OI.shape
        return QuantizedWeight({"code": code_OI, "absmax": absmax_O}, (O, I), dtype)

    def transformers_config(self, dtype: torch.dtype, unquantized: list[str]) -> dict[str, Any]:
        return {
            "quant_method": "bitsandbytes",
            "load_in_8bit": True,
            "llm_int8_threshold": self.threshold,
            "llm_int8_skip_modules": unquantized,
        }


class Int8Linear(StoredLinear):
    """y = W x + b with both sides in integers, columns of outliers apart."""

    def product(self, x_MI: Tensor) -> Tensor:
        assert isinstance(self.format, Int8)
        held, threshold = self.quantized.tensors, self.format.threshold
        half_MI = x_MI.half()
        outlier_MI = half_MI.abs() >= threshold if threshold else torch.zeros_like(half_MI, dtype=torch.bool)
        outlier_I = outlier_MI.any(0)
        code_MI, absmax_M = quantize_rows(half_MI.masked_fill(outlier_MI, 0))
        sums_MO = integer_product(code_MI.masked_fill(outlier_I, 0), held["code"])
        y_MO = sums_MO * (absmax_M[:, None] * held["absmax"]) * TWO_STEPS
        if self.bias is not None:
            y_MO += self.bias.to(x_MI.dtype)
        y_MO = y_MO.to(x_MI.dtype)
        if not outlier_I.any():
            return y_MO
        apart_OI = dequantize_rows(held["code"][:, outlier_I], held["absmax"]).to(x_MI.dtype)
        return y_MO.addmm(x_MI[:, outlier_I], apart_OI.T)


def quantize_rows(half_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes (O, I) int8 and the absmax of each row, (O) float32, of a float16 matrix."""
    absmax_O = half_OI.abs().amax(1).float()
    unit_OI = half_OI * (127.0 / absmax_O[:, None])
    return unit_OI.round().nan_to_num(nan=0).to(torch.int8), absmax_O  # nan: zero times infinity, in a row of zeros


def dequantize_rows(code_OI: Tensor, absmax_O: Tensor) -> Tensor:
    """Return code * absmax / 127 as float32."""
    return code_OI * absmax_O[:, None] * ONE_STEP


def integer_product(code_MI: Tensor, code_OI: Tensor) -> Tensor:
    """Return code_MI code_OI^T, exact, as int32."""
    (M, I), O = code_MI.shape, code_OI.shape[0]
    if code_MI.is_cuda:  # its kernel takes sizes in eights, and more than 16 rows
        more_M, more_I, more_O = max(-M % 8, 24 - M), -I % 8, -O % 8
        code_MI = nn.functional.pad(code_MI, (0, more_I, 0, more_M))
        code_OI = nn.functional.pad(code_OI, (0, more_I, 0, more_O)) if more_I or more_O else code_OI
    return torch.ops.aten._int_mm(code_MI, code_OI.T)[:M, :O]
