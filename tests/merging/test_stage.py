"""The stage over real files: what it writes, what it passes on, what it refuses."""

import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from pipeline.adapters import files
from pipeline.core import records
from pipeline.core.settings import build
from pipeline.models.adapt import adapt
from pipeline.models.load import load_base
from pipeline.stages import merge

LORA = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[2] / "conf" / "adapter" / "lora.yaml"))
MERGED = ["merged-original", "merged-dequantized", "requantized-original", "requantized-dequantized"]


@pytest.fixture
def inputs(prepared, tmp_path):
    """A base, and the files of a fine-tune of three steps with an adapter that is not zero."""
    _, model, manifest = prepared("llama", True, "nf4-double")
    base = load_base(model, manifest, device="cpu", dtype="fp32")
    method = adapt(base, build(LORA), 7, total_steps=3)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    files.save(method, tmp_path / "adapter", base_name="llama")
    hashes = {path.name: records.file_sha256(path) for path in (tmp_path / "adapter").iterdir()}
    train(tmp_path, "ok", {"adapter_files": hashes})
    return {"model": model, "base": manifest, "train": tmp_path / "train.json"}


def train(folder, status, result):
    settings = {"seed": 7, "training": {"steps": 3}}
    records.write(folder / "train.json", stage="finetune", settings=settings, result=result, about={}, status=status)


def run(inputs, path, states=MERGED):
    settings = {"adapter": LORA, "states": list(states), "hardware": {"device": "cpu", "threads": 1}}
    merge.run(settings, inputs, {"record": path}, {"started": time.time(), "code": "code:0", "upstream": "upstream:0"})
    return records.read(path, "merge")


def test_the_report_repeats_and_says_who_made_it(inputs, tmp_path, capsys):
    first, second = (run(inputs, tmp_path / f"{name}.json") for name in ("a", "b"))
    assert first.result == second.result
    assert list(first.result["states"]) == sorted(MERGED)
    assert first.status == "ok"
    assert first.about["code"] == "code:0"
    assert "merged-original" in capsys.readouterr().out


def test_another_adapter_has_another_digest(inputs, tmp_path):
    before = run(inputs, tmp_path / "a.json").result["states"]
    weights = tmp_path / "adapter" / files.WEIGHTS
    base = load_base(inputs["model"], inputs["base"], device="cpu", dtype="fp32")
    method = adapt(base, build(LORA), 7, total_steps=3)
    files.load(method, tmp_path / "adapter")
    with torch.no_grad():
        next(method.parameters()).mul_(1.5)
    files.save(method, tmp_path / "adapter", base_name="llama")
    train(tmp_path, "ok", {"adapter_files": {weights.name: records.file_sha256(weights)}})
    after = run(inputs, tmp_path / "b.json").result["states"]
    assert all(after[state]["digest"] != before[state]["digest"] for state in MERGED)


@pytest.mark.parametrize("status", ["diverged", "oom"])
def test_a_failed_fine_tune_is_passed_on(inputs, tmp_path, status):
    train(tmp_path, status, {"reason": "loss nan at step 3"})
    found = run(inputs, tmp_path / "merge.json")
    assert (found.status, found.result) == (status, {"reason": "loss nan at step 3"})


def test_a_damaged_adapter_is_named(inputs, tmp_path):
    path = tmp_path / "adapter" / files.WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(records.RecordError, match=rf"{path.name}: the file is damaged"):
        run(inputs, tmp_path / "merge.json")
    assert not (tmp_path / "merge.json").exists()
