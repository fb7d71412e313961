"""What every format promises, over `conf/quantization`; and the figures that NF4 is known by."""

import math
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from omegaconf import OmegaConf

from pipeline.core.settings import SettingsError, build
from pipeline.quantization.base import QuantizationError
from pipeline.quantization.codebook import Codebook
from pipeline.quantization.fp4 import FP4
from pipeline.quantization.int4 import Int4, Int4Affine
from pipeline.quantization.int8 import Int8
from pipeline.quantization.nf4 import LEVELS, NF4

CONF = Path(__file__).parents[2] / "conf" / "quantization"
FORMATS = {path.stem: build(OmegaConf.to_container(OmegaConf.load(path))) for path in sorted(CONF.glob("*.yaml"))}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_registry_is_complete():
    assert set(FORMATS) == {
        "none", "nf4", "nf4-double", "fp4", "int8", "int4", "int4-affine", "bnb-nf4", "bnb-int8"
    }  # fmt: skip
    assert all(format_.name == name for name, format_ in FORMATS.items())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shape_and_dtype_come_back(name, dtype):
    format_, weight = FORMATS[name], gaussian(48, 64).to(dtype)
    stored = format_.quantize(weight)
    assert format_.dequantize(stored).shape == weight.shape
    assert format_.dequantize(stored).dtype == dtype
    for other in DTYPES:
        wide = format_.dequantize(stored, torch.float32)
        assert torch.equal(format_.dequantize(stored, other), wide.to(other))  # rounded once


@pytest.mark.parametrize("name", FORMATS)
def test_the_weight_is_not_written_to_and_takes_no_graph_along(name):
    weight = gaussian(16, 64).requires_grad_()
    before = weight.detach().clone()
    stored = FORMATS[name].quantize(weight)
    assert torch.equal(weight, before)
    assert not FORMATS[name].dequantize(stored).requires_grad


@pytest.mark.parametrize("name", FORMATS)
def test_bits_per_parameter_are_what_is_stored(name):
    weight = gaussian(1024, 1024)  # 16,384 scales: a whole number of blocks of 256
    format_ = FORMATS[name]
    once = {"nf4-double": 32, "int8": 32 * 1024, "bnb-int8": 32 * 1024}  # the mean; a scale a row, of any length
    expected = format_.bits_per_parameter(weight.dtype) + once.get(name, 0) / weight.numel()
    assert format_.quantize(weight).bits / weight.numel() == expected


def test_bits_per_parameter_are_the_published_ones():
    bits = {name: format_.bits_per_parameter(torch.bfloat16) for name, format_ in FORMATS.items()}
    assert bits == {
        "none": 16, "nf4": 4.5, "nf4-double": 4.126953125, "fp4": 4.5, "int4": 4.5, "int4-affine": 6, "int8": 8,
        "bnb-nf4": 4.5, "bnb-int8": 8,
    }  # fmt: skip


class E2M1(Codebook):
    """The four-bit float of the OCP standard; of a type as of another, only the levels differ."""

    kind: ClassVar[str] = "e2m1"
    levels: ClassVar[tuple[float, ...]] = tuple(s * v / 6 for s in (1, -1) for v in (0, 0.5, 1, 1.5, 2, 3, 4, 6))


class E3M0(Codebook):
    """A sign and three bits of exponent."""

    kind: ClassVar[str] = "e3m0"
    levels: ClassVar[tuple[float, ...]] = tuple(s * v for s in (1, -1) for v in (0, *(2.0**-e for e in range(7))))


GAUSSIAN_ERRORS = [
    (NF4(block_size=32, double=False), 0.0873),
    (NF4(block_size=64, double=False), 0.0920),
    (NF4(block_size=64, double=True), 0.0920),
    (NF4(block_size=128, double=False), 0.0956),
    (NF4(block_size=256, double=False), 0.0987),
    (NF4(block_size=512, double=False), 0.1015),
    (Int4(group_size=64), 0.1077),
    (E2M1(block_size=64, double=False), 0.1057),
    (FP4(block_size=64, double=False), 0.1220),
    (E3M0(block_size=64, double=False), 0.1882),
    # Measured on 2026-11-21, no published figure.
    (Int4Affine(group_size=32), 0.0783),
    (Int4Affine(group_size=64), 0.0896),
    (Int8(threshold=6.0), 0.0079),
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("format_", "expected"), GAUSSIAN_ERRORS, ids=lambda value: getattr(value, "name", None))
def test_error_on_a_gaussian(format_, expected, seed):
    """The table of relative errors, and the published course over block sizes."""
    weight = gaussian(512, 1024, seed=seed)
    error = format_.dequantize(format_.quantize(weight)) - weight
    assert float(error.norm() / weight.norm()) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nf4_is_idempotent(dtype):
    """In float32 the bytes repeat; 16-bit results too, because rounding keeps the largest value the largest."""
    format_ = FORMATS["nf4"]
    once = format_.quantize(gaussian(64, 128).to(dtype))
    again = format_.quantize(format_.dequantize(once))
    assert all(torch.equal(once.tensors[key], again.tensors[key]) for key in once.tensors)


