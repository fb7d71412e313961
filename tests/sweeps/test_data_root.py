"""One folder of local data for a whole sweep, from the command line or the environment."""

import json

import pytest

from pipeline.core.settings import SettingsError
from pipeline.sweeps.compose import data_root, parsed, resolved

ROWS = [{"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in range(40)]
OVERRIDES = (
    "sweep.task=[gsm8k,gsm8k-demo] sweep.adapter=[lora] sweep.rank=[2] sweep.seed=[0] "
    "task.gsm8k.generation.max_new_tokens=64"
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data/gsm8k").mkdir(parents=True)
    for split in ("train", "test"):
        path = tmp_path / f"data/gsm8k/{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path / "data"


def test_every_task_reads_below_it(plan, folder):
    jobs = plan(f"{OVERRIDES} data_root={folder}").shop.data
    assert sorted(jobs["gsm8k"].settings["files"]) == [
        str(folder / f"gsm8k/{name}.jsonl") for name in ("test", "train")
    ]
    assert "files" not in jobs["gsm8k-demo"].settings
    (folder / "gsm8k/test.jsonl").write_text("")
    assert plan(f"{OVERRIDES} data_root={folder}").shop.data["gsm8k"].record != jobs["gsm8k"].record


def test_one_task_may_have_another(plan, folder):
    with pytest.raises(SettingsError, match=r"task.gsm8k.data: openai/gsm8k is not pinned"):
        plan(f"{OVERRIDES} data_root={folder} task.gsm8k.data.root=null")


def test_a_missing_file_is_named(plan, folder):
    (folder / "gsm8k/test.jsonl").unlink()
    with pytest.raises(SettingsError, match=r"gsm8k/test.jsonl: the settings name this file"):
        plan(f"{OVERRIDES} data_root={folder}")


def test_the_environment_says_it_and_the_command_line_overrides(monkeypatch, folder):
    monkeypatch.delenv("DATA_ROOT", raising=False)
    assert data_root([]) is None
    monkeypatch.setenv("DATA_ROOT", str(folder))
    assert data_root([]) == str(folder)
    assert data_root(parsed(("data_root=null",))) is None
    assert data_root(parsed((f"data_root={folder.parent}",))) == str(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert data_root(parsed(('data_root="~/data"',))) == str(folder)


def test_other_settings_may_lie_below_it():
    node = {"model": {"path": "${data_root}/novels.txt"}}
    assert resolved(node, "here") == {"model": {"path": "here/novels.txt"}}
    assert node == {"model": {"path": "${data_root}/novels.txt"}}
