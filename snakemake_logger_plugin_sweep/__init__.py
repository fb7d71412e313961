"""`snakemake --logger sweep`: a plan that says why, one line a finished job, failures that can be replayed, the table.

The Snakefile hands over its plan by `show`; without one, jobs are called by rule and wildcards alone.
"""

import contextlib
import shutil
import sys
from collections import Counter
from logging import LogRecord
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_sweep.pace import Pace, span

if TYPE_CHECKING:
    from pipeline.sweeps.plan import Plan

CHATTER = (
    "Building DAG", "Using ", "Provided ", "Rules claiming", "Conda env", "Singularity", "Group jobs", "Select jobs",
    "Execute ", "Complete log", "Elapsed time", "Assuming ", "This was a dry-run", "Cleaning up", "Reasons:",
    "Some jobs were triggered", "If you ", "Rules with", "Job stats", "(check", "No SLURM account", "Unable to guess",
    "SLURM run ID", "Job rate", "SNAKEMAKE", "Removing output", "Trying to restart", "Shutting down", "None",
    "At least one job", "Exiting because", "Nothing to be done", "Would remove", "host:", "input files updated",
    "output files have", "params have changed", "RuleException",
)  # fmt: skip
"""What Snakemake says beside the point. All else is passed on: lint, reports, warnings."""
RULES = (
    "prepare_model", "prepare_data", "quantize_base", "finetune", "merge", "evaluate", "evaluate_base",
    "score", "score_base", "plan", "aggregate", "figures", "report",
)  # fmt: skip
LOG_LINES = 15
ROOM = 1_000_000
"""Bytes; with less than this a failed job may have found no room for its files, or for its last words."""
NAMES = 60


class Shown:
    """The plan of the workflow that runs in this process."""

    plan: "Plan | None" = None


def show(plan: "Plan") -> None:
    """Let the log call jobs by the names of `plan`, and end with its table."""
    Shown.plan = plan


