"""What the Snakefile asks: the jobs of a sweep, each rule's params, and what the sweep's table must hold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core.records import write_atomic
from pipeline.core.settings import SettingsError, canonical, digest
from pipeline.sweeps import closure
from pipeline.sweeps.checks import checks
from pipeline.sweeps.compose import asked, parsed
from pipeline.sweeps.grid import Grid, expand
from pipeline.sweeps.jobs import BaseAlone, Job, Run, Workshop
from pipeline.sweeps.nodes import Node
from pipeline.sweeps.reasons import Reasons
from pipeline.sweeps.settings import Request

T = TypeVar("T")
Asked = Callable[[Any], T]
"""A function of the wildcards of a job."""
BY_WILDCARDS = Signature([Parameter("wildcards", Parameter.POSITIONAL_OR_KEYWORD)])

RESULTS = Path("results")
MEMORY = Path(".snakemake/sweep")
INERT = ("tracker", "hardware.gpus", "hardware.mem_mb", "hardware.runtime")
"""Settings that no result depends on."""
LISTED = 40
"""Runs that a message names."""
KEPT = 20
"""Plans that are remembered; a running workflow reads one of them."""


def load(config: Mapping[str, Any], root: Path = RESULTS, memory: Path = MEMORY) -> "Plan":
    """Read `--config`, and return the plan of the sweep that it names.

    Raises:
        SettingsError: a setting is wrong.
    """
    request = asked(config)
    with checks(memory) as checked:
        grid = expand(request, checked)
        shop = Workshop(grid, checked, root, request)
        runs = [shop.run(point) for point in grid.points]
        bases = {shop.base(point).wildcards: shop.base_alone(point) for point in grid.points}
    return Plan(request, grid, runs, list(bases.values()), shop, root, memory)


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

    def cfg(self, rule: str) -> Asked[str]:
        """`params: cfg=`, the slice of settings as one canonical text (Snakemake compares params without names)."""
        return _asked(lambda wildcards: self.job(rule, wildcards).cfg)

    def code(self, rule: str) -> Asked[str]:
        """`params: code=`, the digest of the code that the job loads."""
        return _asked(lambda wildcards: self.job(rule, wildcards).made.code)

    def upstream(self, rule: str) -> Asked[str]:
        """`params: upstream=`, the digest of settings and code of all earlier steps.

        Without it, Snakemake takes old files behind a failed and deleted one for good, and mixes them into a table.
        """
        return _asked(lambda wildcards: self.job(rule, wildcards).made.upstream)

    def needs(self, rule: str, name: str) -> Asked[str]:
        """`input:`, the record of the earlier step that the rule calls `name`."""
        return _asked(lambda wildcards: f"{self.root}/{self.job(rule, wildcards).needs[name].record}")

    def replies(self, rule: str) -> Asked[str]:
        """`input: replies=`, the replies beside the record that the rule reads."""
        record = self.needs(rule, "record")
        return _asked(lambda wildcards: record(wildcards).removesuffix(".json") + ".jsonl")

    def files(self, rule: str) -> Asked[list[str]]:
        """`input:`, the local files that the job reads by its settings."""
        return _asked(lambda wildcards: list(self.job(rule, wildcards).settings.get("files", ())))

    def threads(self, rule: str) -> Asked[int]:
        """`threads:`, those of the model's own builder where it has a say, else of the hardware."""
        own = self.hardware["threads"]
        return _asked(lambda wildcards: self.job(rule, wildcards).settings["model"].get("threads", own))

    # ---- the table

    @cached_property
    def table(self) -> str:
        """The name of the table's folder; overrides have folders of their own."""
        told = sorted(o.text for o in parsed(self.request.overrides) if not o.key.startswith(INERT))
        return f"{self.grid.sweep.name}-{digest(told)}" if told else self.grid.sweep.name

    @cached_property
    def scores(self) -> list[str]:
        """The records at the end of every chain: all others are made before them."""
        jobs = [job for subject in (*self.runs, *self.bases) for job in subject.score.values()]
        return [f"{self.root}/{job.record}" for job in jobs]

    @cached_property
    def lost(self) -> list[str]:
        """Records that somebody deleted behind a finished table; Snakemake alone would not miss them."""
        if not (self.root / "tables" / self.table / "table.md").exists():
            return []
        return [f"{self.root}/{job.record}" for job in self.shop.jobs.values() if not (self.root / job.record).exists()]

    @cached_property
    def expected(self) -> Node:
        """What the table must hold: the result of sweep.json. Paths are relative to the results folder."""
        sweep, tasks = self.grid.sweep, self.grid.tasks
        targets = {run.point.settings["training"]["task"] for run in self.runs}
        return {
            "name": self.table,
            "overrides": [o.text for o in parsed(self.request.overrides) if not o.key.startswith(INERT)],
            "axes": sorted({axis for run in self.runs for axis in run.point.axes}),
            "states": self.grid.single["evaluation"]["states"],
            "tasks": [
                {
                    "name": name,
                    "generation_id": tasks[name].node["generation"]["id"],
                    "role": "target" if name in targets else tasks[name].node["role"],
                    "scoring": list(tasks[name].rules),
                }
                for name in sweep.task
            ],
            "runs": [_run(run) for run in self.runs],
            "bases": [_base(base) for base in self.bases],
            "data": {name: job.expected() for name, job in self.shop.data.items()},
            "report": self.grid.single["report"],
        }

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
        """Settings and code of everything the table is made of."""
        return f"upstream:{digest(self.expected, 12)}"

    @property
    def hardware(self) -> Node:
        """The resources of one job."""
        return self.grid.single["hardware"]

    def check_gpus(self, visible: int) -> None:
        """Refuse jobs that want more GPUs than there are: Snakemake would cut them down without a word."""
        if (wanted := self.hardware["gpus"]) > visible:
            raise SettingsError(f"hardware.gpus: got {wanted}, allowed 0 to {visible}, the GPUs of this machine.")

    # ---- finished runs and changed code

    def changed(self) -> list[Job]:
        """Return the finished fine-tunes whose code, or whose inputs' code, is no longer what made them."""
        jobs = [run.finetune for run in self.runs]
        return [job for job in jobs if job.recorded is not None and not job.recorded.same(job.now)]

    def why(self, job: tuple[str, ...], said: str) -> str:
        """Return why a job (rule, *wildcards) would run; `said` is Snakemake's reason."""
        return self._reasons.why(self.shop.jobs[job], said)

    @cached_property
    def _reasons(self) -> Reasons:
        return Reasons(self.root)

    def check_code(self) -> None:
        """Stop before finished fine-tunes are redone for changed code, unless the user has said what to do."""
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
                    f"code: the code of {len(changed)} finished fine-tune(s) has changed since they ran:",
                    *names,
                    *more,
                    "Allowed: --config code=rerun (train them again) or --config code=keep (take them as they are; "
                    "the table marks them).",
                ]
            )
        )


