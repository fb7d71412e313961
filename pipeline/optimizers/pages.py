"""Optimizer states in pages: flat buffers that lie on the device or, beyond a budget, in pinned host memory.

Paging is explicit: no managed memory, which is freed by nobody and evicted when the driver likes. A page holds the
states of ranges of parameters of one group. It moves as a whole, so that many small states cost one copy, and a
parameter larger than a page lies in several.

Shapes: N elements, S = N / BLOCK scales.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipeline.core.group import Group
from pipeline.core.settings import SettingsError

BLOCK = 256
"""Ranges begin at multiples of it, so that blocks of 8-bit states do not straddle pages."""
IN_FLIGHT = 3
"""Pages on the device at a time: one comes, one is worked on, one goes."""


@dataclass(frozen=True)
class Layout:
    """What a page holds: by name, the type and how many elements share one entry. A full page has `page_bytes`."""

    fields: dict[str, tuple[torch.dtype, int]]
    page_bytes: int

    def sizes(self, elements: int) -> dict[str, int]:
        """Return each field's bytes, for a number of elements that is a multiple of BLOCK."""
        return {name: elements // share * dtype.itemsize for name, (dtype, share) in self.fields.items()}

    @property
    def capacity(self) -> int:
        """Elements of a full page."""
        return self.page_bytes // sum(self.sizes(BLOCK).values()) * BLOCK

    def views(self, buffer: Tensor, elements: int) -> dict[str, Tensor]:
        """Return the fields (N or S) as views of a page's bytes."""
        sizes = self.sizes(elements)
        ends = dict(zip(sizes, itertools.accumulate(sizes.values()), strict=True))
        return {name: buffer[ends[name] - sizes[name] : ends[name]].view(self.fields[name][0]) for name in sizes}


# Powers of two, for torch rounds pinned memory up to one. Updates of 8-bit states need 30 bytes of scratch an element.
WIDE = Layout({"first_moment": (torch.float32, 1), "second_moment": (torch.float32, 1)}, 2**23)
NARROW = Layout(
    {
        "first_code": (torch.uint8, 1),
        "second_code": (torch.uint8, 1),
        "first_scale": (torch.float32, BLOCK),
        "second_scale": (torch.float32, BLOCK),
    },
    2**21,
)


@dataclass
class Piece:
    """A range of a flat parameter (the `index`-th of the optimizer) whose state begins at element `at` of its page."""

    index: int
    parameter: nn.Parameter
    mask: Tensor | None
    span: slice
    at: int
    count: Tensor

    @property
    def elements(self) -> int:
        return self.span.stop - self.span.start

    @property
    def within(self) -> slice:
        """Where its elements lie in the page."""
        return slice(self.at, self.at + self.elements)

    @property
    def weight(self) -> Tensor:
        return self.parameter.detach().view(-1)[self.span]

    @property
    def gradient(self) -> Tensor:
        assert self.parameter.grad is not None
        return self.parameter.grad.reshape(-1)[self.span]

    def part(self, name: str, views: dict[str, Tensor], layout: Layout) -> Tensor:
        """Return this piece's part (its N or S) of a field of its page."""
        share = layout.fields[name][1]
        return views[name][self.at // share :][: -(-self.elements // share)]


@dataclass
class Page:
    """Pieces of one group with their states: in `buffer` (bytes), which lies on the device or, `paged`, on the host."""

    layout: Layout
    group: Group
    pieces: list[Piece] = field(default_factory=list)
    elements: int = 0
    paged: bool = False
    buffer: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    @property
    def bytes(self) -> int:
        return sum(self.layout.sizes(self.elements).values())

    @property
    def room(self) -> int:
        return max(self.layout.capacity - self.elements, 0)

    @property
    def moves(self) -> bool:
        """Say whether any parameter of the page has a gradient."""
        return any(piece.parameter.grad is not None for piece in self.pieces)

    @property
    def gaps(self) -> list[slice]:
        """Where no piece's elements lie, because each begins at a multiple of BLOCK."""
        ends = [piece.at for piece in self.pieces[1:]] + [self.elements]
        pairs = zip(self.pieces, ends, strict=True)
        return [slice(piece.within.stop, end) for piece, end in pairs if piece.within.stop < end]

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """Return the fields of this page in `buffer`, which holds its bytes now."""
        return self.layout.views(buffer, self.elements)

    def add(self, index: int, parameter: nn.Parameter, mask: Tensor | None, span: slice) -> None:
        # Narrow counts are read by the host at each step; wide ones by a kernel of the device.
        device = torch.device("cpu") if self.layout is NARROW else parameter.device
        count = torch.zeros(() if mask is None else mask.shape, device=device)
        piece = Piece(index, parameter, mask, span, self.elements, count)
        self.pieces.append(piece)
        self.elements += -(-piece.elements // BLOCK) * BLOCK


def lay_out(groups: list[Group], layout_of: Callable[[nn.Parameter], Layout]) -> list[Page]:
    """Return pages without memory for the states of all parameters, in their order.

    A parameter with a mask is never cut: its counts have the mask's shape, not its own.
    """
    pages: list[Page] = []
    index = 0
    for group in groups:
        last: dict[int, Page] = {}
        for parameter, mask in zip(group.parameters, group.masks or [None] * len(group.parameters), strict=True):
            layout, N, start = layout_of(parameter), parameter.numel(), 0
            while start < N:
                page = last.get(id(layout))
                if page is None or not page.room or (mask is not None and page.room < N and page.pieces):
                    page = last[id(layout)] = Page(layout, group)
                    pages.append(page)
                stop = N if mask is not None else min(N, start + page.room)
                page.add(index, parameter, mask, slice(start, stop))
                start = stop
            index += 1
    return pages


def place(pages: list[Page], budget_bytes: int | None, device: torch.device) -> None:
    """Give every page its memory, filled with zeros: within the budget on `device`, beyond it on the host.

    The budget includes the pages in flight. Without one (None), or if all fits, nothing is paged.

    Raises:
        SettingsError: the budget does not hold the pages in flight.
    """
    sizes = [page.bytes for page in pages]
    if budget_bytes is not None and sum(sizes) > budget_bytes:
        left = budget_bytes - IN_FLIGHT * max(sizes)
        if left < 0:
            raise SettingsError(
                f"optimizer.budget_bytes: must be at least {IN_FLIGHT * max(sizes)} for these parameters "
                f"({IN_FLIGHT} pages in flight), got {budget_bytes}."
            )
        for page, size in zip(pages, sizes, strict=True):
            page.paged = size > left
            left -= 0 if page.paged else size
    for page, size in zip(pages, sizes, strict=True):
        if page.paged:
            page.buffer = torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        else:
            page.buffer = torch.zeros(size, dtype=torch.uint8, device=device)
