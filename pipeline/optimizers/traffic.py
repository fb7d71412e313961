"""How pages come to the device and go back, and what that costs.

`OneByOne` is the readable form: bring a page, let the caller work on it, take it back. `Ring` is the fast one for CUDA:
side streams bring the next pages and take the last one back while the caller works on the present one. Same bits.
"""

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.optimizers.pages import IN_FLIGHT, Page


@dataclass
class Cost:
    """What one direction cost: bytes copied, and the seconds that copies took (they overlap with work)."""

    bytes: int = 0
    seconds: float = 0.0
    unread: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=deque)

    def read(self) -> None:
        """Add the times of the copies that are done."""
        while self.unread and self.unread[0][1].query():
            start, end = self.unread.popleft()
            self.seconds += start.elapsed_time(end) / 1000


class Traffic(ABC):
    """Hands a step's pages out one after the other, each with a buffer on the device that holds its bytes."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.to_device, self.to_host = device, Cost(), Cost()

    @abstractmethod
    def through(self, pages: list[Page]) -> Iterator[tuple[Page, Tensor]]:
        """Yield each page once, with its buffer. What the caller writes there is kept."""

    @abstractmethod
    def settle(self) -> None:
        """Wait until every page on the host holds what was last written, so that the host may read and write it."""


class OneByOne(Traffic):
    """Each copy is waited for. Works on any device."""

    def through(self, pages: list[Page]) -> Iterator[tuple[Page, Tensor]]:
        for page in pages:
            if not page.paged:
                yield page, page.buffer
                continue
            buffer = torch.empty_like(page.buffer, device=self.device)
            self._copy(buffer, page.buffer, self.to_device)
            yield page, buffer
            self._copy(page.buffer, buffer, self.to_host)

    def settle(self) -> None:
        pass  # each copy was waited for

    @staticmethod
    def _copy(to: Tensor, from_: Tensor, cost: Cost) -> None:
        started = time.perf_counter()
        to.copy_(from_)
        cost.bytes += from_.numel()
        cost.seconds += time.perf_counter() - started


class Ring(Traffic):
    """IN_FLIGHT buffers in turn; one stream brings pages, another takes them back, for PCIe works both ways at once."""

    def __init__(self, device: torch.device, page_bytes: int) -> None:
        super().__init__(device)
        self._bringing, self._taking = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._buffers = [torch.empty(page_bytes, dtype=torch.uint8, device=device) for _ in range(IN_FLIGHT)]
        for buffer in self._buffers:  # dropped while a copy is under way, they are not given to others before its end
            buffer.record_stream(self._bringing)
            buffer.record_stream(self._taking)
        self._bringing.wait_stream(torch.cuda.current_stream(device))  # which owned this memory until now

    def through(self, pages: list[Page]) -> Iterator[tuple[Page, Tensor]]:
        paged = [page for page in pages if page.paged]
        self.to_device.read()
        self.to_host.read()
        working = torch.cuda.current_stream(self.device)
        self._bringing.wait_stream(self._taking)  # until the last step's pages are back
        arrived = [self._bring(page, slot) for slot, page in enumerate(paged[:IN_FLIGHT])]
        yield from ((page, page.buffer) for page in pages if not page.paged)  # meanwhile
        for turn, page in enumerate(paged):
            slot = turn % IN_FLIGHT
            working.wait_event(arrived[turn])
            yield page, self._buffers[slot][: page.bytes]
            self._taking.wait_stream(working)
            back = self._copy(page.buffer, self._buffers[slot][: page.bytes], self._taking, self.to_host)
            if turn + IN_FLIGHT < len(paged):
                self._bringing.wait_event(back)  # the next page in this buffer
                arrived.append(self._bring(paged[turn + IN_FLIGHT], slot))

    def settle(self) -> None:
        self._taking.synchronize()
        self.to_device.read()
        self.to_host.read()

    def _bring(self, page: Page, slot: int) -> torch.cuda.Event:
        return self._copy(self._buffers[slot][: page.bytes], page.buffer, self._bringing, self.to_device)

    @staticmethod
    def _copy(to: Tensor, from_: Tensor, stream: torch.cuda.Stream, cost: Cost) -> torch.cuda.Event:
        """Queue a copy on `stream`; return the event of its end."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(stream):
            start.record(stream)
            to.copy_(from_, non_blocking=True)
            end.record(stream)
        cost.bytes += from_.numel()
        cost.unread.append((start, end))
        return end
