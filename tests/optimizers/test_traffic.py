"""The order of the ring's copies, on streams that run in any order that CUDA allows.

A GPU seldom shows a missing wait. Here each stream is a queue, and whose next operation runs is drawn: were a wait
missing, some draw would bring a page too early or overwrite one that is not back.
"""

import random

import pytest
import torch

from pipeline.core.group import Group
from pipeline.optimizers.pages import IN_FLIGHT, WIDE, Page
from pipeline.optimizers.traffic import OneByOne, Ring, Traffic

CPU = torch.device("cpu")
STEPS = 3


class Event:
    done = False


class Stream:
    """Operations in their order: (what must be done before, what happens)."""

    def __init__(self):
        self.queue = []

    def record(self):
        event = Event()
        self.queue.append((None, lambda: setattr(event, "done", True)))
        return event

    def wait_event(self, event):
        self.queue.append((event, lambda: None))

    def wait_stream(self, other):
        self.wait_event(other.record())

    def runs(self):
        return bool(self.queue) and (self.queue[0][0] is None or self.queue[0][0].done)


class Simulated(Ring):
    """The ring with these streams in place of the device's; its buffers begin with rubbish."""

    def __init__(self, page_bytes, seed):
        Traffic.__init__(self, CPU)
        self._bringing, self._taking, self.working = Stream(), Stream(), Stream()
        self._buffers = [torch.full((page_bytes,), 99, dtype=torch.uint8) for _ in range(IN_FLIGHT)]
        self.draw = random.Random(seed)  # noqa: S311  (of orders, not of secrets)

    def run(self, whole=False):
        """Run some of what is queued, or all of it."""
        streams = (self._bringing, self._taking, self.working)
        while ready := [stream for stream in streams if stream.runs()]:
            self.draw.choice(ready).queue.pop(0)[1]()
            if not whole and self.draw.random() < 0.2:
                return
        assert not (whole and any(stream.queue for stream in streams)), "the streams wait for each other"

    @staticmethod
    def _copy(to, from_, stream, cost):
        cost.bytes += from_.numel()
        stream.queue.append((None, lambda: to.copy_(from_)))
        return stream.record()


def pages(count):
    made = []
    for i in range(count):
        page = Page(WIDE, Group([]), elements=256, paged=i != 1)
        page.buffer = torch.full((page.bytes,), i, dtype=torch.uint8)
        made.append(page)
    return made


def work(buffer, page_number, step):
    buffer.mul_(3).add_(page_number + step)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 9])
def test_no_order_that_the_streams_allow_changes_a_bit(count, monkeypatch):
    expected, plain = pages(count), OneByOne(CPU)
    for step in range(STEPS):
        for page, buffer in plain.through(expected):
            work(buffer, [id(one) for one in expected].index(id(page)), step)
    for seed in range(40):
        got = pages(count)
        ring = Simulated(got[0].bytes, seed)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _, ring=ring: ring.working)
        for step in range(STEPS):
            for page, buffer in ring.through(got):
                number = [id(one) for one in got].index(id(page))
                ring.working.queue.append((None, lambda b=buffer, n=number, s=step: work(b, n, s)))
                ring.run()
        ring.run(whole=True)
        assert all(torch.equal(a.buffer, b.buffer) for a, b in zip(got, expected, strict=True)), seed
        assert ring.to_device.bytes == ring.to_host.bytes == plain.to_host.bytes
