"""AdamW, and the same with elements that do not exist in a step.

Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (arXiv 1711.05101); with gradient g at its step t

    m = b1 m + (1 - b1) g          v = b2 v + (1 - b2) g^2
    w = (1 - lr decay) w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

A masked element is frozen truly: its w, m and v stay, and so does its own t. Zeroing its gradient would not do, because
moments decay and old momentum goes on moving the weight.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.adamw import adamw

from pipeline.core.group import Group
from pipeline.optimizers.base import Optimizer, OptimizerSettings, check_state

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamW(OptimizerSettings):
    """`betas` of the two moments, `eps` outside the root, decoupled `weight_decay` for groups that decay."""

    betas: tuple[Beta, Beta]
    eps: float = Field(gt=0)
    weight_decay: float = Field(ge=0)

    def build(self, groups: list[Group]) -> Optimizer:
        return AdamWOptimizer(self, groups)


@dataclass
class Slot:
    """One parameter with its state. `count` has the mask's shape: each element that it masks counts its own steps.

    With `span`, a slot is that range of the flat parameter, and its state is of the range.
    """

    parameter: nn.Parameter
    first_moment: Tensor
    second_moment: Tensor
    count: Tensor
    group: Group
    mask: Tensor | None
    span: slice | None = None

    @property
    def weight(self) -> Tensor:
        return self.parameter if self.span is None else self.parameter.detach().view(-1)[self.span]

    @property
    def gradient(self) -> Tensor:
        assert self.parameter.grad is not None
        return self.parameter.grad if self.span is None else self.parameter.grad.reshape(-1)[self.span]

    def state(self) -> dict[str, Tensor]:
        return {"first_moment": self.first_moment, "second_moment": self.second_moment, "count": self.count}


class AdamWOptimizer(Optimizer):
    """AdamW with float32 states. Parameters without a gradient in a step stay as they are, state included."""

    def __init__(self, settings: AdamW, groups: list[Group]) -> None:
        super().__init__(groups)
        self._settings = settings
        self._slots = [_slot(group, index) for group in groups for index in range(len(group.parameters))]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        self.require_gradients()
        update([slot for slot in self._slots if slot.parameter.grad is not None], self._settings, lr)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{i}.{name}": value for i, slot in enumerate(self._slots) for name, value in slot.state().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        own = self.state_dict()
        check_state(own, state)
        for name, value in own.items():
            value.copy_(state[name])


def update(slots: list[Slot], settings: AdamW, lr: float) -> None:
    """Move the parameters of these slots, all of which have a gradient."""
    together: dict[int, list[Slot]] = {}
    for slot in slots:
        if slot.mask is not None:
            update_masked(slot, slot.mask.bool(), settings, lr)
        else:
            together.setdefault(id(slot.group), []).append(slot)
    for group in together.values():
        update_together(group, settings, lr)


def update_masked(slot: Slot, moves: Tensor, settings: AdamW, lr: float) -> None:
    """Move the elements of one parameter where `moves` (bool, broadcastable to it) says so: the readable form."""
    weight, gradient = slot.weight, slot.gradient
    rate, decay = lr * slot.group.lr_scale, settings.weight_decay * slot.group.decay
    b1, b2 = settings.betas
    slot.count += moves
    t = slot.count.double()  # in float32, 1 - b2^t would lose four digits in the first steps
    m = b1 * slot.first_moment + (1 - b1) * gradient
    v = b2 * slot.second_moment + (1 - b2) * gradient**2
    m_hat, v_hat = m / (1 - b1**t).float(), v / (1 - b2**t).float()
    moved = (1 - rate * decay) * weight - rate * m_hat / (v_hat.sqrt() + settings.eps)
    # Selected, not multiplied: zero times an infinite gradient would be NaN.
    for kept, new in ((slot.first_moment, m), (slot.second_moment, v), (weight, moved)):
        kept.copy_(torch.where(moves, new, kept))


def update_together(slots: list[Slot], settings: AdamW, lr: float) -> None:
    """Move all elements of the parameters of one group in one fused kernel: the fast form."""
    group, (beta1, beta2) = slots[0].group, settings.betas
    adamw(
        [slot.weight for slot in slots],
        [slot.gradient for slot in slots],
        [slot.first_moment for slot in slots],
        [slot.second_moment for slot in slots],
        [],
        [slot.count for slot in slots],
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=lr * group.lr_scale,
        weight_decay=settings.weight_decay * group.decay,
        eps=settings.eps,
        maximize=False,
    )


def _slot(group: Group, index: int) -> Slot:
    parameter, mask = group.parameters[index], None if group.masks is None else group.masks[index]
    check_float32(parameter)
    count = torch.zeros(() if mask is None else mask.shape, device=parameter.device)
    return Slot(parameter, torch.zeros_like(parameter), torch.zeros_like(parameter), count, group, mask)


def check_float32(parameter: nn.Parameter) -> None:
    """Raise a ValueError if a parameter is of another type."""
    if parameter.dtype != torch.float32:
        raise ValueError(f"AdamW trains float32 parameters, got {parameter.dtype}: small updates would round away.")
