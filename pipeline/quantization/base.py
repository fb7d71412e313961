"""A format turns a weight into what is stored and back; nothing else knows how a weight is stored."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from pipeline.core.frozen import FrozenLinear
from pipeline.core.settings import Settings, SettingsError
from pipeline.core.update import Update

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class QuantizationError(SettingsError):
    """A weight or a stored weight cannot be used. The message says which property is wrong and what is allowed."""


@dataclass(frozen=True)
class QuantizedWeight:
    """What is stored of one weight (O, I) that had `dtype`; the meaning of `tensors` is the format's own business."""

    tensors: dict[str, Tensor]
    shape: tuple[int, int]
    dtype: torch.dtype

    @property
    def bits(self) -> int:
        """Bits that the stored tensors take."""
        return 8 * sum(tensor.nbytes for tensor in self.tensors.values())


class Format(Settings):
    """One way to store a weight. Subclasses are settings classes of `conf/quantization`.

    `own_folder` says whether a base in this format is a folder of its own; else it is the model's.
    """

    own_folder: ClassVar[bool] = True

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name for tables and folders."""

    @abstractmethod
    def bits_per_parameter(self, dtype: torch.dtype) -> float:
        """Bits that a value of a large weight of `dtype` takes, its share of the scales included."""

    @abstractmethod
    def quantize(self, weight_OI: Tensor) -> QuantizedWeight:
        """Store a weight.

        Raises:
            QuantizationError: not 2-D, not a floating dtype of DTYPES, or not finite everywhere.
        """

    @abstractmethod
    def dequantize(self, stored: QuantizedWeight, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight (O, I) in `dtype` (None: the dtype it had), rounded once from float32."""

    def block_absmax(self, weight_OI: Tensor) -> Tensor | None:
        """Return the largest magnitude in every block of a weight that shares a scale, (S); None without blocks."""
        return None

    def absorb_row_scale(self, stored: QuantizedWeight, scale_O: Tensor) -> QuantizedWeight | None:
        """Return the stored form of diag(scale) W without quantizing again, or None where that is not possible."""
        return None

    def frozen(self, stored: QuantizedWeight, bias_O: Tensor | None) -> FrozenLinear:
        """Return the linear layer over a stored weight."""
        return StoredLinear(self, stored, bias_O)

    def to_file(self, stored: QuantizedWeight) -> dict[str, Tensor]:
        """Return what the base's folder holds of one weight; a key is appended to the name of the weight."""
        raise NotImplementedError(f"{self.name} has no folder of its own")

    def from_file(self, tensors: dict[str, Tensor]) -> QuantizedWeight:
        """Undo `to_file`.

        Raises:
            KeyError: a tensor is missing.
            QuantizationError: the weight is stored in another format.
        """
        raise NotImplementedError(f"{self.name} has no folder of its own")

    def transformers_config(self, dtype: torch.dtype, unquantized: list[str]) -> dict[str, Any]:
        """Return `quantization_config` of config.json, which decides how `transformers` computes with the base.

        Args:
            dtype: compute dtype of the linear layers.
            unquantized: names of the linear modules left as they are.
        """
        raise NotImplementedError(f"{self.name} has no folder of its own")


class StoredLinear(FrozenLinear):
    """y = W x + b over a weight stored in some format, made dense again in every pass.

    `quantized` is replaced as a whole and never written to, so whoever kept the old one can put it back. It is neither
    parameter nor buffer: it is in no state_dict, and casting a model must not cast the scales of its weights.
    """

    def __init__(self, format_: Format, quantized: QuantizedWeight, bias_O: Tensor | None) -> None:
        super().__init__()
        self.format, self.quantized = format_, quantized
        self.out_features, self.in_features = quantized.shape
        self.bias = None if bias_O is None else bias_O.detach()

    @property
    def device(self) -> torch.device:
        return next(iter(self.quantized.tensors.values())).device

    def dense_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.format.dequantize(self.quantized, dtype)

    def absorb(self, update: Update) -> Update:
        """Take a positive row scale where the format can; a delta that is left over stands outside the scale then."""
        scale_O = update.row_scale_O
        if scale_O is None:
            return update
        scale_O = scale_O.detach().float()
        scaled = self.format.absorb_row_scale(self.quantized, scale_O)
        if scaled is None:
            return update
        self.quantized = scaled
        self.bias = None if self.bias is None else (scale_O * self.bias.float()).to(self.bias.dtype)
        delta_OI = None if update.delta_OI is None else scale_O[:, None] * update.delta_OI
        return replace(update, row_scale_O=None, delta_OI=delta_OI)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to a device. `fn` is handed bytes, and it casts only floating tensors: `.to(dtype)` changes nothing."""

        def move(tensor: Tensor) -> Tensor:
            return fn(tensor.view(torch.uint8)).view(tensor.dtype)

        tensors = {key: move(value) for key, value in self.quantized.tensors.items()}
        self.quantized = replace(self.quantized, tensors=tensors)
        self.bias = None if self.bias is None else move(self.bias)
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, format={self.format.name}"


def check_weight(weight_OI: Tensor) -> None:
    """Refuse what no format can store.

    Raises:
        QuantizationError: not 2-D, not of DTYPES, or not finite everywhere.
    """
    if weight_OI.ndim != len("OI"):
        raise QuantizationError(f"a weight must have two dimensions (out, in), got shape {tuple(weight_OI.shape)}.")
    if weight_OI.dtype not in DTYPES:
        raise QuantizationError(f"a weight must be float32, bfloat16 or float16, got {weight_OI.dtype}.")
    finite_OI = torch.isfinite(weight_OI)
    if not finite_OI.all():
        row, column = (~finite_OI).nonzero()[0].tolist()
        raise QuantizationError(
            f"values must be finite, got {int((~finite_OI).sum())} that are not (the first, "
            f"{weight_OI[row, column].item()}, at row {row}, column {column}). Each would spoil its whole block: mend "
            "the model before quantizing it."
        )
