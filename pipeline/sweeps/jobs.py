"""Jobs: one rule on one point, with only the settings that its stage reads, and what made its inputs.

A path holds the digest of every setting that decides what lies there, those of earlier steps included. So no job ever
writes a file that another setting uses; what may differ at one path is code alone.

Which jobs run is read off the records: what is missing, what other code has made, and all that stands on it. Neither
Snakemake's memory nor a time of change has a say, so that a copied folder is worth what it was worth.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pipeline.core.settings import digest
from pipeline.sweeps import closure
from pipeline.sweeps.grid import Point
from pipeline.sweeps.nodes import Node

STAGES = {"evaluate_base": "evaluate", "score_base": "score"}
"""The stage of a rule where it is called otherwise."""
SHARED = ("prepare_model", "prepare_data", "quantize_base")
"""Rules whose records many runs stand on; the same settings and code make the same again."""


@dataclass(frozen=True)
class Made:
    """Which code made a record: its own digest, and that of everything before it, with the number of a retry.

    Beside it what a plan asks of a finished record: whether the job failed, and how long the files are that it made.
    """

    code: str
    upstream: str
    failed: bool = field(default=False, compare=False)
    files: Mapping[str, int] = field(default_factory=dict, compare=False)

    @property
    def tries(self) -> int:
        """How often a failed record was made again."""
        return int(self.upstream.partition(".")[2] or 0)

    def same(self, other: "Made") -> bool:
        """Whether the code is the same, whatever the tries."""
        return (self.code, self.upstream.partition(".")[0]) == (other.code, other.upstream.partition(".")[0])


@dataclass(eq=False)
class Job:
    """One rule on one point. `cfg` is the canonical text of its settings, `digest` that of those that decide."""

    rule: str
    wildcards: tuple[str, ...]
    record: str
    cfg: str
    digest: str
    needs: dict[str, "Job"]
    root: Path
    keep: bool
    retry: bool

    @property
    def stage(self) -> str:
        """The stage that the rule runs."""
        return STAGES.get(self.rule, self.rule)

    @cached_property
    def settings(self) -> Node:
        """The settings that the stage reads."""
        return json.loads(self.cfg)

    @cached_property
    def now(self) -> Made:
        """The code as it is, on inputs as they would be."""
        before = [[need.digest, need.made.code, need.made.upstream] for need in self.needs.values()]
        tries = self.recorded.tries + self.retried if self.recorded else 0
        again = f".{tries}" if tries else ""  # stays in the record, so that the next plan finds nothing changed
        return Made(closure.code(self.stage, self.cfg), f"upstream:{digest(before, 12)}{again}")

    @cached_property
    def recorded(self) -> Made | None:
        """The code that made the finished record, None without one."""
        return read_made(self.root / self.record)

    @property
    def failed(self) -> bool:
        """Whether the record says that it did not end well."""
        return self.recorded is not None and self.recorded.failed

    @property
    def retried(self) -> bool:
        """Whether the user has what failed tried again; what was only passed on follows by itself."""
        return self.retry and self.failed and not any(need.failed for need in self.needs.values())

    @cached_property
    def exists(self) -> bool:
        """Whether there is a record, be it whole or not."""
        return (self.root / self.record).exists()

    @cached_property
    def lost(self) -> str:
        """What is wrong with the record or the files that it names; empty where all are there."""
        if self.recorded is None:
            return "its record is damaged" if self.exists else "its record is missing"
        return missing((self.root / self.record).parent, self.recorded)

    @cached_property
    def outdated(self) -> bool:
        """Whether other code made the record, or something that it stands on is made anew."""
        return self.recorded != self.now or any(need.due for need in self.needs.values())

    @cached_property
    def kept(self) -> bool:
        """Whether the user keeps an outdated record as it is. Nothing is kept that stands on a run made anew."""
        if not self.keep or self.lost or self.retried or not self.outdated:
            return False
        return not any(need.due and need.rule not in SHARED for need in self.needs.values())

    @cached_property
    def due(self) -> bool:
        """Whether the job must run."""
        return bool(self.lost) or (self.outdated and not self.kept)

    @property
    def made(self) -> Made:
        """What the record must say of its code."""
        return self.recorded if self.kept and self.recorded else self.now

    def expected(self) -> dict[str, str]:
        """Return what the record must say, for those who read it; the path is relative to the results folder."""
        made = self.made
        return {
            "path": self.record,
            "settings": self.digest,
            "code": made.code,
            "upstream": made.upstream,
        }


def read_made(record: Path) -> Made | None:
    """Return the code digests in a record's `about`; None where there is no readable record that has them."""
    try:
        body = json.loads(record.read_bytes())
        about = body["about"]
        return Made(about["code"], about["upstream"], body["status"] != "ok", about.get("files", {}))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def missing(folder: Path, made: Made) -> str:
    """Return the first file that a record beside it names, and that is not there or not as long; empty if none."""
    for name, size in made.files.items():
        try:
            length = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if length != size:
            return f"{name} has {length} bytes, not {size}"
    return ""


@dataclass
class Run:
    """A point and its jobs. `base` is what it is compared with; an adapter that takes trains on one of its own."""

    point: Point
    base: Job
    finetune: Job
    merge: Job
    evaluate: dict[str, Job]
    score: Job

    @property
    def folder(self) -> str:
        """The name of the run's folder."""
        return self.finetune.wildcards[0]

    @property
    def jobs(self) -> list[Job]:
        """All jobs of this run alone."""
        return [self.finetune, self.merge, *self.evaluate.values(), self.score]


@dataclass
class BaseAlone:
    """A quantized base, evaluated without an adapter."""

    model: str
    quantization: str
    job: Job
    evaluate: dict[str, Job]
    score: Job

    @property
    def jobs(self) -> list[Job]:
        """All jobs of this base alone."""
        return [self.job, *self.evaluate.values(), self.score]
