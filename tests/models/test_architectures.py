"""Every architecture of the table: all its matrices found, slices that are slices, merges that are what was trained."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSpeechSeq2Seq
from transformers.pytorch_utils import Conv1D

from pipeline.adapters import files
from pipeline.adapters.ia3 import IA3
from pipeline.adapters.lora import LoRA
from pipeline.adapters.oft import OFT
from pipeline.core import records
from pipeline.core.settings import SettingsError
from pipeline.merging.report import report
from pipeline.models import sites
from pipeline.models.adapt import adapt
from pipeline.models.load import load_base
from pipeline.models.places import FusedPlace
from pipeline.models.states import STATES, Label, entered
from pipeline.models.trained import Adapters
from tests.models.conftest import KINDS

IDS = torch.tensor([[1, 5, 9, 20, 3, 7]])
FUSED = ("gpt2", "falcon", "falcon-7b", "falcon-rw")
SLICES = {
    "lora": LoRA(rank=4, alpha=8.0, roles=("q", "v", "up")),
    "oft": OFT(block_size=8, terms=5, shared=False, roles=("q", "k", "v", "down")),
    "ia3": IA3(roles=("k", "v", "down")),
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def loaded(prepared, kind, format_="none"):
    model, manifest, base = prepared(kind, True, format_)
    return model, load_base(manifest, base, device="cpu", dtype="fp32")


def shaken(base, adapter):
    method = adapt(base, adapter, seed=0, total_steps=1)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    method.refresh()
    return method.eval()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_base_is_the_model_and_every_matrix_is_a_site(prepared, kind):
    model, base = loaded(prepared, kind)
    torch.testing.assert_close(base.model(IDS).logits, model(IDS).logits)
    linear = {name for name, one in model.named_modules() if isinstance(one, nn.Linear | Conv1D)}
    assert {site.name for site in base.places if site.linear and site.rows is None} == linear - {"lm_head"}
    for site in base.frozen():
        if site.rows is None:
            weight = model.get_submodule(site.name).weight
            assert torch.equal(base.frozen()[site].dense_weight(), weight.T if site.transposed else weight)
            assert torch.equal(base.weights.linear(site), weight.T if site.transposed else weight)


@pytest.mark.parametrize("kind", FUSED)
def test_slices_are_the_heads_that_the_model_reads(prepared, kind):
    """A weight of another head must not move what a slice feeds: cut all of q, k or v and compare with the model's."""
    _, base = loaded(prepared, kind)
    for name in {site.module for site in base.places if site.rows is not None}:
        parts = {site.role: site.rows for site in base.places if site.rows is not None and site.module == name}
        assert list(parts) == ["q", "k", "v"]
        whole = base.model.get_submodule(name)
        assert sorted(row for rows in parts.values() for row in rows) == list(range(whole.frozen.out_features))
        marks = torch.zeros(1, 1, whole.frozen.out_features)
        for mark, rows in enumerate(parts.values()):
            marks[..., list(rows)] = mark
        seen = heads(base.model, name, marks)
        assert [sorted(set(one.flatten().tolist())) for one in seen] == [[0.0], [1.0], [2.0]]


def heads(model, name, marks):
    """Return the queries, keys and values that the model's own code cuts out of a fused output."""
    if model.config.model_type == "gpt2":
        return marks.split(model.config.n_embd, -1)
    return model.get_submodule(name.rpartition(".")[0])._split_heads(marks)


@pytest.mark.parametrize("adapter", SLICES)
@pytest.mark.parametrize("kind", FUSED)
@torch.no_grad()
def test_slices_merge_into_what_was_trained(prepared, kind, adapter):
    _, base = loaded(prepared, kind, "nf4")
    method = shaken(base, SLICES[adapter])
    found = {}
    for state in STATES:
        with entered(base, method, Label(state)) as digest:
            found[state] = base.model(IDS).logits, digest
    torch.testing.assert_close(found["merged-dequantized"][0], found["trained"][0], **CLOSE)
    assert (found["trained"][0] - found["base"][0]).abs().max() > 1e-2
    assert len({digest for _, digest in found.values()}) == 5
    assert torch.equal(base.model(IDS).logits, found["base"][0])


@pytest.mark.parametrize("kind", FUSED)
@torch.no_grad()
def test_codes_of_a_fused_projection_stay_where_the_scales_of_its_rows_can_take_those_of_slices(prepared, kind):
    _, base = loaded(prepared, kind, "nf4")
    method = shaken(base, IA3(roles=("k", "v")))
    trained, wholes = base.model(IDS).logits, {base.whole(site) for site in method.placed}
    packed = {site: base.frozen()[site].quantized.tensors["packed"] for site in wholes}
    said = report(base, method, ["requantized-dequantized"])["states"]["requantized-dequantized"]
    assert (said["exact"], said["requantized"]) == (1, {})
    with entered(base, method, Label("requantized-dequantized")):
        assert all(torch.equal(base.frozen()[site].quantized.tensors["packed"], packed[site]) for site in wholes)
        torch.testing.assert_close(base.model(IDS).logits, trained, **CLOSE)
    assert (trained - base.model(IDS).logits).abs().max() > 1e-3
    turned = report(base, shaken(base, SLICES["oft"]), ["requantized-dequantized"])["states"]
    assert any("in its own way" in why for why in turned["requantized-dequantized"]["requantized"])


