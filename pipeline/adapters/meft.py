"""MEFT: the blocks as a reversible stack, so that backward makes every input again and keeps none.

Liao et al. 2023, arXiv:2306.00477, form 1: the stream of hidden states is doubled, x1 = x2 = h, and block n makes
y1 = lam x1 + F(x2), y2 = x2 + G(y1), and swaps the two. G is a bottleneck adapter. With coupling `paper`, F is the
block with a bottleneck after its MLP, and the output is the mean of both streams; form 2 is the same recurrence.
Solved for x1, each block divides what rounding left by lam, while the streams themselves grow by the root r of
r^2 = r + lam: relative to them an error grows by r^2 / lam a block, 12-fold at the paper's lam = 0.1.

`balanced` is ours: F(x2) = (1 + lam) block(x2) - 2 lam x2, output (lam x1 + x2) / (1 + lam). While G is zero the output
is h plus what all blocks add, each once, whatever lam: at lam = 0 the base itself, at lam = 1 the leapfrog scheme. An
error grows by 1 / lam a block, so lam trades: the smaller, the nearer the start is to the base; the larger, the deeper
the stack may be. A stack too deep for its lam is refused, and how near backward came to its input is in the insight.

Streams are float64, two of them whatever the depth; blocks and adapters compute in the model's dtype. At lam = 1 the
sums of such numbers lose nothing: over 32 blocks gradients were autograd's bit for bit, in float32 and bfloat16. At
lam = 0.75 they were within 8e-5 and 2e-3, at the paper's own lam (bound lifted) wrong (2026-11-21, tests/adapters).

Shapes: streams x1, x2, y1, y2 (..., D), D the hidden width; `lam` is the paper's lambda, its beta is 1.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval, Len
from torch import Tensor, nn

from pipeline.adapters.base import AdapterLayer, AdapterSettings, Count, Method, Places, Positive
from pipeline.adapters.bottleneck import BottleneckLayer
from pipeline.core import seeds
from pipeline.core.settings import SettingsError
from pipeline.core.site import Site

Blocks = Sequence[Callable[[Tensor], Tensor]]
PAPER_LAMBDA = 0.1
SURVIVED = 1e6
"""The most that rounding may grow over all blocks; blocks themselves add to it. Float64 holds 1e16."""


class MEFT(AdapterSettings):
    label = "MEFT"
    axis = "width"

    width: Count
    sigma: Positive
    coupling: Literal["balanced", "paper"]
    lam: Annotated[float, Interval(gt=0, le=1)] | None
    roles: Annotated[tuple[Literal["stack"], ...], Len(1, 1)]  # type: ignore[assignment]

    def method(self, seed: int, total_steps: int) -> "MEFTMethod":
        return MEFTMethod(self, seed, total_steps)


@dataclass(frozen=True)
class Coupling:
    """F(x2) = block_gain block(x2) + skip x2; the output is the mean of both streams with weight `first` on x1."""

    lam: float
    block_gain: float
    skip: float
    first: float
    growth: float
    """By how much a relative error of a stream grows in the inverse of one block."""

    @classmethod
    def paper(cls, lam: float) -> "Coupling":
        """Return the published coupling."""
        root = (1 + (1 + 4 * lam) ** 0.5) / 2
        return cls(lam, 1.0, 0.0, 0.5, root**2 / lam)

    @classmethod
    def balanced(cls, lam: float) -> "Coupling":
        """Return the coupling whose streams do not grow."""
        return cls(lam, 1.0 + lam, -2 * lam, lam / (1 + lam), 1 / lam)

    def survives(self, blocks: int) -> bool:
        """Say whether rounding stays within bounds over so many blocks."""
        return self.growth**blocks <= SURVIVED


def coupling(settings: MEFT, blocks: int) -> Coupling:
    """Return the coupling for a stack of `blocks`.

    Raises:
        SettingsError: rounding would grow beyond what the inverse survives.
    """
    make = getattr(Coupling, settings.coupling)
    lam = PAPER_LAMBDA if settings.lam is None else settings.lam
    if settings.lam is None and not make(lam).survives(blocks):
        lam = 1.0
    made: Coupling = make(lam)
    if not made.survives(blocks):
        raise SettingsError(
            f"adapter.coupling, adapter.lam: {settings.coupling} with lam {lam:g} cannot be inverted over {blocks} "
            f"blocks: rounding grows {made.growth:.3g}-fold a block, {made.growth**blocks:.1e}-fold in all, at most "
            f"{SURVIVED:.0e} is allowed. Set adapter.coupling=balanced, and adapter.lam to null or at least "
            f"{SURVIVED ** (-1 / blocks):.3f}."
        )
    return made


class Reversible(torch.autograd.Function):
    """The stack's output, with gradients for its input and for every weight; of all streams the last two are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: "StackLayer", blocks: Blocks, *weights: Tensor) -> Tensor:
        ctx.layer, ctx.blocks, ctx.dtype, ctx.chances = layer, blocks, x.dtype, []
        x1, x2 = layer.streams(x, blocks, lambda: ctx.chances.append(chance(x.device)))
        ctx.save_for_backward(x1, x2)
        return layer.mean(x1, x2).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        layer, (y2, y1) = ctx.layer, ctx.saved_tensors
        dy2, dy1 = layer.couples.first * dy.to(y1.dtype), (1 - layer.couples.first) * dy.to(y1.dtype)
        gradients: list[Tensor | None] = []
        for n in reversed(range(len(ctx.blocks))):
            with replayed(ctx.chances[n], dy.device):
                # x1 and x2 of this block are y2 and y1 of the one before: the two were swapped.
                (y2, y1), (dy2, dy1), own = layer.undo(n, ctx.blocks[n], (y1, y2), (dy1, dy2), ctx.dtype)
            gradients[:0] = own
        layer.watch(y2, y1)
        return (dy1 + dy2).to(ctx.dtype) if ctx.needs_input_grad[0] else None, None, None, *gradients


