"""AdamW whose states may be larger than what the device can spare, in 32 or 8 bits.

Source: paged optimizers, Dettmers et al., QLoRA (arXiv 2305.14314), section 3. There the driver evicts managed memory
when a long batch needs the space; here the states beyond a budget always live in pinned host memory and pass through
the device at each step, so that the space is free before anybody needs it. Where a state lies changes no bit.
"""

import sys
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.core.group import Group
from pipeline.core.settings import SettingsError
from pipeline.optimizers import adamw, blockwise
from pipeline.optimizers.adamw import AdamW, Slot, check_float32
from pipeline.optimizers.base import Optimizer, check_state
from pipeline.optimizers.pages import BLOCK, NARROW, WIDE, Layout, Page, Piece, lay_out, place
from pipeline.optimizers.traffic import OneByOne, Ring, Traffic


class AdamW8bit(AdamW):
    """AdamW with 8-bit states; parameters of fewer than `min_8bit_size` elements keep 32-bit ones."""

    block_size: Literal[256]
    min_8bit_size: int = Field(ge=0)

    def check(self, groups: list[Group]) -> None:
        refuse_masks(groups)

    def build(self, groups: list[Group]) -> "PagesOptimizer":
        self.check(groups)
        return PagesOptimizer(self, groups, None)

    def layout(self, parameter: nn.Parameter) -> Layout:
        return NARROW if parameter.numel() >= self.min_8bit_size else WIDE


class PagedAdamW(AdamW):
    """AdamW with 32-bit states, of which the device holds `budget_bytes`, pages on their way included."""

    budget_bytes: int = Field(ge=0)

    def build(self, groups: list[Group]) -> "PagesOptimizer":
        return PagesOptimizer(self, groups, self.budget_bytes if on_device(groups) else None)

    def layout(self, parameter: nn.Parameter) -> Layout:
        return WIDE


class PagedAdamW8bit(AdamW8bit):
    """AdamW with 8-bit states, of which the device holds `budget_bytes`, pages on their way included."""

    budget_bytes: int = Field(ge=0)

    def build(self, groups: list[Group]) -> "PagesOptimizer":
        self.check(groups)
        return PagesOptimizer(self, groups, self.budget_bytes if on_device(groups) else None)


class PagesOptimizer(Optimizer):
    """AdamW over pages of states; with a `budget_bytes`, the pages beyond it live on the host."""

    def __init__(self, settings: AdamW8bit | PagedAdamW, groups: list[Group], budget_bytes: int | None) -> None:
        super().__init__(groups)
        for parameter in self.parameters:
            check_float32(parameter)
            if not parameter.is_contiguous():
                raise ValueError(
                    f"pages hold flat parameters, got one of strides {parameter.stride()}: make it contiguous."
                )
        self._settings, self._budget_bytes = settings, budget_bytes
        device = self.parameters[0].device
        self.pages = lay_out(groups, settings.layout)
        place(self.pages, budget_bytes, device)
        self.traffic = _traffic(self.pages, device)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        self.require_gradients()
        for page, buffer in self.traffic.through([page for page in self.pages if page.moves]):
            if page.layout is WIDE:
                slots = [
                    _slot(page, piece, page.views(buffer)) for piece in page.pieces if piece.parameter.grad is not None
                ]
                adamw.update(slots, self._settings, lr)
            else:
                blockwise.update_page(page, page.views(buffer), self._settings, lr)

    def about(self) -> dict[str, Any]:
        """Return where the states lie, and the page traffic so far; copies overlap with work."""
        self.traffic.settle()
        there, back = self.traffic.to_device, self.traffic.to_host
        wanted = isinstance(self._settings, PagedAdamW | PagedAdamW8bit)
        said = {"paging": NOTHING_PAGED} if wanted and self._budget_bytes is None else {}
        return said | {
            "budget_bytes": self._budget_bytes,
            "state_bytes": sum(page.bytes for page in self.pages),
            "state_bytes_on_host": sum(page.bytes for page in self.pages if page.paged),
            "page_bytes_to_device": there.bytes,
            "page_bytes_to_host": back.bytes,
            "page_seconds_to_device": there.seconds,
            "page_seconds_to_host": back.seconds,
        }

    def state_dict(self) -> dict[str, Tensor]:
        self.traffic.settle()
        parts: dict[str, list[Tensor]] = {}
        for page in self.pages:
            views = page.views(page.buffer)
            for piece in page.pieces:
                parts.setdefault(f"{piece.index}.count", [piece.count])
                for name in views:
                    parts.setdefault(f"{piece.index}.{name}", []).append(piece.part(name, views, page.layout))
        return {name: self._whole(name, found) for name, found in parts.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        check_state(self.state_dict(), state)
        for page in self.pages:
            views = page.views(page.buffer)
            for piece in page.pieces:
                piece.count.copy_(state[f"{piece.index}.count"])
                for name in views:
                    part = piece.part(name, views, page.layout)
                    start = piece.span.start // page.layout.fields[name][1]
                    part.copy_(state[f"{piece.index}.{name}"].reshape(-1)[start : start + part.numel()])

    def _whole(self, name: str, parts: list[Tensor]) -> Tensor:
        """Return a state tensor of one parameter from its parts, in the parameter's shape but for scales and counts."""
        index, _, kind = name.partition(".")
        if kind == "count":
            return parts[0]
        whole = parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0].device) for part in parts])
        return whole if kind.endswith("scale") else whole.view(self.parameters[int(index)].shape)


def _slot(page: Page, piece: Piece, views: dict[str, Tensor]) -> Slot:
    first, second = (piece.part(name, views, WIDE) for name in ("first_moment", "second_moment"))
    if piece.mask is None:
        return Slot(piece.parameter, first, second, piece.count, page.group, None, piece.span)
    shape = piece.parameter.shape
    return Slot(piece.parameter, first.view(shape), second.view(shape), piece.count, page.group, piece.mask)


def _traffic(pages: list[Page], device: torch.device) -> Traffic:
    paged = [page.bytes for page in pages if page.paged]
    return Ring(device, max(paged)) if paged and device.type == "cuda" else OneByOne(device)


NOTHING_PAGED = "nothing is paged, for the device is the CPU"


def on_device(groups: list[Group]) -> bool:
    """Say whether there is a device to page for; if not, tell the user that nothing is paged."""
    device = groups[0].parameters[0].device if groups and groups[0].parameters else torch.device("cpu")
    if device.type == "cpu":
        print(f"optimizer: {NOTHING_PAGED}. The numbers are the same.", file=sys.stderr)
    return device.type != "cpu"


def refuse_masks(groups: list[Group]) -> None:
    """Raise a SettingsError if any parameter has a mask."""
    if any(mask is not None for group in groups for mask in group.masks or ()):
        raise SettingsError(
            "optimizer: this method freezes single elements in some steps, which 8-bit states cannot: a frozen element "
            f"would change with the scale that {BLOCK} share. Use optimizer=adamw or optimizer=paged-adamw."
        )
