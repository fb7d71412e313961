"""QA-LoRA against the equations of its paper: sums over groups, and a merge that moves zero points and no code."""

import pytest
import torch

from pipeline.adapters.qa_lora import QALoRA, QALoRALayer
from pipeline.core.settings import SettingsError
from pipeline.quantization.int4 import Int4, Int4Affine
from pipeline.quantization.nf4 import NF4
from tests.adapters import tiny

GROUP = 16


@pytest.mark.parametrize("seed", range(3))
def test_the_layer_computes_the_paper_s_equation(seed):
    torch.manual_seed(seed)
    W, b, x = torch.randn(5, 8), torch.randn(5), torch.randn(3, 8)
    layer = QALoRALayer(torch.randn(2, 4), torch.randn(5, 2), scale=3.0, K=2)
    pooled = [[row[2 * g] + row[2 * g + 1] for g in range(4)] for row in x]
    expected = torch.stack(
        [W @ row + b + 3.0 * layer.B_OR @ (layer.A_RG @ torch.stack(sums)) for row, sums in zip(x, pooled, strict=True)]
    )
    torch.testing.assert_close(layer(x, tiny.Dense(W, b)), expected)


def adapted(format_, seed=0):
    base = tiny.base(format_)
    method = tiny.place(QALoRA(roles=("q", "v", "down"), rank=4, alpha=8.0, group_size=GROUP), base, seed)
    tiny.shake(method, seed, size=0.3)
    return base, method


def test_a_is_as_many_times_narrower_as_a_group_is_wide():
    _, method = adapted(Int4Affine(group_size=GROUP))
    for site, layer in method.placed.items():
        assert layer.A_RG.shape == (4, site.in_features // GROUP)
        assert layer.B_OR.shape == (site.out_features, 4)


@pytest.mark.parametrize("seed", range(3))
def test_what_ships_in_integers_computes_what_was_trained(seed):
    base, method = adapted(Int4Affine(group_size=GROUP), seed)
    base.attach(method.placed)
    trained = tiny.logits(base)
    base.detach()
    assert (trained - tiny.logits(base)).abs().max() > 0.1
    for site, update in method.updates().items():
        before = base.places[site].frozen
        layer, left, reasons = before.absorbing(update)
        assert left.empty()
        assert reasons == []
        assert torch.equal(layer.quantized.tensors["packed"], before.quantized.tensors["packed"])
        assert torch.equal(layer.quantized.tensors["scale"], before.quantized.tensors["scale"])
        base.places[site].frozen = layer
    difference = (tiny.logits(base) - trained).abs().max() / trained.abs().max()
    assert difference <= 5e-6  # measured on 2026-11-21: at most 2.3e-6


@pytest.mark.parametrize(
    ("format_", "reason"),
    [
        (Int4Affine(group_size=2 * GROUP), "not constant within groups of 32 inputs"),
        (Int4(group_size=GROUP), "int4 has no zero points"),
        (NF4(block_size=32, double=True), "nf4-double has no zero points"),
    ],
    ids=["wider groups", "symmetric", "nf4"],
)
def test_on_other_bases_the_exact_merge_is_refused_with_the_reason(format_, reason):
    base, method = adapted(format_)
    for site, update in method.updates().items():
        before = base.places[site].frozen
        layer, left, reasons = before.absorbing(update)
        assert len(reasons) == 1
        assert reason in reasons[0]
        assert torch.equal(left.delta_OI, update.delta_OI)
        assert layer.quantized is before.quantized


def test_narrower_groups_of_the_base_are_exact_too():
    base = tiny.base(Int4Affine(group_size=GROUP))
    wide = tiny.place(QALoRA(roles=("q",), rank=4, alpha=8.0, group_size=2 * GROUP), base)
    tiny.shake(wide)
    assert all(base.places[site].frozen.absorb(update).empty() for site, update in wide.updates().items())


def test_groups_that_do_not_divide_the_inputs_are_refused():
    with pytest.raises(SettingsError, match=r"adapter.group_size: 48 does not divide the 64 inputs of .*q_proj"):
        tiny.place(QALoRA(roles=("q",), rank=4, alpha=8.0, group_size=48), tiny.base(NF4(block_size=32, double=True)))
