"""Why would a job run? Says it in the names of settings, by what lies beside the record that the job would write."""

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.sweeps.jobs import Job
from pipeline.sweeps.nodes import flat

DIGITS = re.compile(r"-[0-9a-f]{8}(?=/|\.json)")
SHOWN = 3
"""Settings that one reason names."""


class Reasons:
    """Answers for one results folder, which it lists once."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def why(self, job: Job) -> str:
        """Return the reason of one job."""
        if job.exists:
            return self._again(job)
        record = self._root / job.record
        others = [path for path in self._beside.get(_without_digits(record), []) if path != record]
        if not others:
            return "new"
        return f"new: {_difference(max(others, key=lambda path: path.stat().st_mtime), job)}"

    def _again(self, job: Job) -> str:
        if job.lost:
            return job.lost
        assert job.recorded is not None
        if job.retried:
            return "it failed, and is tried again"
        if job.recorded.code != job.made.code:
            return "its code changed"
        if job.recorded.upstream != job.made.upstream:
            return "an earlier step changed"
        return "an earlier step is made anew" if job.due else "asked for by hand"

    @cached_property
    def _beside(self) -> dict[str, list[Path]]:
        """Records by their paths without digits: those of other settings are found under one name."""
        found: dict[str, list[Path]] = {}
        for pattern in ("*/*/*.json", "*/*/[es]*/*.json"):  # records; those of evaluate/ and score/
            for path in self._root.glob(pattern):
                found.setdefault(_without_digits(path), []).append(path)
        return found


def _without_digits(record: Path) -> str:
    """Return the path of a record without the last 8 digits in it: the ones of its own settings."""
    return "".join(str(record).rsplit(DIGITS.findall(str(record))[-1], 1)) if DIGITS.search(str(record)) else ""


def _difference(record: Path, job: Job) -> str:
    """Say which settings a finished record of the same name had otherwise."""
    try:
        old: dict[str, Any] = flat(json.loads(record.read_bytes())["settings"])
    except (OSError, ValueError, KeyError):
        return f"{record} cannot be read"
    new = flat(job.settings)
    keys = sorted(key for key in old | new if old.get(key) != new.get(key))
    if not keys:
        return "an earlier step is"
    said = [f"{key} {old.get(key)} -> {new.get(key)}" for key in keys[:SHOWN]]
    return ", ".join(said) + (f", and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
