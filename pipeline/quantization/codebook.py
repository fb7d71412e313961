"""Four bits a weight: the nearest of 16 levels, one scale a block, and double quantization of the scales.

Source: Dettmers et al., QLoRA (arXiv 2305.14314).

    absmax_s = max |w| over block s          code = that of the level nearest to w / absmax_s (a tie goes down)
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
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pipeline.core import dynamic
from pipeline.quantization.base import Format, QuantizationError, QuantizedWeight, check_weight, dtype_name

SMALLEST_DIVISOR = 1e-38
SCALES_PER_BLOCK = 256


class Codebook(Format):
    """`block_size` weights, in row-major order, share a scale; `double` quantizes the scales in their turn."""

    kind: ClassVar[str]
    """What bitsandbytes calls the levels."""
    levels: ClassVar[tuple[float, ...]]
    """The 16 levels by code, exact in float32."""

    block_size: Literal[32, 64, 128, 256, 512, 1024]
    double: bool

    @property
    def name(self) -> str:
        return f"{self.kind}-double" if self.double else self.kind

    def bits_per_parameter(self, dtype: torch.dtype) -> float:
        bits_per_scale = 8 + 32 / SCALES_PER_BLOCK if self.double else 32
        return 4 + bits_per_scale / self.block_size

    def quantize(self, weight_OI: Tensor) -> QuantizedWeight:
        check_weight(weight_OI)
        O, I = weight_OI.shape
        packed, absmax_S = quantize_blocks(weight_OI.detach().float().flatten(), self.block_size, self.levels)
        tensors = {"packed": packed, **(compress(absmax_S) if self.double else {"absmax": absmax_S})}
        return QuantizedWeight(tensors, (O, I), weight_OI.dtype)

    def dequantize(self, stored: QuantizedWeight, dtype: torch.dtype | None = None) -> Tensor:
        O, I = stored.shape
        absmax_S = decompress(stored.tensors) if self.double else stored.tensors["absmax"]
        values_N = dequantize_blocks(stored.tensors["packed"], absmax_S, self.block_size, self.levels)[: O * I]
        return values_N.view(O, I).to(dtype or stored.dtype)

    def block_absmax(self, weight_OI: Tensor) -> Tensor:
        return blocks_of(weight_OI.detach().float().flatten(), self.block_size).abs().amax(1)

    def row_scaled(self, stored: QuantizedWeight, scale_O: Tensor) -> QuantizedWeight:
        """Multiply a row's scales: exact where a block lies within one row and its scale is kept in float32.

        The levels are no mirror image of themselves, so a negative scale would need other codes; so would a zero, to
        come back from.
        """
        O, I = stored.shape
        if self.double:
            raise QuantizationError("double quantization would round the scaled scales to 8 bits again")
        if I % self.block_size:
            raise QuantizationError(f"blocks of {self.block_size} do not end where rows of {I} do")
        if not bool((scale_O > 0).all()):
            raise QuantizationError("a row scale that is not positive would need other codes")
        absmax_S = (stored.tensors["absmax"].view(O, -1) * scale_O[:, None]).flatten()
        return replace(stored, tensors=stored.tensors | {"absmax": absmax_S})

    def to_file(self, stored: QuantizedWeight) -> dict[str, Tensor]:
        """Return the key layout of bitsandbytes, which transformers reads."""
        held, device = stored.tensors, stored.tensors["packed"].device
        state: dict[str, Any] = {
            "quant_type": self.kind,
            "blocksize": self.block_size,
            "dtype": dtype_name(stored.dtype),
            "shape": stored.shape,
        }
        quant_map = table(self.levels, device).clone()
        tensors = {"weight": held["packed"], "weight.absmax": held["absmax"], "weight.quant_map": quant_map}
        if self.double:
            tensors |= {
                "weight.nested_absmax": held["nested_absmax"],
                "weight.nested_quant_map": dynamic.codebook(device).clone(),
            }
            state |= {
                "nested_blocksize": SCALES_PER_BLOCK,
                "nested_dtype": "float32",
                "nested_offset": held["offset"].item(),
            }
        return tensors | {self._state_key: torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)}

    def from_file(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> QuantizedWeight:
        state = json.loads(bytes(tensors[self._state_key].tolist()))
        expected = {"quant_type": self.kind, "blocksize": self.block_size, "nested": self.double}
        got = {"quant_type": state["quant_type"], "blocksize": state["blocksize"], "nested": "nested_offset" in state}
        quant_map, packed = tensors["weight.quant_map"], tensors["weight"]
        if got != expected or not torch.equal(quant_map, table(self.levels, quant_map.device)):
            raise QuantizationError(f"a weight stored as {expected} with its levels is needed, got {got}.")
        held = {"packed": packed, "absmax": tensors["weight.absmax"]}
        if self.double:
            offset = torch.tensor([state["nested_offset"]], device=packed.device)
            held |= {"nested_absmax": tensors["weight.nested_absmax"], "offset": offset}
        O, I = state["shape"]
        return QuantizedWeight(held, (O, I), getattr(torch, state["dtype"]))

    def transformers_config(self, dtype: torch.dtype, unquantized: list[str]) -> dict[str, Any]:
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.kind,
            "bnb_4bit_use_double_quant": self.double,
            "bnb_4bit_compute_dtype": dtype_name(dtype),  # the library's own default is float32, whatever the model
            "llm_int8_skip_modules": unquantized,
        }

    @property
    def _state_key(self) -> str:
        return f"weight.quant_state.bitsandbytes__{self.kind}"


@cache
def table(levels: tuple[float, ...], device: torch.device) -> Tensor:
    """Return the 16 levels by code as float32."""
    return torch.tensor(levels, device=device)


@cache
def _levels_of_byte(levels: tuple[float, ...], device: torch.device) -> Tensor:
    """Return the two levels that each byte stands for, their bits side by side in one int64: one gather moves both."""
    byte = torch.arange(256, device=device)
    return table(levels, device)[torch.stack([byte >> 4, byte & 15], 1)].view(torch.int64).flatten()


@cache
def _midpoints_and_codes(levels: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the 15 midpoints between neighbors in value, and the code of each of the 16 values, ascending."""
    ascending, code = table(levels, device).sort(stable=True)
    return (ascending[:-1] + ascending[1:]) / 2, code.to(torch.uint8)


