"""DyLoRA: one LoRA whose first b rows work alone for every b: y = W x + b + (alpha / b) B[:, :b] A[:b] x.

Valipour et al. 2022, arXiv:2210.07558, section 4; on NF4 with double quantization this file is QDyLoRA,
Rajabzadeh et al. 2024, arXiv:2402.10462. One rank b is drawn an optimizer step, for all layers. With `frozen_rows`
only the rows that b adds to the next smaller drawn rank move, else all of the first b. What does not move keeps its
optimizer state too: a zero gradient alone would not stop momentum and decay.

Outside of training a placed DyLoRA computes at one rank, the largest unless `set_rank` says another, and the bits are
those of the plain LoRA that is exported there.

Shapes: A (R, I), B (O, R) as in LoRA; gain (R,) is alpha / b on the rows in use and 0 on the others.
"""

from bisect import bisect_left
from typing import Annotated, Any, Literal, Self

import torch
from annotated_types import Interval, Len
from pydantic import model_validator
from torch import Tensor

from pipeline.adapters.base import AdapterSettings, Count, Method, Places, Positive
from pipeline.adapters.lora import LoRA, LoRALayer, alpha_or_default, at_start, peft_lora
from pipeline.adapters.low_rank import low_rank
from pipeline.core import seeds
from pipeline.core.frozen import FrozenLinear
from pipeline.core.group import Group
from pipeline.core.settings import SettingsError, parse
from pipeline.core.site import Site
from pipeline.core.update import Update


class DyLoRA(AdapterSettings):
    """`ranks` are scored; `drawn` says which are trained, rank b with a probability proportional to decay^b."""

    label = "DyLoRA"
    axis = "max_rank"

    max_rank: Count
    ranks: Annotated[tuple[Count, ...], Len(min_length=1)]
    drawn: Literal["all", "ranks"]
    decay: Annotated[float, Interval(gt=0, le=1)]
    alpha: Positive | None
    frozen_rows: bool

    @model_validator(mode="after")
    def _ranks_fit(self) -> Self:
        if list(self.ranks) != sorted(set(self.ranks)) or self.ranks[-1] > self.max_rank:
            raise ValueError(f"ranks must rise and end at or below max_rank {self.max_rank}, got {list(self.ranks)}")
        if self.drawn == "ranks" and self.ranks[-1] != self.max_rank:
            raise ValueError(
                f"with drawn=ranks the rows above rank {self.ranks[-1]} would never train: set max_rank to it"
            )
        return self

    def resized(self, size: int) -> Self:
        ranks = [*(rank for rank in self.ranks if rank < size), size]
        return parse(type(self), self.node() | {"max_rank": size, "ranks": ranks}, "adapter")

    def method(self, seed: int, total_steps: int) -> "DyLoRAMethod":
        return DyLoRAMethod(self, seed, total_steps)


class DyLoRALayer(LoRALayer):
    def __init__(self, A_RI: Tensor, B_OR: Tensor, alpha: float, gain_R: Tensor) -> None:
        super().__init__(A_RI, B_OR, alpha / len(A_RI))
        self.alpha, self.rank = alpha, len(A_RI)
        self.gain_R = gain_R  # the method's own tensor, refilled in place each step

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        if self.training:
            return low_rank(x, self.A_RI, self.gain_R * self.B_OR, frozen)
        A_RI, B_OR = self.first_rows()
        return low_rank(x, A_RI, self.scale * B_OR, frozen)

    def set_rank(self, b: int) -> None:
        """Compute and merge at rank b from now on."""
        self.rank, self.scale = b, self.alpha / b

    def first_rows(self) -> tuple[Tensor, Tensor]:
        """Return the parts of A and B that the rank uses."""
        return self.A_RI[: self.rank], self.B_OR[:, : self.rank]

    def update(self) -> Update:
        A_RI, B_OR = self.first_rows()
        return Update(delta_OI=self.scale * B_OR.detach() @ A_RI.detach())


