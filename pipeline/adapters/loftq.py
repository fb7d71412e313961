"""LoRA that starts from a part of the weight: W is split into what the base stores and a low-rank B A beside it.

LoftQ: Li et al. 2024, arXiv:2310.08659, algorithm 1: `iterations` times, store Q = q(W - B A) and take the best B A of
rank r for W - Q, from B A = 0. PiSSA: Meng et al. 2024, arXiv:2404.02948: B A is the best of rank r for W itself, and
the base stores W - B A. Both share the roots of the singular values between A and B. The split is made once, by
quantize_base; LoRA's scale is divided out of B, so that the adapter starts as exactly that B A.

The original that merged states start from is W - B A: what the adapter adds is on top of it.

Shapes: W (O, I), A (R, I), B (O, R).
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.adapters.base import Count
from pipeline.adapters.lora import LoRA, LoRAMethod, alpha_or_default
from pipeline.core.frozen import FrozenLinear
from pipeline.core.settings import SettingsError
from pipeline.core.site import Site


class LoftQ(LoRA):
    label = "LoftQ"
    takes = True

    iterations: Count

    def method(self, seed: int, total_steps: int) -> "LoftQMethod":
        return LoftQMethod(self, seed, total_steps)

    def take(self, weight_OI: Tensor, back: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        stored_OI, (A_RI, B_OR) = weight_OI, principal((weight_OI - back(weight_OI)).float(), self.rank)
        for _ in range(self.iterations - 1):
            stored_OI = (weight_OI.float() - B_OR @ A_RI).to(weight_OI.dtype)
            A_RI, B_OR = principal(weight_OI.float() - back(stored_OI).float(), self.rank)
        return stored_OI, A_RI, B_OR


class PiSSA(LoRA):
    label = "PiSSA"
    takes = True

    def method(self, seed: int, total_steps: int) -> "PiSSAMethod":
        return PiSSAMethod(self, seed, total_steps)

    def take(self, weight_OI: Tensor, back: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        A_RI, B_OR = principal(weight_OI.float(), self.rank)
        return (weight_OI.float() - B_OR @ A_RI).to(weight_OI.dtype), A_RI, B_OR


class PiSSAMethod(LoRAMethod):
    start = ("other", "what was taken out of the weight is put back, and quantization had less to lose on the rest")
    not_peft = "PEFT would put the adapter on the model as published, from which nothing was taken"

    def at_start(self, site: Site, frozen: FrozenLinear) -> tuple[Tensor, Tensor]:
        rank = self.settings.rank
        if site.rows is not None:
            raise SettingsError(
                f"adapter.roles: {self.settings.label} takes a part out of a weight as it is stored, and {site.name} "
                "is a slice of one. Allowed: qkv, the fused projection as a whole, and what is no slice."
            )
        if frozen.taken is None or len(frozen.taken[0]) != rank:
            raise SettingsError(
                f"adapter: {self.settings.label} of rank {rank} starts from what was taken out of {site.name} "
                "before it was stored, and this base was not made so. Make it with this adapter's quantize_base."
            )
        A_RI, B_OR = (part.to(frozen.device) for part in frozen.taken)
        return A_RI.clone(), B_OR * rank / alpha_or_default(self.settings.alpha, rank)

    def peft(self) -> None:
        """Return None, for the reason in `not_peft`."""


class LoftQMethod(PiSSAMethod):
    unquantized_base: ClassVar[tuple[bool, str]] = (False, "it starts from what quantization loses, which is nothing")


def principal(weight_OI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A and B whose product is the best approximation of rank r.

    Raises:
        SettingsError: the weight has no such rank.
    """
    if rank > min(weight_OI.shape):
        raise SettingsError(f"adapter.rank: must be at most {min(weight_OI.shape)}, the smaller side of a weight.")
    U_OK, sigma_K, V_KI = torch.linalg.svd(weight_OI, full_matrices=False)
    root_R = sigma_K[:rank].sqrt()
    return (root_R[:, None] * V_KI[:rank]).contiguous(), (U_OK[:, :rank] * root_R).contiguous()
