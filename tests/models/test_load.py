"""A loaded base computes what transformers computes on the same weights, and damage is named."""

import shutil

import pytest
import torch
from transformers import ViTConfig, ViTModel

from pipeline.core.records import RecordError
from pipeline.core.settings import SettingsError
from pipeline.core.site import LINEAR_ROLES
from pipeline.models import sites
from pipeline.models.load import load_base

IDS = torch.tensor([[1, 5, 9, 20, 3, 7]])


@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("qwen2", False)])
def test_an_unquantized_base_is_the_model_bit_for_bit(prepared, kind, tied):
    model, manifest, base = prepared(kind, tied)
    loaded = load_base(manifest, base, device="cpu", dtype="fp32")
    assert torch.equal(loaded.model(IDS).logits, model(IDS).logits)
    assert loaded.parameters() == sum(p.numel() for p in model.parameters())
    assert not any(p.requires_grad for p in loaded.model.parameters())


@pytest.mark.parametrize("format_", ["nf4", "nf4-double"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_quantized_base_is_the_model_with_dequantized_weights(prepared, kind, format_):
    model, manifest, base = prepared(kind, True, format_)
    loaded = load_base(manifest, base, device="cpu", dtype="fp32")
    plain = load_base(manifest, prepared(kind, True)[2], device="cpu", dtype="fp32")
    for site, place in loaded.places.items():
        if site.role in LINEAR_ROLES:
            weight = place.frozen.dense_weight()
            original = model.get_submodule(site.name).weight.detach()
            assert 0.05 < float((weight - original).norm() / original.norm()) < 0.12
            quantized = plain.frozen()[next(one for one in plain.places if one.name == site.name)].quantized
            quantized.tensors["weight"].copy_(weight)
    assert torch.equal(loaded.model(IDS).logits, plain.model(IDS).logits)


def test_every_linear_of_a_block_is_a_site_with_its_role(prepared):
    _, manifest, base = prepared("qwen2")
    found = [site for site in load_base(manifest, base, device="cpu", dtype="fp32").places if site.layer == 1]
    roles = [site.role for site in found]
    assert sorted(roles) == sorted([*LINEAR_ROLES, "norm", "norm"])
    shapes = {site.role: (site.in_features, site.out_features, site.bias) for site in found}
    assert shapes["q"] == (64, 64, True)
    assert shapes["k"] == shapes["v"] == (64, 32, True)
    assert shapes["down"] == (128, 64, False)


def test_an_unknown_architecture_is_refused_by_name():
    model = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    with pytest.raises(SettingsError, match="architecture 'vit' is not known; allowed: bert, falcon, gpt2, llama"):
        sites.find(model)


def test_a_linear_layer_without_a_role_is_refused_by_name(prepared):
    model = prepared()[0]
    model.extra = torch.nn.Linear(2, 2)
    try:
        with pytest.raises(SettingsError, match="linear layer 'extra'"):
            sites.find(model)
    finally:
        del model.extra


@pytest.mark.parametrize("name", ["model/model.safetensors", "model/tokenizer.json", "model/config.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_file_is_named(prepared, tmp_path, name, damage):
    _, manifest, base = prepared()
    shutil.copytree(manifest.parent, tmp_path / "copy")
    path = tmp_path / "copy" / name
    data = path.read_bytes()
    path.unlink()
    if damage != "remove":
        path.write_bytes(data[:-7] if damage == "truncate" else data[:20] + bytes([data[20] ^ 4]) + data[21:])
    with pytest.raises(RecordError, match=path.name):
        load_base(tmp_path / "copy" / "manifest.json", base, device="cpu", dtype="fp32")
