"""A small base of every architecture can be pre-trained, quantized, adapted and trained."""

import time

import pytest

from pipeline.adapters.lora import LoRA
from pipeline.core.settings import SettingsError, build
from pipeline.models.load import load_base
from pipeline.models.states import STATES, Label, entered
from pipeline.stages import prepare_model, quantize_base
from pipeline.sweeps.compose import composed
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.finetune import Plan, finetune
from pipeline.training.settings import Training
from tests.models.conftest import FORMATS, HARDWARE

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
SIZES = {
    "llama": SMALL | {"intermediate_size": 64},
    "qwen2": SMALL | {"intermediate_size": 64, "num_key_value_heads": 1, "tie_word_embeddings": False},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "falcon": SMALL | {"new_decoder_architecture": True, "num_kv_heads": 1, "alibi": False, "bias": False},
}


def node(kind):
    demo = composed((("model", "demo"),))["model"]
    short = {
        "steps": 6,
        "batch_size": 4,
        "micro_batch_size": 4,
        "schedule": demo["training"]["schedule"] | {"warmup_steps": 1},
    }
    packed = {"every": 3, "rows": 2, "length": 64}
    return demo | {
        "architecture": kind, "config": SIZES[kind], "training": demo["training"] | short, "packed": packed,
        "corpus": demo["corpus"] | {"rows": 60},
    }  # fmt: skip


@pytest.mark.parametrize("kind", SIZES)
def test_built_quantized_fine_tuned_and_merged(tmp_path, kind):
    manifest, base = tmp_path / "model" / "manifest.json", tmp_path / "base" / "manifest.json"
    began = {"started": time.time()}
    prepare_model.run({"model": node(kind), "hardware": HARDWARE}, {}, {"record": manifest}, dict(began))
    settings = {"quantization": FORMATS["nf4-double"], "hardware": HARDWARE}
    quantize_base.run(settings, {"model": manifest}, {"record": base}, dict(began))
    loaded = load_base(manifest, base, device="cpu", dtype="fp32")
    schedule = {"shape": "constant", "warmup_steps": 0, "final_fraction": 1.0}
    training = Training(
        task="x", steps=12, batch_size=4, micro_batch_size=2, learning_rate=1e-2, schedule=schedule, max_grad_norm=1.0,
        max_length=64, checkpoint_every=100,
    )  # fmt: skip
    pairs = [(str(n), f"Question: {n} + 1?\nAnswer:", (f" {n + 1}",)) for n in range(8)]
    optimizer = build(node(kind)["optimizer"], "optimizer")
    plan = Plan(LoRA(rank=4, alpha=8.0), optimizer, training, seed=0)
    both = {"train": pairs, "dev": pairs[:2]}
    trained = finetune(loaded, plan, both, Checkpoints(tmp_path / "checkpoints", {}), lambda _: None)
    curve = [point["loss"] for point in trained.result["curve"]]
    assert curve[-1] < curve[0] - 0.05
    for state in STATES:
        with entered(loaded, trained.method, Label(state)):
            pass
    assert build(node(kind), "model").shape()["model_type"] == kind


def test_no_other_architecture_is_built():
    with pytest.raises(
        SettingsError, match="architecture: Input should be 'llama', 'qwen2', 'gpt2' or 'falcon', got 'vit'"
    ):
        build(node("llama") | {"architecture": "vit"}, "model")