def test_every_level_and_scale_round_trips():
    levels = torch.tensor(LEVELS)
    weight = torch.logspace(-6, 4, 40)[:, None] * levels.repeat(4)
    assert torch.equal(FORMATS["nf4"].dequantize(FORMATS["nf4"].quantize(weight)), weight)


def test_the_levels_are_the_quantiles_that_the_paper_means():
    """Derived: normal quantiles on both sides of an exact zero, 8 above and 7 below, scaled to 1."""
    normal = torch.distributions.Normal(0, 1)
    offset = 1 - 0.5 * (1 / 32 + 1 / 30)
    above = normal.icdf(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    below = -normal.icdf(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    derived = torch.cat([above, below, torch.zeros(1)]).sort().values
    torch.testing.assert_close(torch.tensor(LEVELS), (derived / derived.max()).float(), rtol=0, atol=1e-6)


def test_zero_stays_zero_in_nf4():
    weight = gaussian(64, 64)
    weight[5] = 0
    weight[6, ::2] = 0
    back = FORMATS["nf4"].dequantize(FORMATS["nf4"].quantize(weight))
    assert (back[weight == 0] == 0).all()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_refused_with_its_place(name, value):
    weight = gaussian(8, 64)
    weight[5, 7] = value
    with pytest.raises(QuantizationError, match=rf"got 1 that are not \(the first, {value}, at row 5, column 7\)"):
        FORMATS[name].quantize(weight)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_weight_is_refused(name):
    with pytest.raises(QuantizationError, match=r"two dimensions \(out, in\), got shape \(64,\)"):
        FORMATS[name].quantize(gaussian(64))
    with pytest.raises(QuantizationError, match=r"float32, bfloat16 or float16, got torch.float64"):
        FORMATS[name].quantize(gaussian(8, 64).double())


def test_scales_that_overflow_are_refused():
    with pytest.raises(QuantizationError, match="mean of the block scales is inf"):
        FORMATS["nf4-double"].quantize(torch.full((64, 64), 3e38))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 48}, r"quantization.block_size: Input should be 32, 64, 128, 256, 512 or 1024, got 48"),
        ({"double": "yes"}, r"quantization.double"),
        ({"blocksize": 64}, r"no such setting. Did you mean 'block_size'"),
    ],
)
def test_wrong_settings_are_named(change, message):
    node = {"_target_": "pipeline.quantization.nf4.NF4", "block_size": 64, "double": False} | change
    with pytest.raises(SettingsError, match=message):
        build(node, "quantization")


@pytest.mark.parametrize(("name", "ours"), [("bnb-nf4", "nf4"), ("bnb-int8", "int8")])
def test_the_library_s_own_say_what_to_do_where_it_is_not_installed(name, ours, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        SettingsError, match=rf"quantization: .* not installed. Install it .* or use quantization={ours}\."
    ):
        FORMATS[name].quantize(gaussian(8, 64))


def test_weights_that_float16_cannot_hold_are_refused_by_int8():
    with pytest.raises(QuantizationError, match=r"float16, which ends at 65504; got 1e\+06"):
        FORMATS["int8"].quantize(torch.full((4, 64), 1e6))


def test_groups_too_far_apart_for_a_scale_are_refused_by_int4_affine():
    weight = torch.full((4, 64), 3e38)
    weight[:, ::2] *= -1
    with pytest.raises(QuantizationError, match="too far apart"):
        FORMATS["int4-affine"].quantize(weight)


@pytest.mark.parametrize("name", ["int4", "int4-affine"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 33), (4, 80), (2, 200)])
def test_a_row_may_end_within_a_group(name, shape):
    """Each row stands alone: alone it is stored as it is among others; a group of one value is exact."""
    format_, weight = FORMATS[name], gaussian(*shape)
    whole = format_.dequantize(format_.quantize(weight))
    assert torch.equal(whole[-1:], format_.dequantize(format_.quantize(weight[-1:])))
    assert (whole - weight).abs().max() < 0.35
    if shape == (1, 1):
        torch.testing.assert_close(whole, weight)


def test_zero_and_constant_groups_are_exact_in_int4():
    for name in ("int4", "int4-affine"):
        weight = gaussian(4, 128)
        weight[:, :64], weight[2, 64:] = 0, 0
        back = FORMATS[name].dequantize(FORMATS[name].quantize(weight))
        assert (back[:, :64] == 0).all()
        assert (back[2] == 0).all()
    constant = torch.full((4, 64), 0.3)
    assert torch.equal(FORMATS["int4-affine"].dequantize(FORMATS["int4-affine"].quantize(constant)), constant)
