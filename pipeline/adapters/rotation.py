"""What the methods that turn the input share: one tensor for the Q of all layers, and one for all their turns.

The turns are made once a step for the blocks of all layers, and their gradient is pulled back once.

Shapes: packed Q (N, E), turn = R - I and its gradient (N, C, C), N the blocks of all layers.
"""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipeline.adapters.base import AdapterLayer, AdapterSettings, Method, Places
from pipeline.adapters.cayley import skew
from pipeline.core.frozen import FrozenLinear
from pipeline.core.settings import SettingsError
from pipeline.core.site import Site

S = TypeVar("S", bound=AdapterSettings)
L = TypeVar("L", bound=AdapterLayer)


class RotationMethod(Method[S, L]):
    start = ("identity", "Q is zero, so R - I is zero")

    packed_NE: nn.Parameter
    turn_NCC: Tensor
    gradient_NCC: Tensor

    @property
    def block_size(self) -> int:
        """Return C."""
        raise NotImplementedError  # each kind of rotation has its own

    def count(self, site: Site) -> int:
        """Return how many blocks a site trains.

        Raises:
            SettingsError: its inputs cannot be cut into such blocks.
        """
        raise NotImplementedError  # each kind of rotation has its own

    def layer(self, site: Site, frozen: FrozenLinear, *views_N: Tensor) -> L:
        """Return the layer of a site over its part of packed Q, turns and gradient, the method's own tensors."""
        raise NotImplementedError  # each kind of rotation has its own

    def turns(self, Q_NCC: Tensor) -> Tensor:
        """Return R - I of skew-symmetric blocks."""
        raise NotImplementedError  # each kind of rotation has its own

    def layers(self, places: Places) -> dict[Site, L]:
        chosen, C = self.chosen(places), self.block_size
        counts = [self.count(site) for site in chosen]
        N, device = sum(counts), next(iter(chosen.values())).device
        self.packed_NE = nn.Parameter(torch.zeros(N, math.comb(C, 2), device=device))
        self.register_buffer("turn_NCC", torch.zeros(N, C, C, device=device), persistent=False)
        self.register_buffer("gradient_NCC", torch.zeros(N, C, C, device=device), persistent=False)
        parts = (flat.detach().split(counts) for flat in (self.packed_NE, self.turn_NCC, self.gradient_NCC))
        return {
            site: self.layer(site, frozen, *views)
            for (site, frozen), *views in zip(chosen.items(), *parts, strict=True)
        }

    def series(self) -> Tensor:
        """Return R - I of all blocks, as a function of the packed parameter."""
        return self.turns(skew(self.packed_NE, self.block_size))

    @torch.no_grad()
    def refresh(self) -> None:
        self.turn_NCC.copy_(self.series())

    def after_backward(self, step: int) -> None:
        self.series().backward(self.gradient_NCC)  # the parts' gradients lie there, summed
        self.gradient_NCC.zero_()


def blocks_along(site: Site, block_size: int) -> int:
    """Return how many blocks cover the inputs of a site.

    Raises:
        SettingsError: a block would hang over.
    """
    if site.in_features % block_size:
        allowed = [d for d in range(2, site.in_features + 1) if site.in_features % d == 0]
        raise SettingsError(
            f"adapter.block_size: {block_size} does not divide the {site.in_features} inputs of {site.name}; "
            f"allowed there: {', '.join(map(str, allowed))}."
        )
    return site.in_features // block_size


def shared_leaf(turn: Tensor, gradient: Tensor) -> Tensor:
    """Return a leaf over the method's turns whose gradient gathers in the method's tensor.

    A leaf of its own: the backward of a slice of one large leaf would fill a large zero tensor a site.
    """
    leaf = turn.detach().requires_grad_()
    leaf.grad = gradient
    return leaf
