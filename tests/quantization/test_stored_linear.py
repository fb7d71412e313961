"""The frozen linear layer over every format: its gradient, its memory, what it absorbs, what may not change it."""

import weakref
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from pipeline.core.settings import build
from pipeline.core.update import Update
from pipeline.quantization.base import StoredLinear
from pipeline.quantization.int8 import Int8

CONF = Path(__file__).parents[2] / "conf" / "quantization"
FORMATS = {path.stem: build(OmegaConf.to_container(OmegaConf.load(path))) for path in sorted(CONF.glob("*.yaml"))}
NF4, DOUBLE = FORMATS["nf4"], FORMATS["nf4-double"]


def layer(format_, out_features=48, in_features=128, *, bias=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, generator=g)
    return format_.frozen(format_.quantize(weight), torch.randn(out_features, generator=g) if bias else None)


def rounds_inputs(format_):
    """Say whether a format computes with inputs rounded to integers."""
    return isinstance(format_, Int8)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_input_gradient_are_those_of_the_dense_layer(name, dtype, bias):
    frozen = layer(FORMATS[name], bias=bias)
    x = torch.randn(3, 5, 128).to(dtype).requires_grad_()
    y = frozen(x)
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    dense, b = frozen.dense_weight(dtype), None if frozen.bias is None else frozen.bias.to(dtype)
    assert dense.dtype == dtype
    flat = x.detach().flatten(0, 1)
    expected = nn.functional.linear(flat, dense, b)
    if rounds_inputs(FORMATS[name]):
        assert 0 < (y.flatten(0, 1) - expected).norm() < 0.02 * expected.norm()
    else:
        assert torch.equal(y.flatten(0, 1), expected)
    assert torch.equal(dx.flatten(0, 1), dy.flatten(0, 1) @ dense)
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), y)


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_in_it_trains(name):
    frozen = layer(FORMATS[name])
    assert not list(frozen.parameters())
    assert not frozen.state_dict()
    assert not frozen.dense_weight().requires_grad


@pytest.mark.parametrize("name", ["nf4", "nf4-double"])
def test_no_dense_weight_lives_between_forward_and_backward(name, monkeypatch):
    frozen, made = layer(FORMATS[name]), []
    plain = StoredLinear.dense_weight

    def watched(self, dtype=None):
        weight = plain(self, dtype)
        made.append(weakref.ref(weight))
        return weight

    monkeypatch.setattr(StoredLinear, "dense_weight", watched)
    x = torch.randn(4, 128, requires_grad=True)
    y = frozen(x)
    assert len(made) == 1
    assert made[0]() is None
    y.sum().backward()
    assert len(made) == 2
    assert made[1]() is None


def test_the_output_may_be_added_to_in_place():
    x = torch.randn(2, 3, 128, requires_grad=True)
    y = layer(NF4)(x)
    y += 1.0
    y.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("name", FORMATS)
def test_casting_a_model_leaves_what_is_stored(name):
    frozen = layer(FORMATS[name])
    model = nn.Sequential(frozen, nn.LayerNorm(48))
    before = dict(frozen.quantized.tensors) | {"bias": frozen.bias}
    model.to(torch.bfloat16)
    after = dict(frozen.quantized.tensors) | {"bias": frozen.bias}
    assert all(torch.equal(after[key], before[key]) and after[key].dtype == before[key].dtype for key in before)
    assert model[1].weight.dtype == torch.bfloat16
    model.to("meta")
    assert all(tensor.is_meta for tensor in (*frozen.quantized.tensors.values(), frozen.bias))
    assert frozen.device.type == "meta"


SCALABLE = {name: format_ for name, format_ in FORMATS.items() if name not in ("none", "nf4-double")}
FIXED = {"packed", "code"}
"""What must stay, bit for bit, whatever a format absorbs."""


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", SCALABLE)
def test_a_positive_row_scale_goes_into_the_scales_and_no_code_changes(name, seed):
    frozen = layer(SCALABLE[name], seed=seed)
    before, weight, bias = frozen.quantized, frozen.dense_weight(), frozen.bias
    scale = torch.rand(48) * 3 + 0.01
    left = frozen.absorb(Update(row_scale_O=scale.requires_grad_()))
    assert left.empty()
    wanted_weight, wanted_bias = Update(row_scale_O=scale.detach()).apply(weight, bias)
    largest = wanted_weight.abs().amax(1, keepdim=True)  # zero point and scale * code may cancel
    assert ((frozen.dense_weight() - wanted_weight).abs() <= 4e-7 * largest).all()
    assert torch.equal(frozen.bias, wanted_bias)
    assert not frozen.dense_weight().requires_grad
    assert FIXED & before.tensors.keys()
    assert all(torch.equal(frozen.quantized.tensors[key], before.tensors[key]) for key in FIXED & before.tensors.keys())
    frozen.quantized = before  # what was kept was not written to
    assert torch.equal(frozen.dense_weight(), weight)


