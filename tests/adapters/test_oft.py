"""OFTv2 against its paper: packing, series, one orientation, and how far from orthogonal the series is."""

import pytest
import torch

from pipeline.adapters.cayley import cayley_neumann, orthogonality_error, skew
from pipeline.adapters.oft import OFT
from pipeline.adapters.turn import Turn
from pipeline.core.settings import SettingsError
from pipeline.core.site import LINEAR_ROLES
from pipeline.quantization.none import Dense
from pipeline.steps.train import forward
from tests.adapters import tiny

C = 8
EYE = torch.eye(C, dtype=torch.float64)


def placed(seed=0, **other):
    base = tiny.base(Dense())
    return base, tiny.place(
        OFT(**{"block_size": C, "terms": 5, "shared": False, "roles": LINEAR_ROLES} | other), base, seed
    )


def blocks(size, seed=0, n=3):
    """Skew-symmetric blocks with a largest singular value of `size`, in float64."""
    torch.manual_seed(seed)
    Q_NCC = skew(torch.randn(n, C * (C - 1) // 2, dtype=torch.float64), C)
    return Q_NCC * (size / torch.linalg.matrix_norm(Q_NCC, 2)[:, None, None])


def test_packing_is_the_strict_upper_triangle_row_by_row():
    packed = torch.tensor([[1.0, 2.0, 3.0]])
    assert skew(packed, 3).tolist() == [[[0, 1, 2], [-1, 0, 3], [-2, -3, 0]]]


@pytest.mark.parametrize("other", [{}, {"shared": True}, {"terms": None}], ids=["series", "shared", "exact"])
def test_merging_turns_the_weight_the_way_that_the_layer_turns_the_input(other):
    _, method = placed(**other)
    tiny.shake(method)
    for site, layer in method.placed.items():
        x, frozen = torch.randn(3, site.in_features), tiny.frozen(site)
        merged = tiny.Dense(*layer.update().apply(frozen.weight_OI, frozen.bias))
        torch.testing.assert_close(layer(x, frozen), merged(x), rtol=1e-4, atol=1e-4)
        assert (merged(x) - frozen(x)).abs().max() > 0.1


@pytest.mark.parametrize("terms", [2, 3, 4, 5, 6])
def test_series_is_the_paper_s(terms):
    Q_NCC = blocks(0.5)
    powers = sum(torch.linalg.matrix_power(Q_NCC, i) for i in range(1, terms + 1))
    torch.testing.assert_close(EYE + cayley_neumann(Q_NCC, terms), (EYE + Q_NCC) @ (EYE + powers))


@pytest.mark.parametrize("terms", [2, 3, 4, 5, 6])
def test_series_is_peft_s_at_the_terms_that_we_write(terms):
    rotation = pytest.importorskip("peft.tuners.oft.layer").OFTRotationModule(3, C * (C - 1) // 2, C, 3 * C)
    packed = 0.1 * torch.randn(3, C * (C - 1) // 2, dtype=torch.float64)
    config = OFT(block_size=C, terms=terms, shared=False, roles=("q",)).method(seed=0, total_steps=1).peft()
    theirs = rotation._cayley_batch(packed, C, config["use_cayley_neumann"], config["num_cayley_neumann_terms"])
    torch.testing.assert_close(EYE + cayley_neumann(skew(packed, C), terms), theirs)


@pytest.mark.parametrize("terms", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("size", [0.03, 0.1, 0.3, 0.5, 0.9])
def test_distances_have_their_closed_forms(terms, size):
    Q_NCC = blocks(size)
    R_NCC = EYE + cayley_neumann(Q_NCC, terms)
    exact_NCC = torch.linalg.solve(EYE - Q_NCC, EYE + Q_NCC)
    to_exact = torch.linalg.matrix_norm(R_NCC - exact_NCC, 2).max()
    assert to_exact.item() == pytest.approx(size ** (terms + 1), rel=1e-6, abs=1e-14)
    to_orthogonal = torch.linalg.matrix_norm(R_NCC.mT @ R_NCC - EYE, 2).max()
    assert orthogonality_error(Q_NCC, terms) == pytest.approx(to_orthogonal.item(), rel=1e-6, abs=1e-14)


@pytest.mark.parametrize(
    ("size", "terms", "expected"),
    [(0.1, 2, 1.0e-6), (0.1, 3, 2.0e-4), (0.1, 4, 1.0e-10), (0.1, 5, 2.0e-6), (0.5, 3, 1.2e-1), (0.5, 4, 9.8e-4)],
)
def test_orthogonality_error_is_the_known_one(size, terms, expected):
    assert orthogonality_error(blocks(size), terms) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_turning_the_input_is_turning_the_weight(seed):
    """y = W R^T x, with R block-diagonal: outputs and gradients of both ways to compute it."""
    _, method = placed(seed)
    tiny.shake(method, seed)
    site, layer = next(iter(method.placed.items()))
    frozen = tiny.Dense(torch.randn(site.out_features, site.in_features))
    x = torch.randn(5, site.in_features, requires_grad=True)
    blocks_NCC = layer.turn_NCC.detach() + torch.eye(C)
    R_II = torch.block_diag(*blocks_NCC).requires_grad_()
    y = layer(x, frozen)
    weight_centric = x @ (frozen.weight_OI @ R_II.T).T
    torch.testing.assert_close(y, weight_centric, rtol=1e-4, atol=1e-4)
    dy = torch.randn_like(y)
    dx, dturn_NCC = torch.autograd.grad(y, (x, layer.turn_NCC), dy)
    dx_other, dR_II = torch.autograd.grad(weight_centric, (x, R_II), dy)
    torch.testing.assert_close(dx, dx_other, rtol=1e-4, atol=1e-4)
    expected = torch.stack([dR_II[i : i + C, i : i + C] for i in range(0, site.in_features, C)])
    torch.testing.assert_close(dturn_NCC, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_turn_keeps_lengths_and_angles(seed):
    """Of the columns that the paper looks at: the neurons, rows of W."""
    _, method = placed(seed, terms=6)
    tiny.shake(method, seed, size=0.03)
    site, layer = next(iter(method.placed.items()))
    weight_OI = torch.randn(site.out_features, site.in_features)
    turned_OI, _ = layer.update().apply(weight_OI, None)
    assert (turned_OI - weight_OI).norm() > 0.1 * weight_OI.norm()
    torch.testing.assert_close(turned_OI @ turned_OI.T, weight_OI @ weight_OI.T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("needs", [True, False], ids=["inner layer", "first layer"])
def test_gradients_of_a_turn_are_those_of_the_expression(needs):
    x_MI = torch.randn(5, 3 * C, dtype=torch.float64, requires_grad=needs)
    assert torch.autograd.gradcheck(Turn.apply, (x_MI, blocks(0.3).requires_grad_()))


def test_one_pulled_back_gradient_is_plain_autograd():
    base, method = placed()
    tiny.shake(method)
    method.train()
    for batch in tiny.parts(count=2):
        (method.loss(lambda one: forward(base.model, one), batch) * batch.share).backward()
    method.after_backward(0)
    pulled = method.packed_NE.grad.clone()
    assert not method.gradient_NCC.any(), "the next step would start with this one's gradient"
    method.packed_NE.grad = None
    counts = [len(layer.turn_NCC) for layer in method.placed.values()]
    for layer, turn_NCC in zip(method.placed.values(), method.series().split(counts), strict=True):
        layer.turn_NCC = turn_NCC
    for batch in tiny.parts(count=2):
        (method.loss(lambda one: forward(base.model, one), batch) * batch.share).backward(retain_graph=True)
    assert pulled.abs().max() > 1e-3
    torch.testing.assert_close(pulled, method.packed_NE.grad, rtol=1e-4, atol=1e-6)


def test_layers_read_one_flat_tensor_that_a_step_refills():
    base, method = placed()
    before = [layer.turn_NCC.data_ptr() for layer in method.placed.values()]
    tiny.train(base, method, tiny.optimizer(method), range(2))
    assert before == [layer.turn_NCC.data_ptr() for layer in method.placed.values()]
    flat = torch.cat([layer.turn_NCC.detach() for layer in method.placed.values()])
    assert torch.equal(flat, method.turn_NCC)
    torch.testing.assert_close(flat, method.series().detach())
    assert flat.any()


def test_insight_is_the_orthogonality_error_of_each_layer():
    _, method = placed()
    tiny.shake(method)
    errors = method.insight()["orthogonality_error"]
    assert list(errors) == [site.name for site in method.placed]
    for site, layer in method.placed.items():
        R_NCC = layer.update().rotation_NCC.double()
        measured = torch.linalg.matrix_norm(R_NCC.mT @ R_NCC - torch.eye(C), 2).max().item()
        assert errors[site.name] == pytest.approx(measured, rel=1e-2, abs=1e-6)


def test_a_block_size_that_does_not_fit_names_the_site_and_what_does():
    with pytest.raises(SettingsError, match=r"block_size: 7 .* 64 inputs of model.*q_proj; .*: 2, 4, 8, 16, 32, 64\."):
        placed(block_size=7)
    with pytest.raises(SettingsError, match=r"96 inputs of .*down_proj"):
        placed(block_size=64)
