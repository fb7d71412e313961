"""NF4, FP4, their double quantization and int8, byte for byte against the CPU kernels of bitsandbytes 0.50.

Every weight is one that a model may have or that a kernel may stumble over. What differs is listed where the format is
(codebook.py, int8.py), and has a test here.
"""

import inspect
import itertools
from unittest import mock

import bitsandbytes
import pytest
import torch
from bitsandbytes import functional
from bitsandbytes.backends.default import ops as generic

from pipeline.core import dynamic
from pipeline.quantization import fp4, nf4
from pipeline.quantization.base import QuantizationError
from pipeline.quantization.fp4 import FP4
from pipeline.quantization.int8 import Int8, integer_product
from pipeline.quantization.library import LibraryInt8, LibraryNF4
from pipeline.quantization.nf4 import NF4

CPU = torch.device("cpu")
INFINITY = torch.tensor(torch.inf)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def adversarial():
    """Return weights by name: every one is tried in three dtypes and several block sizes, with and without double."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    zero_row, outlier, one_outlier, ragged_zero, zero_blocks = (
        normal(64, 128),
        normal(64, 128) * 1e-3,
        torch.zeros(4, 64),
        normal(5, 13),
        normal(16, 256),
    )
    zero_row[3], outlier[7, 7], one_outlier[1, 5], ragged_zero.view(-1)[64:] = 0, 1e4, 1e4, 0
    zero_blocks[::3, 64:128] = 0
    found = {
        "gaussian": normal(128, 384),
        "heavy tails": normal(96, 256) / normal(96, 256).abs().clamp_min(0.01),
        "large": normal(512, 512),
        "zero": torch.zeros(64, 64),
        "zero row": zero_row,
        "zero blocks": zero_blocks,
        "negative zeros": torch.full((8, 64), -0.0),
        "one outlier": one_outlier,
        "outlier among small ones": outlier,
        "constant": torch.full((64, 64), 0.3),
        "negative constant": torch.full((64, 64), -0.3),
        "two values": normal(32, 64).sign(),
        "rows of every scale": normal(256, 256) * torch.logspace(-8, 3, 256)[:, None],
        "columns of every scale": normal(64, 256) * torch.logspace(-8, 3, 256),
        "tiny": normal(64, 64) * 1e-30,
        "subnormal": normal(16, 64) * 1e-40,
        "huge": normal(4, 64) * 1e35,
        "halves of 127": (torch.arange(64 * 64) % 255 - 127).view(64, 64) / 2.0,
        "one value": normal(1, 1),
        "one row": normal(1, 192),
        "one odd row": normal(1, 77),
        "one column": normal(70, 1),
        "3 x 5": normal(3, 5),
        "17 x 33": normal(17, 33),
        "odd and zero": torch.zeros(5, 13),
        "last block zero": ragged_zero,
        "rows that are not whole blocks": normal(7, 80),
        "a transposed view": normal(96, 64).T,
        "every other column": normal(32, 256)[:, ::2],
        "every third row": normal(96, 64)[::3],
        "an expanded row": normal(1, 128).expand(16, 128),
        "sorted": normal(32, 128).flatten().sort().values.view(32, 128),
        "uniform": torch.rand(48, 64, generator=g) * 2 - 1,
        "all positive": normal(16, 128).abs(),
        "a weight of a trained model": normal(64, 64) * 0.02 + 0.001,
    }
    for kind in (nf4, fp4):
        levels = torch.tensor(kind.LEVELS).sort().values
        ties = (levels[1:] + levels[:-1]) / 2
        around = torch.cat([ties, torch.nextafter(ties, INFINITY), torch.nextafter(ties, -INFINITY)])
        name = kind.__name__.rpartition(".")[2]
        found |= {
            f"ties of {name} and their neighbors": torch.cat([around, torch.ones(19)]).view(1, 64).repeat(64, 1),
            f"the levels of {name} themselves": levels.repeat(64, 4),
            f"last block of ties of {name}": torch.cat([normal(64), torch.full((1,), 0.3), 0.3 * around])[:109][None],
        }
    return found


CASES = adversarial()
KINDS = {"nf4": NF4, "fp4": FP4}
every_case, every_kind = pytest.mark.parametrize("name", CASES), pytest.mark.parametrize("kind", KINDS)


def test_there_are_as_many_as_asked_for():
    assert len(CASES) >= 40


@pytest.fixture(autouse=True)
def _generic_kernel_uncompiled():
    """The library compiles its generic kernel at first use, which takes ten seconds and changes no bit."""
    assert bitsandbytes.__version__.startswith("0.50."), "byte equality is claimed for this version"
    with mock.patch.object(generic, "_dequantize_4bit_compute", inspect.unwrap(generic._dequantize_4bit_compute)):
        yield


def library(weight, block_size, kind, double):
    return functional.quantize_4bit(weight, blocksize=block_size, quant_type=kind, compress_statistics=double)


def holds(dtype, name):
    """Say whether a case is finite in `dtype`; only what is huge is not, in float16."""
    finite = bool(torch.isfinite(CASES[name].to(dtype)).all())
    assert finite or (name, dtype) == ("huge", torch.float16)
    return finite


@every_kind
@every_case
def test_stored_bytes_are_equal(name, kind):
    for dtype, block_size, double in itertools.product(DTYPES, (32, 64, 1024), (False, True)):
        weight, format_ = CASES[name].to(dtype), KINDS[kind](block_size=block_size, double=double)
        if not holds(dtype, name):
            with pytest.raises(QuantizationError, match="must be finite"):
                format_.quantize(weight)
            continue
        packed, state = library(weight, block_size, kind, double)
        ours = format_.quantize(weight).tensors
        assert torch.equal(ours["packed"], packed)
        assert torch.equal(ours["absmax"], state.absmax)
        assert ours["absmax"].dtype == state.absmax.dtype
        if double:
            assert torch.equal(ours["nested_absmax"], state.state2.absmax)
            assert torch.equal(ours["offset"], state.offset[None])


@every_kind
@every_case
def test_dequantized_weights_are_equal(name, kind):
    for dtype, block_size, double in itertools.product(DTYPES, (32, 64), (False, True)):
        weight = CASES[name]
        packed, state = library(weight, block_size, kind, double)
        state.dtype = dtype
        ours = KINDS[kind](block_size=block_size, double=double)
        if weight.shape[1] % block_size:  # its AVX512 kernel reads the wrong scales here: see the last test
            absmax = (
                functional.dequantize_blockwise(state.absmax, state.state2) + state.offset if double else state.absmax
            )
            theirs = generic._dequantize_4bit_compute(
                packed.flatten(), absmax, state.code, block_size, weight.shape, dtype
            )
        else:
            theirs = functional.dequantize_4bit(packed, state)
        assert torch.equal(ours.dequantize(ours.quantize(weight), dtype), flushed(theirs, dtype, ours, weight))


def flushed(theirs, dtype, format_, weight):
    """Put back what the library's kernel flushes to zero in bfloat16: results below 2^-126."""
    if dtype is not torch.bfloat16:
        return theirs
    ours = format_.dequantize(format_.quantize(weight), dtype)
    return torch.where((theirs == 0) & (ours.float().abs() < 2.0**-126), ours, theirs)