class DyLoRAMethod(Method[DyLoRA, DyLoRALayer]):
    start = ("identity", "B is zero")

    gain_R: Tensor
    moves_R1: Tensor
    draws_R: Tensor

    @property
    def alpha(self) -> float:
        """Return alpha; the scale of rank b is alpha / b."""
        return alpha_or_default(self.settings.alpha, self.settings.max_rank)

    def layers(self, places: Places) -> dict[Site, DyLoRALayer]:
        chosen, rank = self.chosen(places), self.settings.max_rank
        device, alpha = next(iter(chosen.values())).device, self.alpha
        self.register_buffer("gain_R", torch.full((rank,), alpha / rank, device=device), persistent=False)
        self.register_buffer("moves_R1", torch.ones(rank, 1, device=device), persistent=False)
        self.register_buffer("draws_R", torch.zeros(rank, dtype=torch.long, device=device))
        return {site: DyLoRALayer(*at_start(site, rank, self.seed, device), alpha, self.gain_R) for site in chosen}

    def groups(self) -> list[Group]:
        As, Bs = [layer.A_RI for layer in self.placed.values()], [layer.B_OR for layer in self.placed.values()]
        return [Group(As, masks=[self.moves_R1] * len(As)), Group(Bs, masks=[self.moves_R1.T] * len(Bs))]

    def draw(self, step: int) -> tuple[int, int]:
        """Return the rank b of a step and the number of its first rows that stay (0 unless `frozen_rows`)."""
        drawn = list(self.settings.ranks if self.settings.drawn == "ranks" else range(1, self.settings.max_rank + 1))
        chances = self.settings.decay ** torch.tensor(drawn, dtype=torch.float64)
        b = drawn[int(torch.multinomial(chances, 1, generator=seeds.generator(self.seed, "ranks", step)))]
        return b, [0, *drawn][bisect_left(drawn, b)] if self.settings.frozen_rows else 0

    def before_step(self, step: int) -> None:
        b, stay = self.draw(step)
        self.gain_R.zero_()[:b] = self.alpha / b
        self.moves_R1.zero_()[stay:b] = 1
        self.draws_R[b - 1] += 1

    def after_backward(self, step: int) -> None:
        for layer in self.placed.values():  # clipping must not count what will not move
            assert layer.A_RI.grad is not None
            assert layer.B_OR.grad is not None
            layer.A_RI.grad.mul_(self.moves_R1)
            layer.B_OR.grad.mul_(self.moves_R1.T)

    @property
    def points(self) -> list[int]:
        return list(self.settings.ranks)

    def set_rank(self, b: int | None) -> None:
        """Let the placed layers compute at rank b from now on (None: max_rank), without loading anything again."""
        b = self.checked(b)
        for layer in self.placed.values():
            layer.set_rank(b)

    def checked(self, at: int | None) -> int:
        """Return the rank that `at` means.

        Raises:
            SettingsError: there is no such rank.
        """
        b = self.settings.max_rank if at is None else at
        if not 1 <= b <= self.settings.max_rank:
            raise SettingsError(
                f"a DyLoRA of max_rank {self.settings.max_rank} has no rank {b}: any from 1 to "
                f"{self.settings.max_rank} will do."
            )
        return b

    def export(self, at: int | None = None) -> dict[Site, LoRALayer]:
        """Return plain LoRA layers of any rank from 1 to max_rank (None: max_rank)."""
        b = self.checked(at)
        return {
            site: LoRALayer(layer.A_RI.detach()[:b].clone(), layer.B_OR.detach()[:, :b].clone(), self.alpha / b)
            for site, layer in self.placed.items()
        }

    def shipped(self, at: int | None = None) -> Method[Any, Any]:
        """Return the plain LoRA of any rank from 1 to max_rank (None: max_rank)."""
        plain = LoRA(rank=self.checked(at), alpha=self.alpha, roles=self.settings.roles)
        return plain.method(self.seed, self.total_steps).keep(self.export(at))

    def insight(self) -> dict[str, Any]:
        draws = {str(b): int(n) for b, n in enumerate(self.draws_R.tolist(), start=1)}
        return super().insight() | {"steps_at_rank": draws}

    def peft(self) -> dict[str, Any]:
        return peft_lora(self.settings.max_rank, self.alpha)
