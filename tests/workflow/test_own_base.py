"""An adapter that starts from a part of the weights trains on a base of its own, which counts like every other."""

import subprocess
import sys

import pytest

from pipeline.core.results import stands_on
from tests.workflow.test_reruns import TABLE

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

OVERRIDES = "sweep.adapter=[lora,loftq] sweep.quantization=[nf4-double] sweep.rank=[2]"
LOFTQ = "pipeline/adapters/loftq.py"
AGAIN = {"quantize_base": 1, "finetune": 1, "merge": 1, "evaluate": 2, "score": 1} | TABLE


def command(lab, *words):
    call = [sys.executable, "-m", "pipeline", *words]
    return subprocess.run(call, cwd=lab.folder, text=True, capture_output=True, check=True).stdout


def test_a_base_of_its_own(lab):
    lab.snakemake("--config", f"overrides={OVERRIDES}")
    assert lab.overridden(OVERRIDES) == {}
    (run,) = lab.folder.glob("results/runs/*-loftq-*")
    (manifest,) = lab.folder.glob("results/bases/*-loftq-*/manifest.json")
    assert stands_on(run)[1] == manifest
    assert "0 unused" in command(lab, "gc")
    assert "changed since" not in command(lab, "explain", run.name)
    lab.append(LOFTQ, "EDITED = 1")
    said = lab.snakemake("--dry-run", "--config", f"overrides={OVERRIDES}", code=1)
    assert "1 finished fine-tune(s) would be trained again" in said
    assert f"{run.name}: quantize_base (pipeline.adapters.loftq), finetune (pipeline.adapters.loftq)" in said
    assert lab.overridden(OVERRIDES, "code=rerun") == AGAIN
    lab.edit(LOFTQ, "EDITED = 1", "")
    manifest.unlink()
    said = lab.snakemake("--dry-run", "--config", f"overrides={OVERRIDES}", code=1)
    assert f"{run.name}: quantize_base (its record is missing)" in said
    kept = {"quantize_base": 1} | {rule: 1 for rule in TABLE if rule != "plan"}
    assert lab.overridden(OVERRIDES, "code=keep") == kept
    lab.snakemake("--config", f"overrides={OVERRIDES}", "code=keep")
    assert manifest.exists()
    assert lab.overridden(OVERRIDES) == {}