def blocks_of(values_N: Tensor, block_size: int) -> Tensor:
    """Return the values in blocks (S, K), the last one filled up with zeros."""
    return torch.nn.functional.pad(values_N, (0, -len(values_N) % block_size)).view(-1, block_size)


def quantize_blocks(values_N: Tensor, block_size: int, levels: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Return the packed codes, ((N + 1) // 2, 1) uint8, and the absmax of each block, (S) float32."""
    N = values_N.numel()
    blocks_SK = blocks_of(values_N, block_size)
    absmax_S = blocks_SK.abs().amax(1)
    unit_SK = blocks_SK * (1 / absmax_S.clamp_min(SMALLEST_DIVISOR))[:, None]
    if N % block_size:
        absmax_S[-1].clamp_min_(SMALLEST_DIVISOR)
        unit_SK[-1] = blocks_SK[-1] / absmax_S[-1]
    midpoints, code_of_place = _midpoints_and_codes(levels, values_N.device)
    place_N = torch.bucketize(unit_SK.flatten(), midpoints, out_int32=True)[: N + N % 2]
    return pack(code_of_place[place_N])[:, None], absmax_S


def pack(code_N: Tensor) -> Tensor:
    """Return two codes of 4 bits a byte, the first one in the high nibble."""
    return (code_N[::2] << 4) | code_N[1::2]


def dequantize_blocks(packed: Tensor, absmax_S: Tensor, block_size: int, levels: tuple[float, ...]) -> Tensor:
    """Return level * absmax as float32: N values, and what pads the last byte."""
    # index_select is ten times faster than indexing on a CPU, and this runs twice a layer in every training step.
    values_N = _levels_of_byte(levels, packed.device).index_select(0, packed.flatten().int()).view(torch.float32)
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
