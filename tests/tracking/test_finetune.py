"""The stage finetune, tracked: killed and resumed it is one run, and its record says what became of it."""

import json
import time

import pytest

from pipeline.core import records
from pipeline.stages import finetune
from pipeline.tasks import rows
from pipeline.tracking import journal
from pipeline.training.meter import Meter
from tests.models.conftest import HARDWARE, prepared  # noqa: F401  (prepared is a fixture)
from tests.tracking import offline

STEPS = 8
SETTINGS = {
    "adapter": {"_target_": "pipeline.adapters.lora.LoRA", "rank": 2, "alpha": None, "roles": ["q", "v"]},
    "quantization": {"_target_": "pipeline.quantization.none.Dense"},
    "optimizer": {
        "_target_": "pipeline.optimizers.paged.PagedAdamW8bit", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0,
        "block_size": 256, "min_8bit_size": 64, "budget_bytes": 4096,
    },
    "training": {
        "task": "own", "steps": STEPS, "batch_size": 2, "micro_batch_size": 2, "learning_rate": 1e-3, "max_length": 40,
        "schedule": {"shape": "constant", "warmup_steps": 0, "final_fraction": 1.0}, "max_grad_norm": 1.0,
        "checkpoint_every": 3,
    },
    "task": {
        "_target_": "pipeline.tasks.gsm8k.GSM8K", "name": "own", "scoring": [],
        "generation": {
            "_target_": "pipeline.tasks.generation.Greedy", "id": "own-v1", "split": "test", "limit": None,
            "batch_size": 2, "max_new_tokens": 5, "stop": [], "too_long": "refuse",
        },
    },
    "seed": 0,
    "hardware": HARDWARE,
}  # fmt: skip


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


@pytest.fixture
def run(tmp_path, prepared, monkeypatch):  # noqa: F811
    """Run the stage into a named folder; return its record."""
    _, model, base = prepared("llama", True, "none")
    found = [{"id": f"r{n}", "question": "abc"[: n % 3 + 1], "answer": "de"} for n in range(6)]
    splits = {}
    for split in ("train", "dev"):
        path = tmp_path / "data" / f"{split}.jsonl"
        splits[split] = {"file": path.name, "rows": len(found), "sha256": rows.write(path, found)}
    data = tmp_path / "data" / "manifest.json"
    records.write(data, stage="prepare_data", settings={}, result={"splits": splits}, about={})
    told = {"project": "p", "group": "g", "root": str(tmp_path / "results")}

    def stage(name, track=True, kill_after=None):
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv(journal.VARIABLE, json.dumps(told) if track else "")

        class Memory(Meter):
            def peak(self):
                if kill_after is not None and len(seen) > kill_after:
                    raise Killed
                seen.append(super().peak())
                return seen[-1]

        seen = []
        monkeypatch.setattr(finetune, "Meter", Memory)
        record = tmp_path / "results" / "runs" / name / "train.json"
        inputs, about = {"model": model, "base": base, "data": data}, {"started": time.time(), "code": "code:1"}
        finetune.run(SETTINGS, inputs, {"record": record}, about)
        return records.read(record, "finetune")

    return stage


@pytest.mark.slow
def test_a_killed_and_resumed_fine_tune_is_one_run_and_tracking_changes_nothing(run, tmp_path, capfd):
    plain = run("plain", track=False)
    assert "tracker" not in plain.about
    with pytest.raises(Killed):
        run("tracked", kill_after=4)
    resumed = run("tracked")
    assert resumed.about["resumed_at"] == 3
    assert resumed.result == plain.result
    one = offline.read(tmp_path / "results")["tracked"]
    assert (resumed.about["tracker"]["id"], resumed.about["tracker"]["offline"]) == (one.run["run_id"], "written")
    assert one.steps == list(range(STEPS + 1))
    curve = resumed.result["curve"]
    for key in ("loss", "learning_rate", "grad_norm"):
        assert [point[key] for point in one.history[:-1]] == pytest.approx([point[key] for point in curve], rel=1e-6)
    assert all(point["peak_memory_bytes"] > 1e6 for point in one.history[:-1])
    assert one.history[-1]["dev_loss"] == pytest.approx(resumed.result["dev_loss"], rel=1e-6)
    assert one.config["adapter"]["rank"] == 2
    assert one.config["code"] == "code:1"
    said = resumed.about["optimizer"]
    assert "nothing is paged" in said["paging"]
    assert said["state_bytes_on_host"] == said["page_bytes_to_device"] == 0
    assert "nothing is paged" in capfd.readouterr().err
