"""`pin` and `prefetch` against a hub on loopback; afterwards a plan runs from the cache, with the network refused."""

import json

import pytest
from huggingface_hub import constants

from pipeline.core import hub as hubs
from pipeline.core.settings import SettingsError
from pipeline.stages import prepare_data
from pipeline.sweeps import pins, plan
from pipeline.sweeps.checks import checks
from pipeline.sweeps.compose import asked
from pipeline.sweeps.grid import expand
from tests.tasks.fake_hub import COMMIT, FakeHub, serving

FILES = {
    "main/train-00000-of-00001.jsonl": b"".join(
        json.dumps({"question": f"{n} + 1?", "answer": f"#### {n + 1}"}).encode() + b"\n" for n in range(40)
    ),
    "main/test-00000-of-00001.jsonl": b'{"question": "7 * 8?", "answer": "#### 56"}\n',
    "README.md": b"sums",
}
NAMES = {"train": ["main/train-00000-of-00001.jsonl"], "test": ["main/test-00000-of-00001.jsonl"]}
OVERRIDES = "sweep.task=[gsm8k] sweep.adapter=[lora] sweep.rank=[2] sweep.seed=[0] data_root=null " + " ".join(
    [f"task.gsm8k.data.files.{split}={json.dumps(names)}" for split, names in NAMES.items()]
    + ["task.gsm8k.generation.max_new_tokens=64"]
)
CONFIG = ["--config", f"overrides={OVERRIDES}"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with GSM8K's repository, an empty cache, and a lock file that is not there yet."""
    monkeypatch.setattr(hubs, "LOCK", tmp_path / "pins.json")
    monkeypatch.setattr(pins, "MEMORY", tmp_path / "memory")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving(FakeHub("openai/gsm8k", dict(FILES))) as served:
        yield served


def command(function, hub, *more):
    return function([*CONFIG, "--endpoint", hub.address, *more])


def planned(tmp_path):
    return plan.load({"overrides": OVERRIDES}, root=tmp_path / "results", memory=tmp_path / "memory")


def test_pin_prefetch_and_then_no_network(hub, tmp_path, monkeypatch, capsys):
    with pytest.raises(SettingsError, match=r"task.gsm8k.data: openai/gsm8k is not pinned.*pipeline pin --config"):
        planned(tmp_path)
    command(pins.pin, hub)
    lock = json.loads((tmp_path / "pins.json").read_text())
    assert lock["datasets/openai/gsm8k@main"]["revision"] == COMMIT
    assert set(lock["datasets/openai/gsm8k@main"]["sha256"]) == {name for names in NAMES.values() for name in names}
    with pytest.raises(SettingsError, match=r"lacks main/train-.*jsonl of openai/gsm8k.*pipeline prefetch --config"):
        planned(tmp_path)
    command(pins.prefetch, hub)
    assert "README.md" not in " ".join(hub.asked), "only what the sweep reads is fetched"

    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asks the network"))
    job = planned(tmp_path).shop.data["gsm8k"]
    assert job.settings["data"]["revision"] == COMMIT
    record = tmp_path / "out" / "manifest.json"
    prepare_data.run(job.settings, {}, {"record": record}, {"started": 0.0})
    assert "1 rows of test" in capsys.readouterr().out

    cached = next((tmp_path / "cache").rglob("snapshots/*/main/train*"))
    cached.resolve().write_bytes(b"{}\n")
    with pytest.raises(SettingsError, match=r"is not main/train-.*SHA-256 .* locked .*pipeline prefetch"):
        prepare_data.run(job.settings, {}, {"record": record}, {"started": 0.0})


def test_a_damaged_file_is_fetched_again_and_another_one_refused(hub, tmp_path):
    command(pins.pin, hub)
    command(pins.prefetch, hub)
    cached = next((tmp_path / "cache").rglob("snapshots/*/main/train*"))
    cached.resolve().write_bytes(b"{}\n")
    command(pins.prefetch, hub)
    assert cached.read_bytes() == FILES[NAMES["train"][0]]
    cached.unlink()
    hub.broken = {NAMES["train"][0]}
    with pytest.raises(SettingsError, match=r"the hub gave a file of SHA-256 .*pin --update"):
        command(pins.prefetch, hub)


def test_a_pin_stays_until_update(hub, tmp_path):
    command(pins.pin, hub)
    hub.commit = "f" * 40
    command(pins.pin, hub)
    assert hubs.read_lock()["datasets/openai/gsm8k@main"].revision == COMMIT
    command(pins.pin, hub, "--update")
    assert hubs.read_lock()["datasets/openai/gsm8k@main"].revision == "f" * 40


def test_what_the_hub_refuses_says_what_to_do(hub, tmp_path, monkeypatch):
    del hub.files[NAMES["test"][0]]
    with pytest.raises(SettingsError, match=r"the hub has no file main/test-.*It has: README.md, main/train"):
        command(pins.pin, hub)
    hub.gated = True
    with pytest.raises(SettingsError, match=r"is gated: accept its license at https://huggingface.co/datasets/openai"):
        command(pins.pin, hub)
    hub.gated, hub.revision = False, "v2"
    with pytest.raises(SettingsError, match="no such branch, tag or commit"):
        command(pins.pin, hub)
    hub.repository = "some-body/else"
    with pytest.raises(SettingsError, match="has no such dataset"):
        command(pins.pin, hub)
    hub.address = "http://127.0.0.1:9"
    with pytest.raises(SettingsError, match=r"http://127.0.0.1:9 does not answer: "):
        command(pins.pin, hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SettingsError, match="HF_HUB_OFFLINE is set"):
        command(pins.pin, hub)


def test_prefetch_before_pin_says_so(hub):
    with pytest.raises(SettingsError, match=r"is not pinned.*python -m pipeline pin"):
        command(pins.prefetch, hub)


def test_a_damaged_lock_is_named(hub, tmp_path):
    (tmp_path / "pins.json").write_text("{")
    with pytest.raises(SettingsError, match=r"pins.json: is no lock"):
        planned(tmp_path)


def test_local_data_needs_no_lock(hub, tmp_path):
    request = asked({"overrides": OVERRIDES.replace("data_root=null", f"data_root={tmp_path}")})
    with checks(tmp_path / "memory") as checked:
        grid = expand(request, checked)
    assert not checked.repositories
    assert grid.tasks["gsm8k"].node["data"]["root"] == str(tmp_path)
