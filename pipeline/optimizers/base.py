"""The doorway between the training loop and an optimizer."""

from abc import ABC, abstractmethod
from typing import Any

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

    def require_gradients(self) -> None:
        """Raise a RuntimeError if no parameter has a gradient: a step would do nothing and nobody would know."""
        if all(parameter.grad is None for parameter in self.parameters):
            raise RuntimeError("no parameter has a gradient: the loss does not depend on what is trained.")

    def about(self) -> dict[str, Any]:
        """Return what a record should say of the optimizer's cost, in bytes and seconds since it was built, as JSON."""
        return {}

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @abstractmethod
    def step(self, lr: float) -> None:
        """Move every parameter that has a gradient by its learning rate, `lr` times its group's scale."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return all that must survive, flat, to be read before the next step: most tensors are the live ones."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy a state in place, bit for bit.

        Raises:
            ValueError: keys or shapes are not those of this optimizer's parameters.
        """


def check_state(own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Hold a state that is to be loaded against the optimizer's `own`.

    Raises:
        ValueError: keys or shapes differ; the message names them.
    """
    if state.keys() != own.keys():
        unknown, missing = sorted(state.keys() - own.keys()), sorted(own.keys() - state.keys())
        raise ValueError(f"optimizer state: unknown {unknown[:3]}, missing {missing[:3]} (the first three of each).")
    for name, value in own.items():
        shape, got = tuple(value.shape), tuple(state[name].shape)
        if shape != got:
            raise ValueError(f"optimizer state: {name} must be of shape {shape}, got {got}.")


class OptimizerSettings(Settings):
    """Settings of one optimizer; subclasses stand in `conf/optimizer`."""

    def check(self, groups: list[Group]) -> None:
        """Refuse groups that this optimizer cannot move.

        Raises:
            SettingsError: says which, and what to choose instead.
        """

    @abstractmethod
    def build(self, groups: list[Group]) -> Optimizer:
        """Return the optimizer over these groups, with fresh state."""
