"""The real stages on a sweep of seconds: what they load is in their digests, and a fork computes the same bytes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.core import records
from pipeline.sweeps import closure

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

ROOT = Path(__file__).resolve().parents[2]
OVERRIDES = (
    "sweep.adapter=[lora,oft] sweep.rank=[2] sweep.block_size=[8] sweep.seed=[0] sweep.quantization=[nf4-double] "
    "sweep.task=[gsm8k-demo,ppl-demo] training.steps=3 training.schedule.warmup_steps=1 model.training.steps=4 "
    "model.training.schedule.warmup_steps=1 model.corpus.rows=400 "
    "task.gsm8k-demo.generation.limit=8 task.gsm8k-demo.generation.max_new_tokens=4 task.ppl-demo.generation.limit=50 "
    "tracker=wandb"
)
SERVER = """
import json, os, sys
from pathlib import Path
from pipeline.core import preload
def run(argv):
    from pipeline.__main__ import run
    code = run(argv)
    loaded = sorted(name for name in sys.modules if name.split(".")[0] == "pipeline")
    note = {"argv": argv, "code": code, "loaded": loaded}
    Path(sys.argv[2], f"{os.getpid()}.json").write_text(json.dumps(note))
    return code
preload.serve(preload.listening(sys.argv[1]), preload.MODULES, run)
"""
ENTRY = {
    "pipeline", "pipeline.__main__", "pipeline.core", "pipeline.core.preload", "pipeline.core.leases",
    "pipeline.sweeps", "pipeline.sweeps.closure",
}  # fmt: skip
"""Loaded by whatever starts a stage; no result can depend on them."""


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep, and what each job had loaded when it ended."""
    folder, notes = tmp_path_factory.mktemp("real"), tmp_path_factory.mktemp("notes")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PIPELINE_PRELOADED": str(notes.parent / "real-socket")}
    address = environment["PIPELINE_PRELOADED"]
    Path(address).unlink(missing_ok=True)
    server = [sys.executable, "-c", SERVER, address, str(notes)]
    with subprocess.Popen(server, stdin=subprocess.PIPE, env=environment) as running:
        while not Path(address).exists():
            time.sleep(0.05)
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
        command += ["--directory", str(folder), "--config", f"overrides={OVERRIDES}"]
        done = subprocess.run(command, env=environment, cwd=folder, text=True, capture_output=True, check=False)
        running.stdin.close()
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return folder, [json.loads(note.read_text()) for note in notes.iterdir()]


def test_every_module_that_a_stage_loads_is_in_its_digest(swept):
    _, notes = swept
    assert len({note["argv"][0] for note in notes}) == 11
    for note in notes:
        stage, settings = note["argv"][0], note["argv"][note["argv"].index("--config") + 1]
        roots = [f"pipeline.stages.{stage}", *closure.targets(settings)]
        digested = {module.name for module in closure.modules(roots)}
        assert set(note["loaded"]) - digested <= ENTRY, stage


def test_no_adapter_loads_another(swept):
    _, notes = swept
    trained = [note for note in notes if note["argv"][0] == "finetune"]
    assert len(trained) == 2
    for note in trained:
        assert ("pipeline.adapters.oft" in note["loaded"]) != ("pipeline.adapters.lora" in note["loaded"])


def test_a_fork_computes_what_a_process_computes(swept, tmp_path):
    folder, notes = swept
    argv = next(note["argv"] for note in notes if note["argv"][0] == "finetune")
    forked = (
        folder / next(word for word in argv[argv.index("--output") :] if word.startswith("record=")).partition("=")[2]
    )
    argv = [word if not word.startswith("record=") else f"record={tmp_path}/train.json" for word in argv]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PIPELINE_PRELOADED": ""}
    subprocess.run([sys.executable, "-m", "pipeline", *argv], cwd=folder, env=environment, check=True)
    assert records.read(tmp_path / "train.json").result == records.read(forked).result
    for file in sorted((tmp_path / "adapter").iterdir()):
        assert file.read_bytes() == (forked.parent / "adapter" / file.name).read_bytes()
