"""No two processes ever hold the same GPU, and nobody waits for ever."""

import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from pipeline.core import leases
from pipeline.core.leases import VISIBLE, lease, visible
from pipeline.core.settings import SettingsError


@pytest.fixture(autouse=True)
def four_gpus(monkeypatch, tmp_path):
    monkeypatch.setenv(VISIBLE, "0,1,2,GPU-abc")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(leases.tempfile, "tempdir", str(tmp_path))


def _job(count, answers):
    with lease(count, poll_seconds=0.005) as held:
        start = time.monotonic()
        shown = os.environ[VISIBLE]
        time.sleep(0.005 * count)
        answers.put((held, shown, start, time.monotonic()))


def test_leases_never_overlap():
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    jobs = [context.Process(target=_job, args=(1 + number % 3, answers)) for number in range(24)]
    for job in jobs:
        job.start()
    held = [answers.get(timeout=60) for _ in jobs]
    for job in jobs:
        job.join()
    assert sorted(len(ids) for ids, *_ in held) == sorted(1 + number % 3 for number in range(24))
    for number, (ids, shown, start, end) in enumerate(held):
        assert shown == ",".join(ids)
        for other, _, other_start, other_end in held[number + 1 :]:
            assert not (set(ids) & set(other) and start < other_end and other_start < end)


def test_what_was_visible_is_visible_again():
    with lease(2):
        assert len(visible()) == 2
    assert len(visible()) == 4


def test_a_lock_dies_with_its_process(tmp_path):
    environment = os.environ | {VISIBLE: "7", "TMPDIR": str(tmp_path)}
    code = "import time\nfrom pipeline.core.leases import lease\nwith lease(1) as held: print(held, flush=True); {}"
    command = [sys.executable, "-c", code.format("time.sleep(60)")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "['7']\n"
        holder.kill()
    again = [sys.executable, "-c", code.format("pass")]
    done = subprocess.run(again, env=environment, text=True, capture_output=True, timeout=20, check=True)
    assert done.stdout == "['7']\n"


def test_too_few_gpus_are_an_error_with_the_key():
    with pytest.raises(SettingsError, match=r"hardware\.gpus: this step needs 5"), lease(5):
        pass


def test_slurm_has_handed_out_already(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with lease(2) as first, lease(2) as second:
        assert first == second == ["0", "1"]


def test_no_gpu_needs_no_lock(monkeypatch):
    monkeypatch.setenv(VISIBLE, "")
    with lease(0) as held:
        assert held == []


def test_as_many_jobs_share_a_gpu_as_the_settings_say(monkeypatch):
    monkeypatch.setenv(leases.SHARED, "2")
    monkeypatch.setenv(VISIBLE, "0,1")
    with lease(1) as first:
        monkeypatch.setenv(VISIBLE, "0,1")
        with lease(1) as second:
            monkeypatch.setenv(VISIBLE, "0,1")
            with lease(2) as both:
                assert sorted([*first, *second]) == both == ["0", "1"]
