"""BitFit, norm tuning, last layers and full fine-tuning: what trains, what merges, and what is refused."""

import pytest
import torch
from torch import nn

from pipeline.adapters.bitfit import BitFit
from pipeline.adapters.full import Full, LastLayers
from pipeline.adapters.norm_tuning import NormTuning
from pipeline.core.settings import SettingsError
from pipeline.core.site import LINEAR_ROLES
from pipeline.optimizers.adamw import AdamW
from pipeline.quantization.nf4 import NF4
from pipeline.quantization.none import Dense
from tests.adapters import tiny

NF4_64 = NF4(block_size=64, double=False)


def test_bitfit_is_a_layer_with_another_bias_on_any_format():
    base = tiny.base(NF4_64)
    method = tiny.place(BitFit(add_missing=False, roles=LINEAR_ROLES), base)
    tiny.shake(method)
    assert {site.role for site in method.placed} == {"q", "k", "v", "o"}  # the MLP of the tiny model has no biases
    for site, layer in method.placed.items():
        frozen = base.places[site].frozen
        x = torch.randn(3, site.in_features)
        expected = nn.functional.linear(x, frozen.dense_weight(), frozen.bias + layer.bias_O)
        torch.testing.assert_close(layer(x, frozen), expected)
        weight_OI, _ = layer.update().apply(frozen.dense_weight(), frozen.bias)
        assert torch.equal(weight_OI, frozen.dense_weight()), "merged and quantized again, BitFit loses nothing"


def test_bitfit_gives_biases_to_layers_without_one_only_if_asked():
    base = tiny.base(Dense())
    given = tiny.place(BitFit(add_missing=True, roles=LINEAR_ROLES), base)
    assert {site.role for site in given.placed} == set(LINEAR_ROLES)
    assert given.insight() == {"added_biases": 2 * 3}
    with pytest.raises(SettingsError, match=r"adapter\.add_missing: none of the 2 layers .* has a bias"):
        tiny.place(BitFit(add_missing=False, roles=("down",)), base)


@pytest.mark.parametrize("settings", [Full(roles=("q",)), LastLayers(roles=("q",), last=1)])
def test_weights_are_not_trained_on_a_quantized_base(settings):
    with pytest.raises(SettingsError, match="needs a base that is not quantized, got nf4: a step is far smaller"):
        tiny.place(settings, tiny.base(NF4_64))
    tiny.place(settings, tiny.base(Dense()))


def test_full_fine_tuning_is_training_the_model_itself():
    """Every weight and bias after three steps of AdamW with decay, against torch's own on an ordinary model."""
    base = tiny.base(Dense())
    method = tiny.place(Full(roles=LINEAR_ROLES), base)
    settings = AdamW(betas=(0.9, 0.999), eps=1e-3, weight_decay=0.5)
    tiny.train(base, method, settings.build(method.groups()), range(3))
    plain = tiny.model()
    modules = {site.name: plain.get_submodule(site.name) for site in method.placed}
    weights = [module.weight.requires_grad_() for module in modules.values()]
    biases = [module.bias.requires_grad_() for module in modules.values() if module.bias is not None]
    groups = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
    moves = torch.optim.AdamW(groups, lr=5e-3, betas=(0.9, 0.999), eps=1e-3, weight_decay=0.5)
    for step in range(3):
        (batch,) = tiny.parts(1, step)
        logits = plain(input_ids=batch.ids_BT).logits
        nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels_BT.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(weights + biases, 1.0)
        moves.step()
        moves.zero_grad()
    for site, layer in method.placed.items():
        torch.testing.assert_close(layer.weight_OI, modules[site.name].weight, rtol=1e-5, atol=1e-6)
        if layer.bias_O is not None:
            torch.testing.assert_close(layer.bias_O, modules[site.name].bias, rtol=1e-5, atol=1e-6)


def test_last_layers_are_counted_from_the_end():
    base = tiny.base(Dense())
    assert {site.layer for site in tiny.place(LastLayers(roles=LINEAR_ROLES, last=1), base).placed} == {1}
    assert {site.layer for site in tiny.place(LastLayers(roles=LINEAR_ROLES, last=9), base).placed} == {0, 1}


def test_norm_tuning_moves_the_scales_of_the_norms():
    base = tiny.base(NF4_64)
    method = tiny.place(NormTuning(roles=("norm",)), base)
    tiny.shake(method)
    got = tiny.logits(base)
    assert {(site.role, site.layer) for site in method.placed} == {("norm", 0), ("norm", 1)}
    base.detach()
    with torch.no_grad():
        for site, layer in method.placed.items():
            base.places[site].frozen.weight += layer.moved["weight"]
    assert torch.equal(tiny.logits(base), got)
