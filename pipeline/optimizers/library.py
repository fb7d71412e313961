"""The optimizers of bitsandbytes themselves, as rows to compare ours with.

Its paged one takes managed memory for parameters of 1e5 elements or more (smaller ones are never paged), never gives
it back, and waits for the device after every parameter. On a CPU it pages nothing, as ours.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from pipeline.core import library
from pipeline.core.group import Group
from pipeline.optimizers.adamw import AdamW, check_float32
from pipeline.optimizers.base import Optimizer, check_state
from pipeline.optimizers.paged import NOTHING_PAGED, on_device, refuse_masks

INSTEAD = "optimizer=adamw8bit or paged-adamw8bit"


class LibraryAdamW8bit(AdamW):
    """AdamW8bit of bitsandbytes, or PagedAdamW8bit; `min_8bit_size` as in ours."""

    min_8bit_size: int = Field(ge=0)
    paged: bool

    def check(self, groups: list[Group]) -> None:
        refuse_masks(groups)

    def build(self, groups: list[Group]) -> "LibraryOptimizer":
        self.check(groups)
        return LibraryOptimizer(self, groups, self.paged and on_device(groups))


class LibraryOptimizer(Optimizer):
    """Hands over rates and gradients; everything else is the library's."""

    def __init__(self, settings: LibraryAdamW8bit, groups: list[Group], paged: bool) -> None:
        super().__init__(groups)
        for parameter in self.parameters:
            check_float32(parameter)
        self._groups, self._wanted = groups, settings.paged
        self._library = library.bitsandbytes("optimizer", INSTEAD).optim.AdamW8bit(
            [{"params": g.parameters, "weight_decay": settings.weight_decay * g.decay} for g in groups],
            betas=settings.betas,
            eps=settings.eps,
            min_8bit_size=settings.min_8bit_size,
            is_paged=paged,
        )
        for i, group in enumerate(self._library.param_groups):  # now, so that a state can be loaded before any step
            for j, parameter in enumerate(group["params"]):
                self._library.init_state(group, parameter, i, j)

    def step(self, lr: float) -> None:
        self.require_gradients()
        for group, theirs in zip(self._groups, self._library.param_groups, strict=True):
            theirs["lr"] = lr * group.lr_scale
        self._library.step()

    def about(self) -> dict[str, Any]:
        """Return whether its states are paged; the driver, which moves them, counts no traffic."""
        if not self._wanted:
            return {}
        return {"paging": "managed memory, moved by the driver" if self._library.is_paged else NOTHING_PAGED}

    def state_dict(self) -> dict[str, Tensor]:
        flat = {}
        for i, parameter in enumerate(self.parameters):
            for name, value in self._library.state[parameter].items():
                flat[f"{i}.{name}"] = torch.as_tensor(value)
        return flat

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        check_state(self.state_dict(), state)
        for i, parameter in enumerate(self.parameters):
            own = self._library.state[parameter]
            for name, value in own.items():
                if isinstance(value, Tensor):
                    value.copy_(state[f"{i}.{name}"])
                else:  # the count of steps
                    own[name] = int(state[f"{i}.{name}"])
