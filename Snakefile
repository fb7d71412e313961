# Comparison tables of quantized parameter-efficient fine-tuning.
#
#   snakemake -n                                                what would run, and why
#   snakemake --cores all                                       run conf/sweep/default.yaml
#   snakemake --cores all --config sweep=NAME                   another sweep
#   snakemake -n --config overrides='training.steps=100 sweep.seed=[0,1,2] sweep.rank=[4,16]'
import gc
import sys
from os import environ, pathsep
from pathlib import Path

from snakemake.resources import Resource
from snakemake.utils import min_version

min_version("9.27")
gc.disable()  # until jobs start: it would walk the growing graph again and again, a fifth of a large plan's time

# Jobs run this very Python and package, from whatever folder Snakemake was started in.
sys.path.insert(0, workflow.basedir)
environ["PATH"] = pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", "")])
environ["HF_HUB_OFFLINE"] = "1"  # jobs read what `pin` and `prefetch` left
environ["PYTHONPATH"] = pathsep.join([workflow.basedir, *filter(None, [environ.get("PYTHONPATH")])])

from pipeline.core.leases import SHARED, visible
from pipeline.core.settings import SettingsError
from pipeline.core.preload import Preloaded
from pipeline.sweeps import plan
from pipeline.sweeps.locks import living
from pipeline.tracking.journal import VARIABLE
from snakemake_logger_plugin_sweep import show

try:
    PLAN = plan.load(config, ancient=ancient)
    show(PLAN)
    environ[VARIABLE] = PLAN.tracker
    if workflow.is_main_process:
        LIVING = living()
        PLAN.start()
    environ[SHARED] = str(PLAN.hardware["jobs_per_gpu"])
    # Of one machine's GPUs Snakemake gives out as many as it sees; the Slurm profile names a limit of its own.
    if "gpu" not in workflow.global_resources:
        PLAN.check_gpus(gpus := len(visible()))
        if gpus:
            workflow.global_resources["gpu"] = Resource("gpu", gpus * PLAN.hardware["jobs_per_gpu"])
except SettingsError as error:
    raise WorkflowError(str(error)) from None


wildcard_constraints:
    **dict.fromkeys(("model", "data", "base", "run", "task", "scores", "table"), r"[a-z0-9.-]+"),


report: "docs/report/workflow.rst"


include: "rules/prepare.smk"
include: "rules/finetune.smk"
include: "rules/evaluate.smk"
include: "rules/table.smk"


localrules:
    plan,
    aggregate,
    figures,
    report,


rule all:
    """The table of the sweep, its figures and its report."""
    default_target: True
    input:
        f"results/tables/{PLAN.table}/report.html",
        f"results/tables/{PLAN.table}/table.md",
        PLAN.lost,


PRELOADED = Preloaded()


onstart:
    gc.enable()
    if workflow.local_exec:
        PRELOADED.start()


onsuccess:
    PRELOADED.stop()


onerror:
    PRELOADED.stop()
