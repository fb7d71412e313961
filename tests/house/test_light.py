"""Planning, scoring and table-making start in a second: they load neither torch nor a library as heavy."""

import subprocess
import sys

from tests.house.tree import ROOT, files

HEAVY = ("torch", "transformers", "datasets", "bitsandbytes", "wandb")
ROOMS = ("pipeline/tasks", "pipeline/sweeps", "pipeline/aggregation")
MODULES = (
    "core/settings",
    "core/records",
    "core/provenance",
    "core/seeds",
    "core/leases",
    "tracking/journal",
    "tracking/sync",
    "__main__",
)
STAGES = ("plan", "score", "aggregate", "figures", "report")
PROBE = """
import importlib, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
    loaded = [heavy for heavy in sys.argv[1].split() if heavy in sys.modules]
    if loaded:
        sys.exit(f"import {name} loads {loaded}")
"""


def test_light_modules_load_nothing_heavy():
    paths = [path.relative_to(ROOT) for path in files("*.py", under=ROOMS)]
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    names += [f"pipeline.{module.replace('/', '.')}" for module in MODULES]
    names += [f"pipeline.stages.{stage}" for stage in STAGES]
    command = [sys.executable, "-c", PROBE, " ".join(HEAVY), *names]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
