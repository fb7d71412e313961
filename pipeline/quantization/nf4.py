"""NF4, four bits a weight with one scale a block, and double quantization of the scales.

Source: Dettmers et al., QLoRA (arXiv 2305.14314), with the levels that bitsandbytes ships (not the paper's equation 4).

    absmax_s = max |w| over block s          code = level nearest to w / absmax_s (a tie goes down)
    w'       = level[code] * absmax_s        two codes a byte, the first one in the high nibble

Double quantization stores absmax - mean(absmax) in the 8-bit dynamic data type, in blocks of 256.

Every byte is equal to what the CPU kernels of bitsandbytes 0.50 write and read, oddities included: a last block that is
not full is divided by its absmax where full ones are multiplied by its reciprocal, and if it is all zero its absmax is
1e-38. Where we differ:
- values that are not finite, and weights whose mean absmax overflows, are refused; the library stores nonsense;
- where a row is not a whole number of blocks, the library's AVX512 kernel reads the scale of another block (its generic
  one does not, and is what we are equal to);
- bfloat16 results below 2^-126 are kept; the AVX512 kernel flushes them to zero;
- in double quantization, codes of blocks whose own scale is below 2^-128: the library divides by zero there.
"""

import json
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.core import dynamic
from pipeline.quantization.base import Format, QuantizationError, QuantizedWeight, check_weight

LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
ZERO_CODE = 7
SMALLEST_DIVISOR = 1e-38
SCALES_PER_BLOCK = 256


class NF4(Format):
    """`block_size` weights share a scale; `double` quantizes the scales in their turn."""

    block_size: Literal[32, 64, 128, 256, 512, 1024]
    double: bool

    @property
    def name(self) -> str:
        return "nf4-double" if self.double else "nf4"

    def bits_per_parameter(self, dtype: torch.dtype) -> float:
        bits_per_scale = 8 + 32 / SCALES_PER_BLOCK if self.double else 32
        return 4 + bits_per_scale / self.block_size

    def quantize(self, weight_OI: Tensor) -> QuantizedWeight:
        check_weight(weight_OI)
        O, I = weight_OI.shape
        packed, absmax_S = quantize_blocks(weight_OI.detach().float().flatten(), self.block_size)
        tensors = {"packed": packed, **(compress(absmax_S) if self.double else {"absmax": absmax_S})}
        return QuantizedWeight(tensors, (O, I), weight_OI.dtype)

    def dequantize(self, stored: QuantizedWeight, dtype: torch.dtype | None = None) -> Tensor:
        O, I = stored.shape
        absmax_S = decompress(stored.tensors) if self.double else stored.tensors["absmax"]
        values_N = dequantize_blocks(stored.tensors["packed"], absmax_S, self.block_size)[: O * I]
        return values_N.view(O, I).to(dtype or stored.dtype)

    def block_absmax(self, weight_OI: Tensor) -> Tensor:
        return blocks_of(weight_OI.detach().float().flatten(), self.block_size).abs().amax(1)

    def absorb_row_scale(self, stored: QuantizedWeight, scale_O: Tensor) -> QuantizedWeight | None:
        """Multiply a row's scales: possible where a block lies within one row and the scales are kept in float32.

        NF4 is not symmetric, so a negative scale would need other codes; so would a zero, to come back from.
        """
        O, I = stored.shape
        if self.double or I % self.block_size or not bool((scale_O > 0).all()):
            return None
        absmax_S = (stored.tensors["absmax"].view(O, -1) * scale_O[:, None]).flatten()
        return QuantizedWeight(stored.tensors | {"absmax": absmax_S}, stored.shape, stored.dtype)

    def to_file(self, stored: QuantizedWeight) -> dict[str, Tensor]:
        """Return the key layout of bitsandbytes, which transformers reads."""
        held, device = stored.tensors, stored.tensors["packed"].device
        state: dict[str, Any] = {
            "quant_type": "nf4",
            "blocksize": self.block_size,
            "dtype": _dtype_name(stored.dtype),
            "shape": stored.shape,
        }
        tensors = {"": held["packed"], ".absmax": held["absmax"], ".quant_map": levels(device).clone()}
        if self.double:
            tensors |= {
                ".nested_absmax": held["nested_absmax"],
                ".nested_quant_map": dynamic.codebook(device).clone(),
            }
            state |= {
                "nested_blocksize": SCALES_PER_BLOCK,
                "nested_dtype": "float32",
                "nested_offset": held["offset"].item(),
            }
        return tensors | {STATE_KEY: torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)}

    def from_file(self, tensors: dict[str, Tensor]) -> QuantizedWeight:
        state = json.loads(bytes(tensors[STATE_KEY].tolist()))
        expected = {"quant_type": "nf4", "blocksize": self.block_size, "nested": self.double}
        got = {"quant_type": state["quant_type"], "blocksize": state["blocksize"], "nested": "nested_offset" in state}
        if got != expected or not torch.equal(tensors[".quant_map"], levels(tensors[".quant_map"].device)):
            raise QuantizationError(f"a weight stored as {expected} with the levels of NF4 is needed, got {got}.")
        held = {"packed": tensors[""], "absmax": tensors[".absmax"]}
        if self.double:
            offset = torch.tensor([state["nested_offset"]], device=tensors[""].device)
            held |= {"nested_absmax": tensors[".nested_absmax"], "offset": offset}
        O, I = state["shape"]
        return QuantizedWeight(held, (O, I), getattr(torch, state["dtype"]))

    def transformers_config(self, dtype: torch.dtype, unquantized: list[str]) -> dict[str, Any]:
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": self.double,
            "bnb_4bit_compute_dtype": _dtype_name(dtype),  # the library's own default is float32, whatever the model
            "llm_int8_skip_modules": unquantized,
        }


