"""OFT with the exact Cayley transform, one block for all parts, COFT's bound, and OFT as first published."""

import math

import pytest
import torch

from pipeline.adapters.cayley import cayley, cayley_neumann, measured_error, skew
from pipeline.adapters.coft import COFT
from pipeline.adapters.oft import OFT
from pipeline.adapters.weight_oft import WeightOFT, WeightOFTLayer
from pipeline.core.settings import SettingsError
from pipeline.core.site import LINEAR_ROLES
from pipeline.quantization.none import Dense
from tests.adapters import tiny

C = 8
EYE = torch.eye(C, dtype=torch.float64)


def placed(cls=OFT, size=0.05, **other):
    base = tiny.base(Dense())
    given = {"block_size": C, "terms": None, "shared": False, "roles": LINEAR_ROLES} | other
    method = tiny.place(cls(**given), base)
    tiny.shake(method, size=size)
    return base, method


def blocks(size, n=3):
    torch.manual_seed(0)
    Q_NCC = skew(torch.randn(n, math.comb(C, 2), dtype=torch.float64), C)
    return Q_NCC * (size / torch.linalg.matrix_norm(Q_NCC, 2)[:, None, None])


def test_exact_is_the_paper_s_formula_and_orthogonal():
    Q_NCC = blocks(0.9)
    R_NCC = EYE + cayley(Q_NCC)
    torch.testing.assert_close(R_NCC, (EYE + Q_NCC) @ torch.linalg.inv(EYE - Q_NCC))
    assert measured_error(cayley(Q_NCC)) < 1e-14
    assert measured_error(cayley(Q_NCC.float())) < 1e-6


@pytest.mark.parametrize("size", [0.03, 0.3])
def test_exact_and_series_turn_the_same_way(size):
    """The trap: in PEFT the switch from one to the other inverts the rotation."""
    Q_NCC = blocks(size)
    apart = torch.linalg.matrix_norm(cayley(Q_NCC) - cayley_neumann(Q_NCC, 6), 2).max().item()
    assert apart == pytest.approx(size**7, rel=1e-3, abs=1e-13)
    assert torch.linalg.matrix_norm(cayley(-Q_NCC) - cayley_neumann(Q_NCC, 6), 2).max() > size


def test_exact_is_negated_in_peft_s_file():
    rotation = pytest.importorskip("peft.tuners.oft.layer").OFTRotationModule(3, math.comb(C, 2), C, 3 * C)
    _, method = placed()
    layer = next(iter(method.placed.values()))
    config, saved = method.peft(), layer.tensors()["oft_R.weight"].detach()
    theirs = rotation._cayley_batch(saved, C, config["use_cayley_neumann"], config["num_cayley_neumann_terms"])
    torch.testing.assert_close(layer.update().rotation_NCC, theirs)
    assert (layer.update().rotation_NCC - theirs.mT).abs().max() > 0.01


def test_one_shared_block_turns_every_part():
    base, method = placed(shared=True)
    whole = placed()[1]
    for site, layer in method.placed.items():
        assert layer.packed_NE.shape == (1, math.comb(C, 2))
        other = whole.placed[site]
        with torch.no_grad():
            other.packed_NE.copy_(layer.packed_NE.expand_as(other.packed_NE))
    whole.refresh()
    assert torch.equal(tiny.logits_at(base, method, None), tiny.logits_at(base, whole, None))
    assert method.peft()["block_share"] is True


def test_coft_scales_each_block_back_to_its_sphere():
    """epsilon / sqrt N in the Frobenius norm, as PEFT's own projection has it."""
    rotation = pytest.importorskip("peft.tuners.oft.layer").OFTRotationModule(8, math.comb(C, 2), C, 8 * C)
    packed = 0.05 * torch.randn(8, math.comb(C, 2), generator=torch.Generator().manual_seed(0))
    packed[0] *= 0.01
    _, method = placed(COFT, epsilon=0.4, roles=("q",))
    layer = next(iter(method.placed.values()))
    with torch.no_grad():
        layer.packed_NE.copy_(packed)
    method.refresh()
    torch.testing.assert_close(layer.packed_NE, rotation._project_batch(packed, eps=0.4))
    assert torch.equal(layer.packed_NE[0], packed[0])
    assert skew(layer.packed_NE, C).norm(dim=(1, 2)).max().item() == pytest.approx(0.4 / 8**0.5, rel=1e-5)


def test_coft_projects_in_no_forward_and_twice_is_once():
    """The trap: PEFT overwrites the weight in every forward, in evaluation too."""
    base, method = placed(COFT, epsilon=0.4)
    once = method.packed_NE.detach().clone()
    method.refresh()
    assert torch.equal(method.packed_NE, once)
    with torch.no_grad():
        method.packed_NE.mul_(3)
    outside = method.packed_NE.detach().clone()
    for mode in (method.train, method.eval):
        mode()
        tiny.logits(base)
        assert torch.equal(method.packed_NE, outside)


def test_coft_stays_inside_while_it_trains():
    base, method = placed(COFT, epsilon=0.1, size=0.0)
    tiny.train(base, method, tiny.optimizer(method), range(4))
    for layer in method.placed.values():
        norms = skew(layer.packed_NE, C).norm(dim=(1, 2))
        assert norms.max() <= 0.1 / len(norms) ** 0.5 * (1 + 1e-4)
    assert norms.max() > 0.09 / len(norms) ** 0.5


@pytest.mark.parametrize("N", [1, 4], ids=["dense", "block-wise"])
@pytest.mark.parametrize("seed", range(3))
def test_turning_the_input_is_the_original_oft(seed, N):
    """Outputs and gradients of OFTv2 and of the weight-centric original, to round-off."""
    torch.manual_seed(seed)
    base = tiny.base(Dense())
    ours = tiny.place(OFT(block_size=64 // N, terms=None, shared=False, roles=("q", "o")), base, seed)
    tiny.shake(ours, seed)
    for site, layer in ours.placed.items():
        frozen = base.places[site].frozen
        original = WeightOFTLayer(layer.packed_NE.detach().clone(), 64 // N)
        x, dy = torch.randn(5, site.in_features, requires_grad=True), torch.randn(5, site.out_features)
        y, expected = layer(x, frozen), original(x, frozen)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        dx_other, packed_grad = torch.autograd.grad(expected, (x, original.packed_NE), dy)
        torch.testing.assert_close(dx, dx_other, rtol=1e-5, atol=1e-5)
        layer.turn_NCC.grad.zero_()
        y.backward(dy)
        turn_NCC = cayley(skew(packed := layer.packed_NE.detach().clone().requires_grad_(), 64 // N))
        (pulled,) = torch.autograd.grad(turn_NCC, packed, layer.turn_NCC.grad)
        assert pulled.abs().max() > 1e-2
        torch.testing.assert_close(pulled, packed_grad, rtol=1e-4, atol=1e-4)


def test_counts_of_the_original_are_the_paper_s():
    """d (d / r - 1) / 2: 960 for a 128 x 128 layer in 8 blocks."""
    assert sum(p.numel() for p in WeightOFTLayer(torch.zeros(8, math.comb(16, 2)), 16).parameters()) == 960


def test_blocks_that_do_not_fit_name_the_site():
    with pytest.raises(SettingsError, match=r"adapter\.blocks: 64 does not cut the 64 inputs of .*q_proj"):
        tiny.place(WeightOFT(blocks=64, roles=("q",)), tiny.base(Dense()))
