"""How many parts of an adapter may live, and which matter most: AdaLoRA's schedule and measure, for any parts.

Zhang et al. 2023, arXiv:2303.10512: importance of a weight is I U, I the running mean of |w dw| and U that of
||w dw| - I|. The budget falls with the cube of the way left, from its start at t = warm to its end at t = last.
"""

import torch
from torch import Tensor

from pipeline.core.settings import SettingsError


class Schedule:
    """When parts are cut, and down to how many; `warm` and `cool` are fractions of all steps."""

    def __init__(self, warm: float, cool: float, every: int, total_steps: int) -> None:
        self.warm = max(1, round(warm * total_steps))  # before the first update nothing has any importance
        self.last, self.every = total_steps - round(cool * total_steps), every
        if self.warm >= self.last:
            raise SettingsError(
                f"adapter.warm, adapter.cool: {self.warm} warm and {total_steps - self.last} cool steps of "
                f"{total_steps} (training.steps) leave none to prune in; lower them or train longer."
            )

    def watches(self, step: int) -> bool:
        """Say whether importance still counts in optimizer step `step` (from 0); in the cool part it is held."""
        return step < self.last

    def cuts(self, t: int) -> bool:
        """Say whether parts are cut after update t (from 1)."""
        return t > self.warm and (t >= self.last or t % self.every == 0)

    def budget(self, t: int, start: int, final: int) -> int:
        """Return b(t), how many parts may live after update t; in integers, so that its ends are exact."""
        span = self.last - self.warm
        left = min(max(self.last - t, 0), span)
        return final + (start - final) * left**3 // span**3


def watch(weight: Tensor, gradient: Tensor, mean: Tensor, spread: Tensor, beta: float) -> None:
    """Take this step's |w dw| into the running means I and U."""
    sensitivity = (weight * gradient).abs()
    mean.lerp_(sensitivity, 1 - beta)
    spread.lerp_((sensitivity - mean).abs(), 1 - beta)


def alive(importance: Tensor, budget: int) -> Tensor:
    """Return 1 for the `budget` most important parts, the first of equals, and 0 for the others."""
    kept = importance.argsort(descending=True, stable=True)[:budget]
    return torch.zeros_like(importance).index_fill_(0, kept, 1.0)
