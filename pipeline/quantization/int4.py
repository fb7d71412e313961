"""Evenly spaced levels in four bits, a group along the input at a time: symmetric, and between smallest and largest.

    symmetric   scale = max |w| / 7             code = round(w / scale), -7 .. 7        w' = scale code
    affine      scale = (max w - min w) / 15    code = round((w - zero) / scale)        w' = scale code + zero
                zero = min w                           0 .. 15

A group is `group_size` neighbors in one row; the last one of a row may be shorter. The affine form is the base of
QA-LoRA (Xu et al. 2023, arXiv 2309.14717, equation 2): whatever is constant within a group goes into its zero point.
Scales and zero points are float32, so that such a merge rounds once and no more. No other library has this layout: the
folder has no config.json, so that transformers refuses it.

Letters: G groups of K values in a row; a row is stored as G K codes, two a byte, the first one in the high nibble.
"""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pipeline.quantization.base import Format, QuantizationError, QuantizedWeight, check_weight
from pipeline.quantization.codebook import pack

LARGEST = 7
STEPS = 15


class Grid(Format):
    """What both forms share: groups, files, and a scale that takes a row's scale of any sign."""

    parts: ClassVar[tuple[str, ...]]
    """Names of the stored tensors."""

    group_size: Literal[16, 32, 64, 128, 256, 512, 1024]

    def dequantize(self, stored: QuantizedWeight, dtype: torch.dtype | None = None) -> Tensor:
        packed_OX = stored.tensors["packed"]
        code_OX2 = torch.stack([packed_OX >> 4, packed_OX & 15], -1)
        weight_OGK = self.values(code_OX2.flatten(1).unflatten(1, (-1, self.group_size)).float(), stored.tensors)
        return weight_OGK.flatten(1)[:, : stored.shape[1]].to(dtype or stored.dtype)

    def values(self, code_OGK: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Return the values (O, G, K) of codes that are floats."""
        raise NotImplementedError  # each form has its own

    def grouped(self, weight_OI: Tensor) -> Tensor:
        """Return a checked weight as float32 groups (O, G, K); a short one is filled up with its last value."""
        check_weight(weight_OI)
        filling = (0, -weight_OI.shape[1] % self.group_size)
        return nn.functional.pad(weight_OI.detach().float(), filling, "replicate").unflatten(1, (-1, self.group_size))

    def block_absmax(self, weight_OI: Tensor) -> Tensor:
        return self.grouped(weight_OI.float()).abs().amax(2).flatten()

    def row_scaled(self, stored: QuantizedWeight, scale_O: Tensor) -> QuantizedWeight:
        scaled = {name: held_OG * scale_O[:, None] for name, held_OG in stored.tensors.items() if name != "packed"}
        return replace(stored, tensors=stored.tensors | scaled)

    def to_file(self, stored: QuantizedWeight) -> dict[str, Tensor]:
        columns = torch.tensor(stored.shape[1])
        return {f"weight.{name}": tensor for name, tensor in (stored.tensors | {"columns": columns}).items()}

    def from_file(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> QuantizedWeight:
        held = {name: tensors[f"weight.{name}"] for name in self.parts}
        O, I = len(held["packed"]), int(tensors["weight.columns"])
        groups = held["scale"].shape[1]
        if tensors.keys() != {f"weight.{name}" for name in (*self.parts, "columns")} or groups != -(
            -I // self.group_size
        ):
            raise QuantizationError(
                f"{self.name} in groups of {self.group_size} is needed, got {', '.join(sorted(tensors))} with {groups} "
                f"groups in rows of {I}."
            )
        return QuantizedWeight(held, (O, I), dtype)


class Int4(Grid):
    """Zero is a level, and levels lie symmetric about it; the sixteenth code is not used."""

    parts: ClassVar[tuple[str, ...]] = ("packed", "scale")

    @property
    def name(self) -> str:
        return "int4"

    def bits_per_parameter(self, dtype: torch.dtype) -> float:
        return 4 + 32 / self.group_size

    def quantize(self, weight_OI: Tensor) -> QuantizedWeight:
        weight_OGK = self.grouped(weight_OI)
        scale_OG = weight_OGK.abs().amax(2) / LARGEST
        code_OGK = (_places(weight_OGK, scale_OG).clamp(-LARGEST, LARGEST) + LARGEST + 1).to(torch.uint8)
        return _stored(weight_OI, code_OGK, {"scale": scale_OG})

    def values(self, code_OGK: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        return (code_OGK - (LARGEST + 1)) * tensors["scale"][:, :, None]


class Int4Affine(Grid):
    """Every group has its own zero point: where code 0 lies."""

    parts: ClassVar[tuple[str, ...]] = ("packed", "scale", "zero")

    @property
    def name(self) -> str:
        return "int4-affine"

    def bits_per_parameter(self, dtype: torch.dtype) -> float:
        return 4 + 64 / self.group_size

    def quantize(self, weight_OI: Tensor) -> QuantizedWeight:
        weight_OGK = self.grouped(weight_OI)
        zero_OG, high_OG = weight_OGK.amin(2), weight_OGK.amax(2)
        scale_OG = (high_OG - zero_OG) / STEPS
        if not torch.isfinite(scale_OG).all():
            raise QuantizationError(f"a group spans {zero_OG.min().item()} to {high_OG.max().item()}: too far apart.")
        code_OGK = _places(weight_OGK - zero_OG[:, :, None], scale_OG).clamp(0, STEPS).to(torch.uint8)
        return _stored(weight_OI, code_OGK, {"scale": scale_OG, "zero": zero_OG})

    def values(self, code_OGK: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        return code_OGK * tensors["scale"][:, :, None] + tensors["zero"][:, :, None]

    def shifted(self, stored: QuantizedWeight, delta_OI: Tensor) -> QuantizedWeight:
        """Move zero points: exact where the delta is constant within each group."""
        delta_OGK = self.grouped(delta_OI)
        delta_OG = delta_OGK[:, :, 0]
        if not torch.equal(delta_OGK, delta_OG[:, :, None].expand_as(delta_OGK)):
            raise QuantizationError(f"the change is not constant within groups of {self.group_size} inputs")
        return replace(stored, tensors=stored.tensors | {"zero": stored.tensors["zero"] + delta_OG})


def _places(weight_OGK: Tensor, scale_OG: Tensor) -> Tensor:
    """Return round(w / scale), and zero where a group has no extent."""
    return (weight_OGK / scale_OG[:, :, None]).round().nan_to_num(nan=0, posinf=STEPS, neginf=-STEPS)


def _stored(weight_OI: Tensor, code_OGK: Tensor, scales: dict[str, Tensor]) -> QuantizedWeight:
    O, I = weight_OI.shape
    packed_OX = pack(code_OGK.flatten()).view(O, -1)
    return QuantizedWeight({"packed": packed_OX} | scales, (O, I), weight_OI.dtype)