@every_case
def test_int8_rows_are_equal(name):
    format_ = Int8(threshold=6.0)
    for dtype in DTYPES:
        weight = CASES[name].to(dtype)
        if not torch.isfinite(weight.half()).all():
            with pytest.raises(
                QuantizationError, match="must be finite" if dtype is torch.float16 else "ends at 65504"
            ):
                format_.quantize(weight)
            continue
        stored = format_.quantize(weight)
        code, absmax, _ = functional.int8_vectorwise_quant(weight.half())
        assert torch.equal(stored.tensors["code"], code)
        assert torch.equal(stored.tensors["absmax"], absmax)
        theirs = functional.int8_vectorwise_dequant(code, absmax)
        for other in DTYPES:
            assert torch.equal(format_.dequantize(stored, other), theirs.to(other))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("bias", [True, False])
def test_int8_outputs_are_equal(seed, threshold, bias):
    """Against its `Linear8bitLt` in eval mode, with outlier columns in the input, in three dtypes."""
    g = torch.Generator().manual_seed(seed)
    weight, b = torch.randn(40, 96, generator=g), torch.randn(40, generator=g) if bias else None
    format_ = Int8(threshold=threshold)
    frozen = format_.frozen(format_.quantize(weight), b)
    theirs = bitsandbytes.nn.Linear8bitLt(96, 40, bias=bias, has_fp16_weights=False, threshold=threshold)
    theirs.weight.data = weight.clone()
    theirs = theirs.to("cpu").eval()
    for dtype, rows in itertools.product(DTYPES, (1, 7, 33)):
        x = torch.randn(rows, 96, generator=g)
        x[:, 5] *= 20
        x[0, 11] = 6.0
        if bias:
            theirs.bias.data = b.clone()  # again, for it keeps the bias in the dtype of the last input
        with torch.no_grad():
            assert torch.equal(frozen(x.to(dtype)), theirs(x.to(dtype)))


