"""What is bound to fail is refused when planning, with key, got, allowed, do; and a budget chooses sizes."""

import json
import os
import subprocess
import sys

import pytest

from pipeline.core.settings import SettingsError
from tests.house.tree import ROOT

SMALL = "sweep.adapter=[lora] sweep.rank=[2] sweep.seed=[0] sweep.quantization=[none] "
REFUSED = {
    "sweep.adapter=[oft] sweep.block_size=[7]": "adapter.block_size: 7 does not divide the 128 inputs of model.layers",
    "sweep.adapter=[adalora] adapter.warm=0.9 adapter.cool=0.5": "adapter.warm, adapter.cool: 180 warm and 100 cool",
    "sweep.adapter=[dylora] sweep.optimizer=[adamw8bit]": "freezes single elements in some steps, which 8-bit states",
    "sweep.adapter=[full] sweep.quantization=[nf4]": "adapter: Full needs a base that is not quantized, got nf4",
    "sweep.adapter=[bitfit] adapter.add_missing=false": "adapter.add_missing: none of the 14 layers",
    "training.schedule.warmup_steps=300": "schedule.warmup_steps must be at most steps (200), got 300",
    "training.max_length=512": "training.max_length: got 512, allowed up to 256: demo reads at most 256 tokens.",
    "task.ppl-demo.generation.context=512": "task.ppl-demo.generation.context: got 512, allowed up to 256",
    "task.gsm8k-demo.generation.max_new_tokens=256": "max_new_tokens: got 256, allowed up to 255: demo reads at most",
    "hardware.device=cuda": "hardware.device: got 'cuda' with hardware.gpus=0, and this machine has no",
    "report.state=merged-dequantized": "report.state: got 'merged-dequantized', which is not evaluated. Allowed:",
    "sweep.model=[local] model.path=no/where": "model.path: must be a folder with a config.json, got 'no/where'",
    "sweep.budget=[100]": "sweep.budget: got 100 trainable parameters, and no rank of LoRA has so few on this model",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_run_is_refused_by_the_plan(plan, override):
    given = " ".join(one for one in SMALL.split() if one.partition("=")[0] not in override)
    with pytest.raises(SettingsError) as caught:
        plan(f"{given} {override}")
    assert REFUSED[override] in str(caught.value)
    assert not plan.results.exists()


def test_a_value_of_your_own_against_the_budget_is_refused(plan):
    with pytest.raises(SettingsError, match=r"adapter\.rank: got a value of your own, but sweep\.budget chooses it"):
        plan(f"{SMALL.replace('sweep.rank=[2]', 'sweep.rank=[]')} sweep.budget=[1e4] adapter.rank=2")


def test_entries_that_do_nothing_are_said(plan):
    made = plan(SMALL + "sweep.exclude=[{adapter:oft},{seed:0,rank:4}] sweep.include=[{adapter:lora,rank:2}]")
    assert [one for one in made.grid.remarks if one.startswith("sweep.")] == [
        "sweep.include: {'adapter': 'lora', 'rank': 2} adds no point",
        "sweep.exclude: {'adapter': 'oft'} fits no point",
        "sweep.exclude: {'seed': 0, 'rank': 4} fits no point",
    ]


def test_a_budget_gives_every_method_the_largest_size_that_fits(plan):
    made = plan("sweep.adapter=[lora,dylora,oft,ia3] sweep.seed=[0] sweep.quantization=[none] sweep.budget=[2e4,4e4]")
    sizes = {(run.point.choices["adapter"], *run.point.size) for run in made.runs if run.point.size}
    # On q and v: a rank costs 2 * 2 * (128 + 128), a block of c costs c (c - 1) / 2 of 128 / c.
    assert sizes == {
        ("lora", "rank", 19), ("lora", "rank", 39), ("dylora", "max_rank", 19), ("dylora", "max_rank", 39),
        ("oft", "block_size", 64), ("oft", "block_size", 128),
    }  # fmt: skip
    (dylora,) = [run for run in made.runs if run.point.size == ["max_rank", 19]]
    assert dylora.point.settings["adapter"]["ranks"] == [1, 2, 4, 8, 19]
    assert "budget 20,000: rank 19, 19,456 trainable parameters (lora on demo)" in made.grid.remarks
    assert "sweep.budget decides the sizes; not used: sweep.rank, sweep.block_size" in made.grid.remarks


def test_a_budget_needs_no_weights_whatever_the_size_of_the_model(plan):
    made = plan(
        "sweep.model=[llama-3.1-70b] model.source=random sweep.adapter=[oft] sweep.seed=[0] sweep.quantization=[nf4] "
        "sweep.budget=[1e7] sweep.task=[gsm8k-demo]"
    )
    assert made.runs[0].point.name == "llama-3.1-70b-random-nf4-oft-b16-s0"


def test_a_preset_that_is_not_pinned_is_refused_with_the_command(plan):
    with pytest.raises(SettingsError, match=r"not pinned.*python -m pipeline pin"):
        plan(f"{SMALL} sweep.model=[qwen2.5-0.5b]")


def test_an_answer_is_remembered_and_a_second_plan_loads_nothing_heavy(plan, tmp_path):
    probe = (
        "import sys; from pathlib import Path; from pipeline.sweeps import plan;"
        f"plan.load({{'overrides': {SMALL!r}}}, Path({str(tmp_path)!r}), Path({str(plan.memory)!r}));"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    plan(SMALL)
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_local_model_counts_by_its_files(plan, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1,
              "intermediate_size": 64, "vocab_size": 300, "max_position_embeddings": 256}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "model.safetensors"
    weights.write_bytes(b"one")
    override = f"{SMALL} sweep.model=[local] model.path={folder} model.name=own"
    first, again = plan(override), plan(override)
    assert first.scores == again.scores
    job = first.bases[0].job.needs["model"]
    assert set(job.settings["files"]) == {str(folder / "config.json"), str(weights)}
    stat = weights.stat()
    replaced = folder / "new"
    replaced.write_bytes(b"two")  # the same size and time: only the inode tells
    os.utime(replaced, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    replaced.replace(weights)
    changed = plan(override)
    assert changed.bases[0].job.needs["model"].record != job.record
