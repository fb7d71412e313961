"""DoRA and rsLoRA against the equations of their papers, and the traps of DoRA."""

import math

import pytest
import torch
from torch import nn

from pipeline.adapters.dora import DoRA
from pipeline.adapters.rslora import RsLoRA
from pipeline.quantization.none import Dense
from tests.adapters import tiny


def placed(seed=0, size=0.05):
    base = tiny.base(Dense())
    method = tiny.place(DoRA(rank=3, alpha=6.0, roles=("q", "down")), base, seed)
    tiny.shake(method, seed, size)
    return base, method


@pytest.mark.parametrize("seed", range(3))
def test_layer_is_equation_5_with_a_norm_that_is_constant_in_backward(seed):
    """The paper's section 4.3: gradients flow through m and through the direction, not through its norm."""
    base, method = placed(seed)
    for site, layer in method.placed.items():
        frozen = base.places[site].frozen
        x, dy = torch.randn(5, site.in_features, requires_grad=True), torch.randn(5, site.out_features)
        A, B, m = (p.detach().clone().requires_grad_() for p in (layer.A_RI, layer.B_OR, layer.magnitude_O))
        V_OI = frozen.dense_weight() + 2.0 * B @ A
        expected = nn.functional.linear(x, (m / V_OI.norm(dim=1).detach())[:, None] * V_OI, frozen.bias)
        y = layer(x, frozen)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        got = torch.autograd.grad(y, (x, layer.A_RI, layer.B_OR, layer.magnitude_O), dy)
        for one, other in zip(got, torch.autograd.grad(expected, (x, A, B, m), dy), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_norm_follows_every_step():
    base, method = placed(size=0.0)
    tiny.train(base, method, tiny.optimizer(method), range(3))
    for site, layer in method.placed.items():
        V_OI = base.places[site].frozen.dense_weight() + 2.0 * layer.B_OR @ layer.A_RI
        torch.testing.assert_close(layer.norm_O, V_OI.norm(dim=1).detach(), rtol=1e-5, atol=1e-6)
        assert not torch.equal(layer.norm_O, layer.squares_O.sqrt())


def test_merging_leaves_the_bias_that_a_row_scale_would_scale():
    base, method = placed()
    site, layer = next(iter(method.placed.items()))
    frozen = base.places[site].frozen
    assert frozen.bias.abs().max() > 0
    _, bias_O = layer.update().apply(frozen.dense_weight(), frozen.bias)
    torch.testing.assert_close(bias_O, frozen.bias)


def test_magnitudes_are_rows_lengths_and_do_not_decay():
    base, method = placed(size=0.0)
    for site, layer in method.placed.items():
        expected = base.places[site].frozen.dense_weight().norm(dim=1)
        torch.testing.assert_close(layer.magnitude_O.detach(), expected)
    fixed = [parameter for group in method.groups() if not group.decay for parameter in group.parameters]
    assert {id(p) for p in fixed} == {id(layer.magnitude_O) for layer in method.placed.values()}


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_rslora_divides_alpha_by_the_root_of_the_rank(rank):
    method = tiny.place(RsLoRA(rank=rank, alpha=6.0, roles=("q",)), tiny.base(Dense()))
    tiny.shake(method)
    for layer in method.placed.values():
        expected = 6.0 / math.sqrt(rank) * layer.B_OR @ layer.A_RI
        torch.testing.assert_close(layer.update().delta_OI, expected.detach())
    assert method.peft()["use_rslora"] is True