class StackLayer(AdapterLayer):
    """G of every block; `inside` are the weights of the adapters that sit within the blocks, owned by their layers."""

    error: Tensor

    def __init__(self, couples: Coupling, G: list[BottleneckLayer], inside: list[list[nn.Parameter]]) -> None:
        super().__init__()
        self.couples, self.G = couples, nn.ModuleList(G)
        self.__dict__["inside"] = inside
        self.register_buffer("error", torch.zeros((), device=G[0].D_RO.device))

    def forward(self, x: Tensor, frozen: Blocks) -> Tensor:  # type: ignore[override]
        weights = [weight for n in range(len(self.G)) for weight in self.weights(n)]
        y: Any = Reversible.apply(x, self, frozen, *weights)
        return y

    def weights(self, n: int) -> list[nn.Parameter]:
        """Return the trained weights of block n, those of F first."""
        return [*self.__dict__["inside"][n], *self.G[n].parameters()]

    def add(self, n: int, y1: Tensor, dtype: torch.dtype) -> Tensor:
        """Return G(y1) of block n."""
        return self.G[n].branch(y1.to(dtype)).to(y1.dtype)  # type: ignore[operator]

    def couple(self, block: Callable[[Tensor], Tensor], x2: Tensor, dtype: torch.dtype) -> Tensor:
        """Return F(x2)."""
        return self.couples.block_gain * block(x2.to(dtype)).to(x2.dtype) + self.couples.skip * x2

    def streams(self, x: Tensor, blocks: Blocks, before: Callable[[], None]) -> tuple[Tensor, Tensor]:
        """Return both streams after all blocks; `before` is called before each block."""
        x1 = x2 = x.double()
        for n, block in enumerate(blocks):
            before()
            y1 = self.couples.lam * x1 + self.couple(block, x2, x.dtype)
            x1, x2 = x2 + self.add(n, y1, x.dtype), y1
        return x1, x2

    def mean(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return what the stack makes of its last two streams."""
        return self.couples.first * x1 + (1 - self.couples.first) * x2

    def undo(
        self,
        n: int,
        block: Callable[[Tensor], Tensor],
        y: tuple[Tensor, Tensor],
        dy: tuple[Tensor, Tensor],
        dtype: torch.dtype,
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], list[Tensor | None]]:
        """Return the streams before block n, their gradients, and those of its weights; y and dy are those after it."""
        (y1, y2), (dy1, dy2), lam = (part.detach().requires_grad_() for part in y), dy, self.couples.lam
        inside, outside = self.__dict__["inside"][n], list(self.G[n].parameters())
        with torch.enable_grad():
            added = self.add(n, y1, dtype)
            through, *of_outside = torch.autograd.grad(added, [y1, *outside], dy2)
            dy1 = dy1 + through
            x2 = (y2 - added).detach().requires_grad_()
            coupled = self.couple(block, x2, dtype)
            through, *of_inside = torch.autograd.grad(coupled, [x2, *inside], dy1, allow_unused=True)
        x1 = (y1.detach() - coupled.detach()) / lam
        return (x1, x2.detach()), (lam * dy1, dy2 + through), [*of_inside, *of_outside]

    @torch.no_grad()
    def watch(self, x1: Tensor, x2: Tensor) -> None:
        """Keep the largest distance at which backward came back to the input, where both streams are one."""
        if x1.numel():
            torch.maximum(self.error, ((x1 - x2).norm() / x2.norm()).to(self.error.dtype), out=self.error)

    def tensors(self) -> dict[str, Tensor]:
        return {f"meft_{n}.{name}": value for n, one in enumerate(self.G) for name, value in one.tensors().items()}  # type: ignore[operator]


class MEFTMethod(Method[MEFT, AdapterLayer]):
    start = ("other", "each block sees the stream of the block before last; adapters are drawn and nearly zero")
    mergeable = (False, "the streams are coupled between blocks, and adapters are not linear: no weight does the same")
    graph_safe = (False, "the host keeps the random state of each block, to replay its dropout")

    def layers(self, places: Places) -> dict[Site, AdapterLayer]:
        found = [site for site in places if site.role == "stack"]
        if not found:
            raise SettingsError(
                "adapter.roles: the model has no stack: reversible blocks need one list of blocks, "
                "and an encoder-decoder has two."
            )
        (stack,) = found
        blocks, device = len(list(places[stack].children())), next(places[stack].parameters()).device
        made = {site: self.bottleneck(site, site.name, device) for site in places if site.role == "down"}
        inside: list[list[nn.Parameter]] = [[] for _ in range(blocks)]
        for site, layer in made.items():
            inside[site.layer] += layer.parameters()
        self.couples = coupling(self.settings, blocks)
        G = [self.bottleneck(stack, f"{stack.name}.{n}", device) for n in range(blocks)]
        return {**made, stack: StackLayer(self.couples, G, inside)}

    def bottleneck(self, site: Site, name: str, device: torch.device) -> BottleneckLayer:
        """Return an adapter as it starts, from the stream of its name."""
        generator, shape = seeds.generator(self.seed, f"init/{name}"), (self.settings.width, site.out_features)
        D_RO, U_RO = (self.settings.sigma * torch.randn(shape, generator=generator) for _ in range(2))
        return BottleneckLayer(D_RO.to(device), U_RO.T.contiguous().to(device), "gelu")

    def insight(self) -> dict[str, Any]:
        (error,) = (float(layer.error) for layer in self.placed.values() if isinstance(layer, StackLayer))
        return {"lambda": self.couples.lam, "growth": self.couples.growth, "reconstruction_error": error}


def chance(device: torch.device) -> list[Tensor]:
    """Return the state of the generators that a block may draw from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


@contextlib.contextmanager
def replayed(states: list[Tensor], device: torch.device) -> Iterator[None]:
    """Let a block draw once more what it drew then, and leave no trace."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(states[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(states[1], device)
        yield
