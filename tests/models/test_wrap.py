"""`pipeline.adapt`: the page of the documentation as it stands, and what it promises for other models and methods."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, ViTConfig, ViTModel

import pipeline
from pipeline.adapters.adamix import AdaMix
from pipeline.adapters.bitfit import BitFit
from pipeline.adapters.bottleneck import Pfeiffer
from pipeline.adapters.dylora import DyLoRA
from pipeline.adapters.lora import LoRA
from pipeline.adapters.oft import OFT
from pipeline.core.settings import SettingsError
from pipeline.optimizers.adamw import AdamW
from pipeline.quantization.nf4 import NF4
from pipeline.sweeps.closure import modules
from tests.models.conftest import KINDS

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
ADAMW = AdamW(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
IDS = torch.tensor([[1, 5, 9, 20, 3, 7]])
METHODS = {
    "lora": LoRA(rank=2, alpha=4.0),
    "oft": OFT(block_size=8, terms=5, shared=False),
    "bitfit": BitFit(add_missing=True),
    "dylora": DyLoRA(max_rank=4, ranks=(1, 4), drawn="all", decay=1.0, alpha=None, frozen_rows=False),
}


def causal(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind.partition("-")[0], initializer_range=0.1, **KINDS[kind])
    return AutoModelForCausalLM.from_config(config).eval()


def test_the_page_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    exec(compile("\n".join(blocks), str(PAGE), "exec"), {})  # noqa: S102  (our own page)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "falcon"])
def test_what_was_trained_is_merged_whatever_the_model_and_the_method(kind, method):
    model = causal(kind)
    before = model(IDS).logits.detach()
    adapted = pipeline.adapt(model, METHODS[method])
    assert torch.equal(model(IDS).logits, before)
    optimizer = adapted.optimizer(ADAMW)
    adapted.train()
    losses = [adapted.step(step, optimizer, 1e-2, lambda: model(IDS, labels=IDS).loss) for step in range(8)]
    assert losses[-1] < losses[0]
    adapted.eval()
    trained = model(IDS).logits.detach()
    names = {name for name, _ in causal(kind).named_parameters()}
    merged = adapted.merge()
    assert {name for name, _ in merged.named_parameters()} >= names
    torch.testing.assert_close(merged(IDS).logits, trained, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(trained, before, atol=1e-3)


def test_a_model_of_no_known_architecture_is_adapted_by_name():
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32))
    with pytest.raises(SettingsError, match="architecture 'vit' is not known"):
        pipeline.adapt(model, LoRA(rank=2, alpha=2.0))
    adapted = pipeline.adapt(
        model, LoRA(rank=2, alpha=2.0), targets=["fc1"], quantization=NF4(block_size=64, double=False)
    )
    assert [(site.role, site.layer) for site in adapted.method.placed] == [("linear", 0), ("linear", 1)]
    plain = pipeline.adapt(nn.Sequential(nn.Linear(4, 4)), LoRA(rank=1, alpha=1.0), targets=["0"])
    assert plain.model(torch.ones(2, 4)).shape == (2, 4)


@pytest.mark.parametrize("kind", ["gpt2", "falcon"])
def test_one_slice_of_a_fused_projection(kind):
    model = causal(kind)
    name = next(name for name, _ in model.named_modules() if name.endswith(("c_attn", "query_key_value")))
    adapted = pipeline.adapt(model, LoRA(rank=2, alpha=4.0), targets=[f"{name}:v"])
    (site,) = adapted.method.placed
    weight = model.get_submodule(name).frozen.dense_weight().clone()
    with torch.no_grad():
        adapted.method.placed[site].B_OR.normal_()
    merged = adapted.merge().get_submodule(name)
    moved = ((merged.weight.T if site.transposed else merged.weight) != weight).any(1).nonzero().flatten()
    assert moved.tolist() == list(site.rows)


def test_refusals_leave_the_model_as_it_was():
    model = causal("llama")
    kinds = [type(module) for module in model.modules()]
    wrong = {
        r"no linear layer 'q_prj'. Did you mean": lambda: pipeline.adapt(model, METHODS["lora"], targets=["q_prj"]),
        "does not divide": lambda: pipeline.adapt(model, OFT(block_size=7, terms=5, shared=False)),
        r"lm_head shares its weight": lambda: pipeline.adapt(causal("gpt2"), METHODS["lora"], targets=["lm_head"]),
    }
    for message, call in wrong.items():
        with pytest.raises(SettingsError, match=message):
            call()
    assert [type(module) for module in model.modules()] == kinds
    adapted = pipeline.adapt(
        model, Pfeiffer(width=2, sigma=0.01, activation="relu", norms=False), targets=["down_proj"]
    )
    with pytest.raises(SettingsError, match="Pfeiffer cannot be merged: a nonlinearity"):
        adapted.merge()


def test_a_method_that_reads_the_batch_says_so():
    model = causal("llama")
    adapted = pipeline.adapt(model, AdaMix(rank=2, alpha=None, experts=2, shared_up=True)).train()
    with pytest.raises(SettingsError, match="makes its loss from the batch itself"):
        adapted.step(0, adapted.optimizer(ADAMW), 1e-3, lambda: model(IDS, labels=IDS).loss)


def test_the_package_itself_loads_nothing_and_a_code_digest_does_not_follow_its_door():
    assert {module.name for module in modules(["pipeline"])} == {"pipeline", "pipeline.core", "pipeline.core.settings"}


def test_the_package_has_no_other_attribute():
    with pytest.raises(AttributeError, match="no attribute 'adopt'"):
        pipeline.adopt  # noqa: B018
