"""LoftQ and PiSSA against their papers: how a weight is split, where the adapter starts, what it is merged into."""

import pytest
import torch

from pipeline.adapters.loftq import LoftQ, PiSSA, principal
from pipeline.adapters.lora import LoRA
from pipeline.core.settings import SettingsError
from pipeline.core.site import LINEAR_ROLES
from pipeline.models.adapt import adapt
from pipeline.quantization.nf4 import NF4
from pipeline.quantization.none import Dense
from tests.adapters import tiny

ROLES = ("q", "v", "down")
FORMATS = [NF4(block_size=64, double=double) for double in (False, True)]


def back(format_):
    return lambda weight: format_.dequantize(format_.quantize(weight))


def loftq(rank=4, iterations=5):
    return LoftQ(rank=rank, alpha=2.0, iterations=iterations, roles=ROLES)


def left(weight, stored, A, B, format_):
    return float((weight - back(format_)(stored) - B @ A).norm() / weight.norm())


@pytest.mark.parametrize("format_", FORMATS, ids=["nf4", "nf4-double"])
def test_the_algorithm_is_the_paper_s(format_):
    """Written down once more: T times Q = q(W - A B'), A B' = the best of rank r for W - Q."""
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    low = torch.zeros_like(weight)
    for _ in range(3):
        Q = back(format_)(weight - low)
        U, s, V = torch.linalg.svd(weight - Q)
        low = U[:, :4] @ torch.diag(s[:4]) @ V[:4]
    stored, A, B = loftq(iterations=3).take(weight, back(format_))
    torch.testing.assert_close(back(format_)(stored), Q)
    torch.testing.assert_close(B @ A, low, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(A.norm(dim=1), B.norm(dim=0))  # the roots of the singular values on both sides


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("format_", FORMATS, ids=["nf4", "nf4-double"])
def test_the_residual_falls_with_t(format_, seed):
    """The paper's T = 0 is QLoRA: nothing taken, all of quantization's error left."""
    weight = torch.randn(256, 128, generator=torch.Generator().manual_seed(seed))
    errors = [float((weight - back(format_)(weight)).norm() / weight.norm())]
    errors += [left(weight, *loftq(16, T).take(weight, back(format_)), format_) for T in (1, 2, 5)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


def test_pissa_takes_the_principal_part_and_leaves_less_to_lose():
    weight = torch.randn(96, 64) + 2 * torch.outer(torch.randn(96), torch.randn(64))
    rest, A, B = PiSSA(rank=4, alpha=None, roles=ROLES).take(weight, back(FORMATS[0]))
    assert torch.linalg.matrix_rank(weight - rest, atol=1e-3) == 4
    torch.testing.assert_close(rest + B @ A, weight, rtol=1e-4, atol=1e-4)
    assert left(weight, rest, A, B, FORMATS[0]) < float((weight - back(FORMATS[0])(weight)).norm() / weight.norm())


def test_loftq_starts_nearer_to_the_original_than_lora():
    original, far = tiny.logits(tiny.base(Dense())), []
    for one in (LoRA(rank=8, alpha=2.0, roles=LINEAR_ROLES), loftq(8).model_copy(update={"roles": LINEAR_ROLES})):
        base = tiny.base(FORMATS[0])
        tiny.place(one, base)
        far.append(float((tiny.logits(base) - original).norm()))
    assert far[1] < far[0]


def test_pissa_on_an_unquantized_base_starts_at_the_original():
    base = tiny.base(Dense())
    tiny.place(PiSSA(rank=4, alpha=2.0, roles=ROLES), base)
    torch.testing.assert_close(tiny.logits(base), tiny.logits(tiny.base(Dense())), rtol=1e-5, atol=1e-5)


def test_loftq_is_refused_where_quantization_loses_nothing():
    with pytest.raises(SettingsError, match="LoftQ needs a base that is quantized, got none"):
        tiny.place(loftq(), tiny.base(Dense()))


def test_a_base_that_was_not_made_for_it_is_refused():
    base = tiny.base(FORMATS[0])
    for made, wanted in ((None, 4), (2, 4)):
        if made:
            tiny.take(loftq(made), base)
        with pytest.raises(SettingsError, match="LoftQ of rank 4 starts from what was taken out of"):
            adapt(base, loftq(wanted), 0, 1)


def test_a_rank_beyond_the_weight_is_refused():
    with pytest.raises(SettingsError, match=r"adapter.rank: must be at most 3"):
        principal(torch.randn(3, 5), 4)