STATE_KEY = ".quant_state.bitsandbytes__nf4"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def levels(device: torch.device) -> Tensor:
    """Return the 16 levels, ascending, as float32."""
    return torch.tensor(LEVELS, device=device)


@cache
def _levels_of_byte(device: torch.device) -> Tensor:
    """Return the two levels that each byte stands for, their bits side by side in one int64: one gather moves both."""
    byte = torch.arange(256, device=device)
    return levels(device)[torch.stack([byte >> 4, byte & 15], 1)].view(torch.int64).flatten()


def blocks_of(values_N: Tensor, block_size: int) -> Tensor:
    """Return the values in blocks (S, K), the last one filled up with zeros."""
    return torch.nn.functional.pad(values_N, (0, -len(values_N) % block_size)).view(-1, block_size)


def quantize_blocks(values_N: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Return the packed codes, ((N + 1) // 2, 1) uint8, and the absmax of each block, (S) float32."""
    N = values_N.numel()
    blocks_SK = blocks_of(values_N, block_size)
    absmax_S = blocks_SK.abs().amax(1)
    unit_SK = blocks_SK * (1 / absmax_S.clamp_min(SMALLEST_DIVISOR))[:, None]
    if N % block_size:
        absmax_S[-1].clamp_min_(SMALLEST_DIVISOR)
        unit_SK[-1] = blocks_SK[-1] / absmax_S[-1]
    level_values = levels(values_N.device)
    midpoints = (level_values[:-1] + level_values[1:]) / 2
    code_N = torch.bucketize(unit_SK.flatten(), midpoints, out_int32=True).to(torch.uint8)[: N + N % 2]
    return ((code_N[::2] << 4) | code_N[1::2])[:, None], absmax_S


def dequantize_blocks(packed: Tensor, absmax_S: Tensor, block_size: int) -> Tensor:
    """Return level * absmax as float32: N values, and what pads the last byte."""
    # index_select is ten times faster than indexing on a CPU, and this runs twice a layer in every training step.
    values_N = _levels_of_byte(packed.device).index_select(0, packed.flatten().int()).view(torch.float32)
    if values_N.numel() % block_size:
        return values_N * absmax_S.repeat_interleave(block_size)[: values_N.numel()]
    return values_N.view(-1, block_size).mul_(absmax_S[:, None]).flatten()


def compress(absmax_S: Tensor) -> dict[str, Tensor]:
    """Return the scales in 8 bits: codes `absmax`, their own scales `nested_absmax`, and the mean, `offset` (1)."""
    offset = absmax_S.mean()
    if not torch.isfinite(offset):
        raise QuantizationError(f"the mean of the block scales is {offset.item()}: the weights are too large to scale.")
    code_S, nested_absmax = dynamic.quantize(absmax_S - offset, SCALES_PER_BLOCK)
    return {"absmax": code_S, "nested_absmax": nested_absmax, "offset": offset[None]}


def decompress(held: dict[str, Tensor]) -> Tensor:
    """Undo `compress`: (S) float32. A product and then a sum, each rounded, as the library does."""
    return dynamic.dequantize(held["absmax"], held["nested_absmax"], SCALES_PER_BLOCK) + held["offset"]
