"""Tracking: every step once in offline files and uploads, and no network that a job waits for."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial

import pytest

from pipeline.__main__ import main
from pipeline.core.records import write_atomic
from pipeline.tracking import journal
from pipeline.tracking.journal import tracked
from tests.tracking import offline
from tests.tracking.server import hanging, serving

CONFIG = {"seed": 0, "adapter": {"rank": 2}}
KILLED = """
import os, sys
from pathlib import Path
from pipeline.tracking.journal import tracked
with tracked(Path(sys.argv[1]), "finetune", {"seed": 0, "adapter": {"rank": 2}}) as tracker:
    for step in range(int(sys.argv[2])):
        tracker.log(step, {"loss": 1 / (step + 1)})
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A results folder whose jobs are tracked, without key and network."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    told = {"project": "p", "group": "my-sweep", "root": str(tmp_path / "results")}
    monkeypatch.setenv(journal.VARIABLE, json.dumps(told))
    return tmp_path / "results"


@pytest.fixture
def server(results, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with serving() as running:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{running.server_port}")
        yield running


def folder(results, name="demo-lora-12345678"):
    made = results / "runs" / name
    made.mkdir(parents=True, exist_ok=True)
    return made


def job(results, start, end, name="demo-lora-12345678", status="ok"):
    """One job from step `start`; return what its record would say."""
    with tracked(folder(results, name), "finetune", CONFIG) as tracker:
        for step in range(start, end):
            tracker.log(step, {"loss": 1 / (step + 1), "nothing": None})
        return tracker.end(status, {"final_loss": 0.5})


def killed(results, steps):
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder(results)), str(steps)], check=False)
    assert done.returncode == -signal.SIGKILL


def test_without_a_tracker_nothing_is_written(tmp_path, monkeypatch):
    for told in (None, ""):
        monkeypatch.delenv(journal.VARIABLE, raising=False) if told is None else monkeypatch.setenv(
            journal.VARIABLE, told
        )
        assert job(tmp_path, 0, 3) == {}
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_offline_file_holds_config_group_and_every_step(results, capsys):
    said = job(results, 0, 5)["tracker"]
    assert said == {"project": "p", "group": "my-sweep", "id": said["id"], "offline": "written"}
    assert said["id"] in capsys.readouterr().out
    one = offline.read(results)["demo-lora-12345678"]
    assert one.run["run_id"] == said["id"]
    assert (one.run["project"], one.run["run_group"], one.run["tags"]) == ("p", "my-sweep", ["my-sweep"])
    assert one.run["job_type"] == "finetune"
    assert {key: one.config[key] for key in CONFIG} == CONFIG
    assert one.steps == list(range(5))
    assert [point["loss"] for point in one.history] == [pytest.approx(1 / (step + 1)) for step in range(5)]
    assert (one.summary["final_loss"], one.summary["status"], one.exit_code) == (0.5, "ok", 0)
    assert not (results.parent / "home").exists(), "something was left in the user's home"


def test_a_killed_job_that_goes_on_has_one_run_and_every_step_once(results):
    killed(results, 11)
    said = job(results, 9, 15)["tracker"]  # from its last checkpoint
    one = offline.read(results)["demo-lora-12345678"]
    assert one.run["run_id"] == said["id"]
    assert one.steps == list(range(15))
    assert one.exit_code == 0


@pytest.mark.slow
def test_a_writer_that_is_slower_than_its_successor_leaves_no_file(results):
    with tracked(folder(results), "finetune", CONFIG) as tracker:
        tracker.log(0, {"loss": 1.0})
        while not list(results.glob("wandb/offline-run-*")):
            time.sleep(0.1)
        path = folder(results) / journal.FILE
        write_atomic(path, path.read_bytes())  # as the job does that goes on
        tracker.end("ok", {})
    assert not list(results.glob("wandb/offline-run-*"))


@pytest.mark.slow
def test_other_settings_or_code_are_another_run(results):
    ids = set()
    for config in (CONFIG, CONFIG | {"code": "code:2"}, CONFIG | {"seed": 1}):
        with tracked(folder(results), "finetune", config) as tracker:
            ids.add(tracker.end("ok", {})["tracker"]["id"])
    assert len(ids) == 3


def test_files_are_an_artifact_and_a_failed_run_is_one(results):
    place = folder(results, "my-table")
    (place / "table.md").write_text("| a |")
    (place / "table.csv").write_text("a")
    with tracked(place, "table", {}) as tracker:
        tracker.end("diverged", {}, (place / "table.md", place / "table.csv"))
    one = offline.read(results)["my-table"]
    assert {name: sorted(files) for name, files in one.artifacts.items()} == {"my-table": ["table.csv", "table.md"]}
    assert one.exit_code == 1


def test_a_journal_that_cannot_be_written_ends_the_tracking_and_not_the_job(results, capsys):
    (folder(results) / "tracker").write_text("in the way")
    assert job(results, 0, 3) == {}
    assert "no more is tracked" in capsys.readouterr().err


@pytest.mark.slow
def test_sync_sends_finished_and_killed_runs_and_nothing_twice(results, server, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    killed(results, 11)
    other = job(results, 0, 4, "demo-oft-12345678")["tracker"]["id"]
    assert server.requests == 0
    assert main(["sync", str(results), "--patience", "20"]) == 0
    (lora,) = server.history.keys() - {other}
    assert [line["_step"] for line in server.history[other]] == list(range(4))
    assert [line["_step"] for line in server.history[lora]] == list(range(11))
    assert (server.finished[other], server.finished[lora]) == (0, 1)
    before = server.requests
    assert main(["sync", str(results), "--patience", "20"]) == 0
    assert capfd.readouterr().out.count("is there already") == 2
    assert server.requests == before
    assert job(results, 9, 15)["tracker"]["id"] == lora
    assert main(["sync", str(results), "--patience", "20"]) == 0
    assert [line["_step"] for line in server.history[lora]] == list(range(15))
    assert server.finished[lora] == 0


@pytest.mark.slow
def test_online_a_run_is_there_at_its_end_and_sync_has_nothing_left(results, server, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setitem(journal.PATIENCE, "online", 60.0)  # the machine may be busy
    said = job(results, 0, 5)["tracker"]
    assert (said["offline"], said["online"]) == ("written", "uploaded")
    assert [line["_step"] for line in server.history[said["id"]]] == list(range(5))
    assert offline.read(results)["demo-lora-12345678"].steps == list(range(5))
    before = server.requests
    assert main(["sync", str(results), "--patience", "20"]) == 0
    assert server.requests == before


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", [partial(nullcontext, "http://127.0.0.1:9"), hanging], ids=["refusing", "hanging"])
def test_a_server_that_does_not_answer_costs_seconds_and_no_run(endpoint, results, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_MODE", "online")
    with endpoint() as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        started = time.monotonic()
        said = job(results, 0, 5)["tracker"]
        assert time.monotonic() - started < 10
        assert said["offline"] == "written"
        assert said["online"].startswith("not uploaded (")
        assert "python -m pipeline sync" in said["online"]
        assert offline.read(results)["demo-lora-12345678"].steps == list(range(5))
        assert main(["sync", str(results), "--patience", "3"]) == 1


def test_sync_of_nothing_says_what_to_do(tmp_path, capsys):
    assert main(["sync", str(tmp_path)]) == 1
    assert "tracker=wandb" in capsys.readouterr().err