class LogHandler(LogHandlerBase):
    """Prints to stderr, as Snakemake does."""

    writes_to_stream = property(lambda self: True)  # type: ignore[assignment]
    writes_to_file = property(lambda self: False)  # type: ignore[assignment]
    has_filter = property(lambda self: True)  # type: ignore[assignment]
    has_formatter = property(lambda self: True)  # type: ignore[assignment]
    needs_rulegraph = property(lambda self: False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Called by the base in place of `__init__`."""
        self._jobs: dict[int, dict[str, Any]] = {}
        self._failed: dict[str, str] = {}
        self._pace = Pace()
        self._ended = self._planned = False
        self._handlers = {
            LogEvent.RUN_INFO: self._run_info,
            LogEvent.JOB_INFO: self._job_info,
            LogEvent.JOB_STARTED: self._job_started,
            LogEvent.JOB_FINISHED: self._job_finished,
            LogEvent.JOB_ERROR: self._job_error,
            LogEvent.ERROR: self._error,
            None: self._message,
        }

    def emit(self, record: LogRecord) -> None:
        """Answer one event; a fault of ours is reported and stops no workflow."""
        handler = self._handlers.get(getattr(record, "event", None))
        try:
            if handler:
                handler(record)
        except Exception:  # as logging's own handlers do
            self.handleError(record)

    def close(self) -> None:
        """End with the plan, the failures, or the table."""
        if not self._ended:
            self._ended = True
            if self._failed:
                self._print_failures()
            elif self._planned and self.common_settings.dryrun:
                self._print_plan()
            elif self._planned:
                self._print_table()
            self._pace.remember()
        super().close()

    # ---- events

    def _run_info(self, record: Any) -> None:
        self._planned = True
        self._pace.expect({rule: count for rule, count in record.stats.items() if rule not in ("total", "all")})
        if Shown.plan and not self.common_settings.dryrun and self._pace.total:
            _say(f"{_title(Shown.plan)}: {self._pace.total} jobs")

    def _job_info(self, record: Any) -> None:
        self._jobs[record.jobid] = {
            "rule": record.rule_name,
            "wildcards": tuple(record.wildcards.values()),
            "reason": record.reason,
            "log": [str(path) for path in record.log or []],
        }

    def _job_started(self, record: Any) -> None:
        for job in record.jobs:
            self._pace.started(job)

    def _job_finished(self, record: Any) -> None:
        job = self._jobs.get(record.job_id)
        if job is None or job["rule"] == "all":
            return
        took = self._pace.finished(record.job_id, job["rule"])
        total = str(self._pace.total)
        left = f"about {span(self._pace.left())} left" if self._pace.done < self._pace.total else ""
        _say(f"[{self._pace.done:>{len(total)}}/{total}] {job['rule']:<13} {_name(job):<44} {span(took):>7}   {left}")

    def _job_error(self, record: Any) -> None:
        job = self._jobs.get(record.jobid, {"rule": record.rule_name, "wildcards": (), "log": []})
        name = f"{job['rule']} {_name(job)}"
        self._failed[name] = record.shellcmd or ""
        _say(f"FAILED {name}")
        for path in job["log"]:
            with contextlib.suppress(OSError):
                lines = Path(path).read_text(errors="replace").rstrip().splitlines()
                _say("\n".join([f"  the end of {path}:", *(f"    {line}" for line in lines[-LOG_LINES:])]))
                if (free := shutil.disk_usage(Path(path).parent).free) < ROOM:  # the log itself may lack the reason
                    _say(f"  the disk is full: {free} bytes are free where {path} lies")

    def _error(self, record: LogRecord) -> None:
        """Say an error without the place in the Snakefile where it was raised."""
        lines = [line for line in record.getMessage().splitlines() if line.strip()]
        if lines and lines[0].startswith("WorkflowError"):
            lines = [line for line in lines[1:] if not line.lstrip().startswith('File "')]
        text = "\n".join(lines)
        if not text.startswith(CHATTER):
            _say(text)

    def _message(self, record: LogRecord) -> None:
        text = record.getMessage().strip()
        self._planned |= text.startswith("Nothing to be done")
        if text and not text.startswith(CHATTER):
            _say(text)

    # ---- what the log ends with

    def _print_plan(self) -> None:
        jobs = [job for job in self._jobs.values() if job["rule"] != "all"]
        if Shown.plan:
            _say("\n".join([_title(Shown.plan), *(f"  {remark}" for remark in Shown.plan.grid.remarks)]))
        _say(f"{len(jobs)} jobs would run{':' if jobs else '; everything is there.'}")
        groups = _groups(jobs)
        named: set[str] = set()
        for (rule, reason), members in groups.items():
            _say(f"  {len(members):>5}  {rule:<13}  {reason}")
            names = [name for name in dict.fromkeys(job["wildcards"][0] for job in members) if name not in named]
            named.update(names)
            if members[0]["rule"] in ("finetune", "merge", "evaluate", "score"):
                more = [f"and {len(names) - NAMES} more"] if len(names) > NAMES else []
                _say("\n".join(f"           {name}" for name in [*names[:NAMES], *more])) if names else None

    def _print_failures(self) -> None:
        _say(f"\n{len(self._failed)} job(s) failed. What is finished is kept; each of them by hand:")
        for name, command in self._failed.items():
            words = command.strip().replace("python ", f"{sys.executable} ", 1).rpartition(" > ")[0]
            _say(f"# {name}\n{words}")

    def _print_table(self) -> None:
        if Shown.plan is None:
            return
        folder = Path("results/tables") / Shown.plan.table
        jobs = f"{self._pace.done} jobs in {span(self._pace.elapsed())}" if self._pace.done else "nothing to be done"
        if self._pace.done < self._pace.total:
            _say(f"\nStopped after {jobs}, of {self._pace.total}. What is finished is kept; the table is not made yet.")
            return
        if not (folder / "report.html").exists():  # only a part was asked for
            _say(f"\n{jobs}.")
            return
        _say("\n" + (folder / "table.txt").read_text().rstrip())
        _say(f"\n{jobs}.  Table: {folder}/table.md   Report: {folder}/report.html")


def _groups(jobs: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return (rule, reason) -> jobs, in the order in which rules follow one another."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for job in sorted(jobs, key=lambda job: RULES.index(job["rule"])):
        key = (job["rule"], *job["wildcards"])
        known = Shown.plan is not None and key in Shown.plan.shop.jobs
        why = Shown.plan.why(key) if Shown.plan and known else _short(job["reason"])
        found.setdefault((job["rule"], why), []).append(job)
    return found


def _short(reason: str) -> str:
    """Put Snakemake's reason for a job of the table in a few words."""
    return "new" if reason.startswith("Missing output") else "its records changed"


def _name(job: dict[str, Any]) -> str:
    """Call a job by its run's folder and its task."""
    subject, *task = job["wildcards"] or ("",)
    return " ".join([subject, *(name.rpartition("-")[0] for name in task)])


def _title(plan: "Plan") -> str:
    counts = Counter(run.point.choices["adapter"] for run in plan.runs)
    runs = ", ".join(f"{count} {adapter}" for adapter, count in counts.items())
    told = f"; {' '.join(plan.request.overrides)}" if plan.request.overrides else ""
    tasks = ", ".join(plan.grid.sweep.task)
    return f"sweep {plan.grid.sweep.name}: {len(plan.runs)} fine-tune(s) ({runs}) on {tasks}{told}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
