"""The doorway between the training loop and an optimizer."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from pipeline.core.group import Group
from pipeline.core.settings import Settings


class Optimizer(ABC):
    """Moves the parameters of some groups. The learning rate is handed over at each step: schedules live elsewhere."""

    def __init__(self, groups: list[Group]) -> None:
        self.parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group.parameters]
        if not self.parameters:
            raise ValueError("there is nothing to train: the method's groups hold no parameter.")
        if len({id(parameter) for parameter in self.parameters}) != len(self.parameters):
            raise ValueError("a parameter stands in two groups; it would move twice a step.")

    def clip(self, max_norm: float | None) -> float:
        """Scale all gradients so that their global L2 norm is at most `max_norm` (None: leave them).

        Returns:
            The norm before scaling. If it is not finite the gradients are of no use, and the caller must not step.
        """
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, max_norm, norm)
        return float(norm)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @abstractmethod
    def step(self, lr: float) -> None:
        """Move every parameter that has a gradient by its learning rate, `lr` times its group's scale."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return all that must survive, flat; the tensors are the live ones."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy a state in place, bit for bit.

        Raises:
            ValueError: keys or shapes are not those of this optimizer's parameters.
        """


class OptimizerSettings(Settings):
    """Settings of one optimizer; subclasses stand in `conf/optimizer`."""

    @abstractmethod
    def build(self, groups: list[Group]) -> Optimizer:
        """Return the optimizer over these groups, with fresh state."""