@pytest.mark.parametrize(
    ("frozen", "reason"),
    [
        (layer(DOUBLE), "double quantization would round the scaled scales to 8 bits again"),
        (layer(FORMATS["none"]), "none has no scales"),
        (layer(NF4, in_features=96), "blocks of 64 do not end where rows of 96 do"),
    ],
    ids=["double quantization", "none", "blocks across rows"],
)
def test_elsewhere_nothing_is_absorbed_and_the_reason_is_given(frozen, reason):
    before, bias = frozen.quantized, frozen.bias
    update = Update(row_scale_O=torch.full((48,), 2.0))
    assert vars(frozen.absorb(update)) == vars(update)
    assert frozen.quantized is before
    assert torch.equal(frozen.bias, bias)
    assert reason in frozen.absorbing(update)[2][0]


@pytest.mark.parametrize("name", ["nf4", "fp4", "int8", "bnb-nf4", "bnb-int8"])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_scale_that_is_not_positive_is_left_over(name, value):
    frozen, scale = layer(FORMATS[name]), torch.ones(48)
    scale[7] = value
    before, update = frozen.quantized, Update(row_scale_O=scale)
    assert vars(frozen.absorb(update)) == vars(update)
    assert frozen.quantized is before
    assert "not positive" in frozen.absorbing(update)[2][0]


@pytest.mark.parametrize("name", ["int4", "int4-affine"])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_evenly_spaced_levels_take_a_row_scale_of_any_sign(name, value):
    frozen, scale = layer(FORMATS[name]), torch.ones(48)
    scale[7] = value
    wanted = scale[:, None] * frozen.dense_weight()
    assert frozen.absorb(Update(row_scale_O=scale)).empty()
    torch.testing.assert_close(frozen.dense_weight(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_a_rotation_and_a_scale_of_columns_are_left_over(name):
    for update in (Update(rotation_NCC=torch.eye(8).expand(16, 8, 8)), Update(column_scale_I=torch.ones(128))):
        frozen = layer(FORMATS[name])
        before = frozen.quantized
        assert vars(frozen.absorb(update)) == vars(update)
        assert frozen.quantized is before
        assert "a rotation or a scale of columns" in frozen.absorbing(update)[2][0]


def test_zero_points_take_a_delta_that_is_constant_within_their_groups_and_then_the_rows_scale():
    frozen = layer(FORMATS["int4-affine"])
    delta, scale = torch.randn(48, 4).repeat_interleave(32, 1), torch.rand(48) - 0.5
    update = Update(delta_OI=delta, row_scale_O=scale)
    wanted, wanted_bias = update.apply(frozen.dense_weight(), frozen.bias)
    assert frozen.absorb(update).empty()
    torch.testing.assert_close(frozen.dense_weight(), wanted, rtol=0, atol=2e-6)
    assert torch.equal(frozen.bias, wanted_bias)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_added_to_a_bias_is_taken_for_a_bias_is_never_quantized(name):
    for bias in (True, False):
        frozen, added = layer(FORMATS[name]), torch.randn(48)
        frozen.bias = frozen.bias if bias else None
        before, wanted = frozen.quantized, added + frozen.bias if bias else added
        assert frozen.absorb(Update(bias_O=added)).empty()
        assert frozen.quantized is before
        assert torch.equal(frozen.bias, wanted)


def test_what_is_added_to_a_bias_waits_for_a_row_scale_that_is_left_over():
    frozen, update = layer(DOUBLE), Update(row_scale_O=torch.full((48,), 2.0), bias_O=torch.ones(48))
    bias = frozen.bias
    assert vars(frozen.absorb(update)) == vars(update)
    assert torch.equal(frozen.bias, bias)


def test_an_update_without_row_scale_is_left_over():
    frozen, update = layer(NF4), Update(delta_OI=torch.ones(48, 128))
    before = frozen.quantized
    assert vars(frozen.absorb(update)) == vars(update)
    assert frozen.quantized is before


def test_what_is_left_over_after_the_row_scale_still_gives_the_whole_update():
    """diag(s) (W R^T c + D) = (diag(s) W) R^T c + diag(s) D."""
    frozen = layer(NF4)
    update = Update(
        delta_OI=torch.randn(48, 128),
        rotation_NCC=torch.linalg.qr(torch.randn(16, 8, 8)).Q,
        row_scale_O=torch.rand(48) + 0.5,
        column_scale_I=torch.rand(128) + 0.5,
        bias_O=torch.randn(48),
    )
    wanted = update.apply(frozen.dense_weight(), frozen.bias)
    left = frozen.absorb(update)
    assert left.row_scale_O is None
    for got, want in zip(left.apply(frozen.dense_weight(), frozen.bias), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
