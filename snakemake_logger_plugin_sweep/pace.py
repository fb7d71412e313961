"""How long do jobs take, and how long will the rest?"""

import contextlib
import json
import time
from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean

MEMORY = Path(".snakemake/sweep/seconds.json")
"""Mean seconds of a job of each rule in earlier sessions, for rules that have not yet run in this one."""


class Pace:
    """Counts jobs and their seconds."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self._left: Counter[str] = Counter()
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._started: dict[int, float] = {}
        self._begin = time.monotonic()
        self._before: dict[str, float] = {}
        with contextlib.suppress(OSError, ValueError):
            self._before = json.loads(MEMORY.read_text())

    def expect(self, jobs: dict[str, int]) -> None:
        """Take note of the jobs that will run, by rule."""
        self._left, self.total = Counter(jobs), sum(jobs.values())

    def started(self, job: int) -> None:
        """A job has started."""
        self._started[job] = time.monotonic()

    def finished(self, job: int, rule: str) -> float:
        """A job has finished; return its seconds."""
        took = time.monotonic() - self._started.get(job, time.monotonic())
        self._seconds[rule].append(took)
        self._left[rule] -= 1
        self.done += 1
        return took

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._begin

    def left(self) -> float:
        """Estimate the seconds left: each rule's mean, as many jobs at once as there were so far."""
        means = self._before | {rule: fmean(seconds) for rule, seconds in self._seconds.items()}
        worked = sum(map(sum, self._seconds.values()))
        unknown = worked / max(self.done, 1)
        work = sum(count * means.get(rule, unknown) for rule, count in self._left.items())
        return work / max(1.0, worked / self.elapsed())

    def remember(self) -> None:
        """Keep the means for the next session."""
        if self._seconds and MEMORY.parent.is_dir():
            means = self._before | {rule: round(fmean(seconds), 3) for rule, seconds in self._seconds.items()}
            MEMORY.write_text(json.dumps(means))


def span(seconds: float) -> str:
    """Write a duration for people: 8 s, 3 min 20 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