def _what_changed(job: Job, ledger: closure.Ledger) -> str:
    """Name the steps whose code differs, and the modules if they are remembered."""
    changed = [step for step in (*job.needs.values(), job) if step.recorded and step.recorded.code != step.now.code]
    said = []
    for step in changed:
        assert step.recorded is not None
        modules = ledger.changed(step.recorded.code, step.now.code)
        said.append(f"{step.stage} ({', '.join(modules)})" if modules else step.stage)
    return ", ".join(said) or "an earlier step"


def _run(run: Run) -> Node:
    point = run.point
    return {
        "folder": f"runs/{run.folder}",
        "name": point.title,
        "model": point.model,
        "quantization": point.choices["quantization"],
        "adapter": point.choices["adapter"],
        "adapter_label": point.label,
        "size": point.size,
        "seed": point.settings["seed"],
        "base": f"bases/{run.base.wildcards[0]}",
        "settings": point.settings,
        "kept": _kept([*run.finetune.needs.values(), *run.jobs]),
        "records": {"finetune": run.finetune.expected(), "merge": run.merge.expected()},
        "tasks": _tested(run),
    }


def _base(base: BaseAlone) -> Node:
    return {
        "folder": f"bases/{base.job.wildcards[0]}",
        "name": f"{base.model}-{base.quantization}",
        "model": base.model,
        "quantization": base.quantization,
        "base": f"bases/{base.job.wildcards[0]}",
        "settings": {
            "model": base.job.needs["model"].settings["model"],
            "quantization": base.job.settings["quantization"],
        },
        "kept": _kept([*base.job.needs.values(), *base.jobs]),
        "records": {"prepare_model": base.job.needs["model"].expected(), "quantize_base": base.job.expected()},
        "tasks": _tested(base),
    }


def _tested(subject: Run | BaseAlone) -> Node:
    return {
        name: {"evaluate": job.expected(), "score": subject.score[name].expected()}
        for name, job in subject.evaluate.items()
    }


def _kept(jobs: list[Job]) -> list[str]:
    """Return the stages whose records are kept though their code has changed."""
    return sorted({job.stage for job in jobs if job.kept})
