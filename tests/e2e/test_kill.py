"""A fine-tune that is killed at any moment goes on from its last checkpoint and ends with the same bytes."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from pipeline.core import records
from tests.e2e.jobs import PATIENCE, ROOT, SMOKE, environment, snakemake

ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def undisturbed(sweep, job, lab, tmp_path_factory):
    """The job, its run's folder, how it ended undisturbed, and the bytes of a checkpoint's files."""
    one = job("finetune", "adalora")  # the method with most state
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(sweep / "results", folder / "results")
    one.clear(folder)
    done = lab.run(one.command, folder)
    assert done.code == 0, done.output
    run = one.outputs["record"].parent
    assert (folder / run / ADAPTER).read_bytes() == (sweep / run / ADAPTER).read_bytes()
    return one, run, done


@pytest.fixture
def fresh(sweep, undisturbed, tmp_path):
    shutil.copytree(sweep / "results", tmp_path / "results")
    undisturbed[0].clear(tmp_path)
    return tmp_path


def finish(sweep, fresh, lab, undisturbed) -> int:
    """Run the killed job again; it must give the same bytes. Return the step from which it went on."""
    one, run, _ = undisturbed
    done = lab.run(one.command, fresh)
    assert done.code == 0, done.output
    assert (fresh / run / ADAPTER).read_bytes() == (sweep / run / ADAPTER).read_bytes()
    record = records.read(fresh / one.outputs["record"], "finetune")
    assert record.result == records.read(sweep / one.outputs["record"], "finetune").result
    return record.about["resumed_at"]


@pytest.mark.parametrize("part", range(1, 7))
def test_killed_at_what_it_does_to_files(part, sweep, fresh, lab, undisturbed):
    point = max(1, undisturbed[2].events * part // 7)
    assert lab.run(undisturbed[0].command, fresh, event=point).code == -signal.SIGKILL
    resumed = finish(sweep, fresh, lab, undisturbed)
    assert resumed > 0 or part < 3, "the last checkpoint was not used"


@pytest.mark.parametrize("left", range(6))
def test_killed_while_it_cleans_up(left, sweep, fresh, lab, undisturbed):
    assert lab.run(undisturbed[0].command, fresh, event=undisturbed[2].events - left).code == -signal.SIGKILL
    finish(sweep, fresh, lab, undisturbed)


@pytest.mark.parametrize("bytes_", [0, 700, 20_000, 80_000])
def test_killed_inside_of_a_write(bytes_, sweep, fresh, lab, undisturbed):
    assert lab.run(undisturbed[0].command, fresh, bytes=bytes_).code == -signal.SIGXFSZ
    finish(sweep, fresh, lab, undisturbed)


@pytest.mark.parametrize("share", [0.35, 0.5, 0.7, 0.9])
def test_killed_after_a_while(share, sweep, fresh, lab, undisturbed):
    assert lab.run(undisturbed[0].command, fresh, after=share * undisturbed[2].seconds).code in (-signal.SIGKILL, 0)
    finish(sweep, fresh, lab, undisturbed)


def test_killed_with_all_of_snakemake(sweep, copy, undisturbed):
    one, run, _ = undisturbed
    one.clear(copy)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(copy)]
    with (copy / "printed").open("wb") as printed:
        running = subprocess.Popen(
            [*command, "--cores", "2", "--config", SMOKE],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            start_new_session=True,
        )
    limit = time.monotonic() + PATIENCE
    while not list((copy / run).glob("checkpoints/*.json")):
        assert running.poll() is None, (copy / "printed").read_text()
        assert time.monotonic() < limit
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    done = snakemake(copy, "--cores", "2", "--config", SMOKE)
    assert done.returncode == 0, done.stdout
    assert (copy / run / ADAPTER).read_bytes() == (sweep / run / ADAPTER).read_bytes()
