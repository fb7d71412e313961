"""What a method tells the optimizer about its parameters."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class Group:
    """Parameters that share decay and a learning-rate scale.

    `masks`, where given, holds one device tensor a parameter (broadcastable to it, None for no mask): 1 moves this
    step; 0 is a true freeze, in which weight, both moments and the element's own step count stay.
    """

    parameters: list[nn.Parameter]
    decay: bool = True
    lr_scale: float = 1.0
    masks: Sequence[Tensor | None] | None = None
