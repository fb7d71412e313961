"""Where the points of a training curve go while it runs."""

import time
from collections.abc import Callable
from typing import Any

LINES = 20
"""A log shows about this many lines of a training."""


def progress(steps: int) -> Callable[[dict[str, Any]], None]:
    """Return a reporter that prints step, loss, rate and time left, about LINES times in all."""
    every, started = max(1, steps // LINES), time.perf_counter()
    first: list[int] = []

    def report(point: dict[str, Any]) -> None:
        done = point["step"] + 1
        first.append(point["step"]) if not first else None
        if done % every and done != steps:
            return
        pace = (time.perf_counter() - started) / (done - first[0])
        loss = "not finite" if point["loss"] is None else f"{point['loss']:.4f}"
        print(
            f"step {done}/{steps}  loss {loss}  lr {point['learning_rate']:.2e}  left {pace * (steps - done):.0f} s",
            flush=True,
        )

    return report