@pytest.mark.parametrize("kind", FUSED)
def test_gradients_reach_the_adapters_of_slices(prepared, kind):
    _, base = loaded(prepared, kind)
    method = shaken(base, SLICES["lora"])
    base.model(IDS).logits.square().sum().backward()
    got = [parameter.grad.clone() for parameter in method.parameters()]
    for one, parameter in zip(got, method.parameters(), strict=True):
        index = tuple(0 for _ in parameter.shape)
        with torch.no_grad():
            values = []
            for step in (2e-3, -2e-3):
                parameter[index] += step
                values.append(float(base.model(IDS).logits.double().square().sum()))
                parameter[index] -= step
        assert float(one[index]) == pytest.approx((values[0] - values[1]) / 4e-3, rel=0.05, abs=0.05)


def test_a_fused_projection_is_adapted_as_a_whole_or_by_slices(prepared):
    _, base = loaded(prepared, "falcon")
    whole = adapt(base, LoRA(rank=4, alpha=8.0, roles=("qkv",)), seed=0, total_steps=1)
    assert {(site.role, site.rows) for site in whole.placed} == {("qkv", None)}
    assert isinstance(base.places[next(iter(whole.placed))], FusedPlace)
    with pytest.raises(SettingsError, match="got qkv and slices of it"):
        adapt(base, LoRA(rank=4, alpha=8.0, roles=("qkv", "q")), seed=0, total_steps=1)


@pytest.mark.parametrize("kind", sorted(sites.TABLE))
def test_every_linear_layer_of_a_known_architecture_is_found(kind):
    names = {"gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2}}.get(kind, SMALL)
    make = AutoModelForMaskedLM if kind == "bert" else AutoModelForCausalLM
    with torch.device("meta"):
        model = make.from_config(AutoConfig.for_model(kind, **names))
    found = {site.name for site in sites.find(model) if site.linear and site.rows is None}
    linear = {name for name, one in model.named_modules() if isinstance(one, nn.Linear | Conv1D)}
    left = {name.partition(".")[0] for name in linear - found}
    assert found < linear
    assert left == ({"cls"} if kind == "bert" else {"lm_head"})


@pytest.mark.parametrize(
    ("kind", "make"), [("vit", AutoModel), ("whisper", AutoModelForSpeechSeq2Seq), ("mamba", AutoModelForCausalLM)]
)
def test_an_architecture_without_a_row_is_refused_by_name(kind, make):
    with torch.device("meta"):
        model = make.from_config(AutoConfig.for_model(kind))
    with pytest.raises(SettingsError, match=f"architecture '{kind}' is not known; allowed: bert, falcon, gpt2"):
        sites.find(model)


@pytest.mark.parametrize("extra", [nn.Linear(2, 2), nn.Conv1d(2, 2, 3), nn.Bilinear(2, 2, 2)])
def test_a_matrix_that_no_pattern_names_is_refused_by_name(extra):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL))
    model.model.layers[1].mlp.experts = extra
    with pytest.raises(SettingsError, match=r"'model\.layers\.1\.mlp\.experts' of architecture 'llama' has no role"):
        sites.find(model)


WHOLE = {
    "lora": LoRA(rank=4, alpha=8.0, roles=("qkv", "o", "up", "down")),
    "ia3": IA3(roles=("qkv", "down")),
    "oft": OFT(block_size=8, terms=5, shared=False, roles=("qkv", "o")),
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("adapter", WHOLE)
@pytest.mark.parametrize("kind", ["gpt2", "falcon"])
@torch.no_grad()
def test_peft_computes_the_same_or_our_file_says_why_it_cannot(prepared, tmp_path, kind, adapter):
    model, base = loaded(prepared, kind)
    method = shaken(base, WHOLE[adapter])
    files.save(method, tmp_path / "adapter", base_name=kind)
    if (kind, adapter) == ("gpt2", "oft"):
        assert not (tmp_path / "adapter" / files.CONFIG).exists()
        assert "no layer for Conv1D" in records.read(tmp_path / "adapter" / files.RECORD).result["not_in_peft"]
        return
    peft = pytest.importorskip("peft")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "adapter").eval()
    expected = base.model(IDS).logits
    torch.testing.assert_close(theirs(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert (expected - model(IDS).logits).abs().max() > 1e-2
    theirs.peft_config["default"].base_model_name_or_path = None
    theirs.save_pretrained(tmp_path / "theirs")
    adapters = Adapters(base)
    adapters.load("back", tmp_path / "theirs")
    adapters.use("back")
    torch.testing.assert_close(base.model(IDS).logits, expected)
