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

    def shifted(self, stored: QuantizedWeight, delta_OI: Tensor) -> QuantizedWeight:
        """Return the stored form of W + delta with the codes as they are, exact to one rounding in float32.

        Raises:
            QuantizationError: that is not possible; the message is the reason, in a clause.
        """
        raise QuantizationError(f"{self.name} has no zero points that a sum could go into")

    def row_scaled(self, stored: QuantizedWeight, scale_O: Tensor) -> QuantizedWeight:
        """Return the stored form of diag(scale) W with the codes as they are, exact to one rounding in float32.

        Raises:
            QuantizationError: that is not possible; the message is the reason, in a clause.
        """
        raise QuantizationError(f"{self.name} has no scales that a row's scale could go into")

    def frozen(self, stored: QuantizedWeight, bias_O: Tensor | None) -> "StoredLinear":
        """Return the linear layer over a stored weight."""
        return StoredLinear(self, stored, bias_O)

    def to_file(self, stored: QuantizedWeight) -> dict[str, Tensor]:
        """Return what the base's folder holds of one weight; a key is appended to the name of the linear module."""
        raise NotImplementedError(f"{self.name} has no folder of its own")

    def from_file(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> QuantizedWeight:
        """Undo `to_file` for a weight that had `dtype`.

        Raises:
            KeyError: a tensor is missing.
            QuantizationError: the weight is stored in another format.
        """
        raise NotImplementedError(f"{self.name} has no folder of its own")

    def transformers_config(self, dtype: torch.dtype, unquantized: list[str]) -> dict[str, Any] | None:
        """Return `quantization_config` of config.json, which decides how `transformers` computes with the base.

        None where the layout is our own: then there is no config.json, for `transformers` would initialize what it
        cannot read, and only warn.

        Args:
            dtype: compute dtype of the linear layers.
            unquantized: names of the linear modules left as they are.
        """
        return None


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
        """Take what the format can without touching a code; a delta left over stands outside the row scale then."""
        layer, left, _ = self.absorbing(update)
        self.quantized, self.bias = layer.quantized, layer.bias
        return left

    @torch.no_grad()
    def absorbing(self, update: Update) -> tuple["StoredLinear", Update, list[str]]:
        """Return a layer that holds what `absorb` would take, what is left over, and why it is."""
        stored, bias_O, reasons = self.quantized, self.bias, []
        delta_OI, scale_O = update.delta_OI, update.row_scale_O
        if update.rotation_NCC is not None or update.column_scale_I is not None:
            reasons.append("a rotation or a scale of columns gives every weight of a block another change")
        elif delta_OI is not None:
            try:
                stored, delta_OI = self.format.shifted(stored, delta_OI.float()), None
            except QuantizationError as error:
                reasons.append(str(error))
        if scale_O is not None:
            try:
                stored, factor_O, scale_O = self.format.row_scaled(stored, scale_O.float()), scale_O.float(), None
            except QuantizationError as error:
                reasons.append(str(error))
            else:
                bias_O = None if bias_O is None else (factor_O * bias_O.float()).to(bias_O.dtype)
                delta_OI = None if delta_OI is None else factor_O[:, None] * delta_OI
        added_O = update.bias_O
        if added_O is not None and scale_O is None:  # a bias is never quantized, and nothing is left to scale it
            bias_O = (added_O.float() if bias_O is None else bias_O.float() + added_O.float()).to(stored.dtype)
            added_O = None
        left = replace(update, delta_OI=delta_OI, row_scale_O=scale_O, bias_O=added_O)
        return self.format.frozen(stored, bias_O), left, reasons

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


def dtype_name(dtype: torch.dtype) -> str:
    """Return such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


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