def test_integer_products_are_exact_where_float32_is_not():
    code = torch.full((3, 4001), 127, dtype=torch.int8)
    code[1, 0] = 126
    assert torch.equal(integer_product(code, code), (code.long() @ code.long().T).int())
    assert not torch.equal((code.float() @ code.float().T).int(), integer_product(code, code))


@every_case
def test_the_rows_of_the_library_s_own_are_what_ours_are(name):
    for ours, theirs in (
        *((NF4(block_size=64, double=d), LibraryNF4(block_size=64, double=d)) for d in (False, True)),
        (Int8(threshold=6.0), LibraryInt8(threshold=6.0)),
    ):
        weight = CASES[name]
        if isinstance(ours, Int8) and not torch.isfinite(weight.half()).all():
            continue
        a, b = ours.quantize(weight), theirs.quantize(weight)
        assert a.tensors.keys() == b.tensors.keys()
        assert all(torch.equal(a.tensors[key], b.tensors[key]) for key in a.tensors)


@pytest.mark.parametrize("signed", [True, False])
def test_the_dynamic_map_is_theirs(signed):
    assert torch.equal(dynamic.codebook(CPU, signed), functional.create_dynamic_map(signed))


@pytest.mark.parametrize("signed", [True, False])
def test_every_cell_of_the_dynamic_type_is_theirs(signed):
    """The edges of the 65,536 cells and their neighbors, 40 on each side where the code changes, at several scales."""
    edges = ((torch.arange(65536, dtype=torch.float64) - 0.5) / 65535 * 2 - 1).float()[1:]  # 65,535 = 257 x 255
    codes, code_map = dynamic._code_of_cell(CPU, signed), functional.create_dynamic_map(signed)
    near = [edges[codes[1:] != codes[:-1]]] * 2
    neighbors = [edges, torch.nextafter(edges, INFINITY), torch.nextafter(edges, -INFINITY)]
    for _ in range(40):
        near = [torch.nextafter(near[0], INFINITY), torch.nextafter(near[1], -INFINITY)]
        neighbors += near
    values = torch.cat(neighbors)
    values = torch.cat([values, torch.zeros(-len(values) % 255)]).view(-1, 255)
    for scale in (1.0, 0.3, 7e-5, 1e-40):
        blocks = torch.cat([torch.full((len(values), 1), scale), values * scale], 1).flatten()
        code, scales = dynamic.quantize(blocks, 256, signed)
        theirs, state = functional.quantize_blockwise(blocks, code=code_map, blocksize=256)
        assert torch.equal(code, theirs)
        assert torch.equal(scales, state.absmax)
        assert torch.equal(
            dynamic.dequantize(code, scales, 256, signed), functional.dequantize_blockwise(theirs, state)
        )


def test_where_we_differ_the_library_is_wrong():
    """Rows of 80 in blocks of 64: bitsandbytes' AVX512 kernel takes a scale that belongs to another block.

    On other CPUs it is right; what must hold everywhere is that we are.
    """
    weight = CASES["rows that are not whole blocks"]
    ours = NF4(block_size=64, double=False)
    stored = ours.quantize(weight)
    codes = torch.stack([stored.tensors["packed"] >> 4, stored.tensors["packed"] & 15], 1).flatten()
    expected = [nf4.LEVELS[code] * float(stored.tensors["absmax"][i // 64]) for i, code in enumerate(codes.tolist())]
    assert torch.equal(ours.dequantize(stored), torch.tensor(expected).view(7, 80))
