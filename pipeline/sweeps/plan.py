"""What the Snakefile asks: the jobs of a sweep, each rule's params, and what the sweep's table must hold."""

import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core.records import write_atomic
from pipeline.core.settings import COSTS, SettingsError, canonical, digest
from pipeline.sweeps import closure, fit
from pipeline.sweeps.checks import checks
from pipeline.sweeps.compose import asked, parsed
from pipeline.sweeps.expected import expected
from pipeline.sweeps.grid import Grid, expand
from pipeline.sweeps.jobs import BaseAlone, Job, Made, Run, missing, read_made
from pipeline.sweeps.nodes import Node
from pipeline.sweeps.reasons import Reasons
from pipeline.sweeps.settings import Request
from pipeline.sweeps.workshop import Workshop

T = TypeVar("T")
Asked = Callable[[Any], T]
"""A function of the wildcards of a job."""
BY_WILDCARDS = Signature([Parameter("wildcards", Parameter.POSITIONAL_OR_KEYWORD)])

RESULTS = Path("results")
MEMORY = Path(".snakemake/sweep")
INERT = ("tracker", *(f"hardware.{key}" for key in ("gpus", "jobs_per_gpu", "mem_mb", "runtime", "price_per_hour")))
"""Settings that no result depends on, beside `COSTS`."""
TABLE = ("plan", "aggregate", "figures", "report")
"""The stages that serve a whole table. The last one's record names what all have made."""
LISTED = 40
"""Runs that a message names."""
KEPT = 20
"""Plans that are remembered; a running workflow reads one of them."""


def load(
    config: Mapping[str, Any], root: Path = RESULTS, memory: Path = MEMORY, ancient: Callable[[str], str] = str
) -> "Plan":
    """Read `--config`, and return the plan of the sweep that it names; `ancient` is Snakemake's flag for an input.

    Raises:
        SettingsError: a setting is wrong.
    """
    request = asked(config)
    with checks(memory) as checked:
        grid = expand(request, checked)
        checked.present(request.told)
        fit.check(grid, checked)
        shop = Workshop(grid, checked, root, request)
        runs = [shop.run(point) for point in grid.points]
        bases = {shop.base(point).record: point for point in reversed(grid.points)}  # the first of each
        alone = [shop.base_alone(bases[record]) for record in dict.fromkeys(shop.base(p).record for p in grid.points)]
    return Plan(request, grid, runs, alone, shop, root, memory, ancient)


def _asked(answer: Asked[T]) -> Asked[T]:
    """Return `answer` with its signature on it: Snakemake looks for it at every job, 0.06 ms each time."""
    answer.__signature__ = BY_WILDCARDS  # type: ignore[attr-defined]
    return answer


@dataclass(eq=False)
class Plan:
    """The jobs of one sweep."""

    request: Request
    grid: Grid
    runs: list[Run]
    bases: list[BaseAlone]
    shop: Workshop
    root: Path
    memory: Path
    ancient: Callable[[str], str]

    # ---- what rules ask, by the names of their wildcards

    def job(self, rule: str, wildcards: Any) -> Job:
        """Return the job of `rule` at `wildcards`."""
        try:
            return self.shop.jobs[(rule, *wildcards)]
        except KeyError:
            raise SettingsError(
                f"{rule}: sweep {self.request.sweep!r} with these settings has no {'/'.join(wildcards)}; "
                "`snakemake -n` lists its runs."
            ) from None

    def needs(self, rule: str) -> Asked[list[str]]:
        """`input:`, the records of the earlier steps; whether the job runs does not depend on their age.

        A job that is due and has a record gets one input more, which is newer than any record. A job that is not due
        waits for none of its inputs.
        """
        return _asked(lambda wildcards: self._needs(self.job(rule, wildcards)))

    def _needs(self, job: Job) -> list[str]:
        if job.due:
            return [*self._paths(job.needs.values()), *([str(self.due)] if job.exists else [])]
        return [self.ancient(path) for path in self._paths(need for need in job.needs.values() if need.exists)]

    def _paths(self, jobs: Iterable[Job]) -> list[str]:
        return [f"{self.root}/{job.record}" for job in jobs]

    def arguments(self, rule: str) -> Asked[str]:
        """`params:`, what the stage is told, as words of a command line.

        The slice of settings, each earlier step's record, and the digests of the code that the job loads and of all
        that comes before it, for its record.
        """
        return _asked(lambda wildcards: self._arguments(self.job(rule, wildcards)))

    def _arguments(self, job: Job) -> str:
        inputs = [f"{name}={self.root}/{need.record}" for name, need in job.needs.items()]
        made = job.made
        words = ["--config", job.cfg, "--input", *inputs, "--code", made.code, "--upstream", made.upstream]
        return " ".join(map(shlex.quote, words))

    def threads(self, rule: str) -> Asked[int]:
        """`threads:`, those of the model's own builder where it has a say, else of the hardware."""
        own = self.hardware["threads"]
        return _asked(lambda wildcards: self.job(rule, wildcards).settings["model"].get("threads", own))

    # ---- the table

    @cached_property
    def _told(self) -> list[str]:
        """The overrides that a result may depend on."""
        told = parsed(self.request.overrides)
        return [one.text for one in told if not (one.key.startswith(INERT) or one.key.endswith(COSTS))]

    @cached_property
    def table(self) -> str:
        """The name of the table's folder; overrides have folders of their own."""
        told = sorted(self._told)
        return f"{self.grid.sweep.name}-{digest(told)}" if told else self.grid.sweep.name

    @property
    def _scores(self) -> list[Job]:
        """The jobs at the end of every chain: all others are made before them."""
        return [subject.score for subject in (*self.runs, *self.bases)]

    @cached_property
    def lost(self) -> list[str]:
        """Missing records that no job waits for, since all that stand on them are kept."""
        kept = [job for job in self.shop.jobs.values() if job.kept]
        return sorted({path for job in kept for path in self._paths(n for n in job.needs.values() if not n.exists)})

    @cached_property
    def scores(self) -> list[str]:
        """`input:` of the table: the scores of all runs and bases, and what is made again without making them again."""
        due = [job for job in self.shop.jobs.values() if job.due]
        before = {id(need) for job in due for need in job.needs.values()} | {id(job) for job in self._scores}
        alone = [job for job in due if id(job) not in before]
        return [self.of_table(path) for path in self._paths([*self._scores, *alone])]

    def of_table(self, path: str) -> str:
        """Return an input of the table's own rules; a table that is not due waits for none."""
        return path if self.table_due else self.ancient(path)

    @cached_property
    def table_due(self) -> bool:
        """Whether the table must be made anew: something in it is, or one of its files is not as it was made."""
        last = read_made(self._folder / "report.json")
        if last is None or last != Made(self.table_code("report"), self.table_upstream) or missing(self._folder, last):
            return True
        return self._plan_due or any(job.due for job in self.shop.jobs.values())

    @cached_property
    def _plan_due(self) -> bool:
        return read_made(self._folder / "sweep.json") != Made(self.table_code("plan"), self.table_upstream)

    @property
    def _folder(self) -> Path:
        return self.root / "tables" / self.table

    def due_of_table(self, record: str) -> list[str]:
        """`input:` of the table's plan and of the tables: newer than what is there, if that must be made anew."""
        due = self._plan_due if record == "sweep.json" else self.table_due
        return [str(self.due)] if due and (self._folder / record).exists() else []

    @property
    def due(self) -> Path:
        """A file that is newer than whatever must be made anew."""
        return self.memory / "due"

    @cached_property
    def expected(self) -> Node:
        """What the table must hold: the result of sweep.json."""
        data = {name: job.expected() for name, job in self.shop.data.items()}
        return {"name": self.table, "overrides": self._told, "data": data} | expected(self.grid, self.runs, self.bases)

    @cached_property
    def expected_file(self) -> Path:
        """A file that holds `expected`, under its digest. It is too long for a command line (128 KB)."""
        file = self.memory / "expected" / f"{digest(self.expected, 16)}.json"
        if not file.exists():
            write_atomic(file, canonical(self.expected).encode())
            for old in sorted(file.parent.iterdir(), key=lambda other: other.stat().st_mtime)[:-KEPT]:
                old.unlink()
        return file

    @cached_property
    def plan_cfg(self) -> str:
        """The settings of stage `plan`: the digest of what the table must hold."""
        return canonical({"expected": self.expected_file.stem})

    @cached_property
    def report_cfg(self) -> str:
        """The settings of stages `aggregate`, `figures` and `report`."""
        return canonical({"sweep": self.table, "report": self.grid.single["report"]})

    def table_code(self, stage: str) -> str:
        """Return the code digest of a stage that serves the whole table."""
        return closure.code(stage, self.plan_cfg if stage == "plan" else self.report_cfg)

    @cached_property
    def table_upstream(self) -> str:
        """Settings and code of everything the table is made of, and the code of all that make it."""
        return f"upstream:{digest([self.expected, *map(self.table_code, TABLE)], 12)}"

    @property
    def hardware(self) -> Node:
        """The resources of one job."""
        return self.grid.single["hardware"]

    @cached_property
    def tracker(self) -> str:
        """What the environment tells jobs of the tracker; empty where nothing is tracked."""
        told = self.grid.single["tracker"]
        if told["kind"] == "none":
            return ""
        return canonical({"project": told["project"], "group": self.grid.sweep.name, "root": str(self.root)})

    def check_gpus(self, visible: int) -> None:
        """Refuse jobs that want more GPUs than there are: Snakemake would cut them down without a word."""
        if (wanted := self.hardware["gpus"]) > visible:
            raise SettingsError(f"hardware.gpus: got {wanted}, allowed 0 to {visible}, the GPUs of this machine.")

    # ---- finished runs and changed code

    def changed(self) -> list[Job]:
        """Return the whole fine-tunes that would run again: other code made them, or what they stand on is due."""
        jobs = [run.finetune for run in self.runs]
        return [job for job in jobs if not (job.lost or job.retried) and job.outdated]

    def why(self, job: tuple[str, ...]) -> str:
        """Return why a job (rule, *wildcards) would run."""
        return self._reasons.why(self.shop.jobs[job])

    @cached_property
    def _reasons(self) -> Reasons:
        return Reasons(self.root)

    def start(self) -> None:
        """Stop before finished fine-tunes are redone, unless the user has said what to do."""
        write_atomic(self.due, str(time.time_ns()).encode())  # also by its contents, which Snakemake may compare
        changed = self.changed()
        if self.request.code is not None or not changed:
            closure.Ledger(self.memory / "code.json").save()
            return
        ledger = closure.Ledger(self.memory / "code.json")
        names = [f"  {job.wildcards[0]}: {_what_changed(job, ledger)}" for job in changed[:LISTED]]
        more = [f"  and {len(changed) - LISTED} more"] if len(changed) > LISTED else []
        raise SettingsError(
            "\n".join(
                [
                    f"code: {len(changed)} finished fine-tune(s) would be trained again, for this has changed since:",
                    *names,
                    *more,
                    "Allowed: --config code=rerun (train them again) or --config code=keep (take them as they are; "
                    "the table marks them).",
                ]
            )
        )


def _what_changed(job: Job, ledger: closure.Ledger) -> str:
    """Name the steps that are lost or whose code differs, and the modules if they are remembered."""
    said = []
    for step in (*job.needs.values(), job):
        if step.lost:
            said.append(f"{step.stage} ({step.lost})")
        elif step.recorded and step.recorded.code != step.now.code:
            modules = ledger.changed(step.recorded.code, step.now.code)
            said.append(f"{step.stage} ({', '.join(modules)})" if modules else step.stage)
    return ", ".join(said) or "an earlier step"
