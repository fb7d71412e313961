"""BOFT against its paper and PEFT: one factor is OFT, the butterfly's order, connectivity, counts, and the traps."""

import math

import pytest
import torch
from safetensors.torch import load_file

from pipeline.adapters import files
from pipeline.adapters.boft import BOFT, paired, unpaired
from pipeline.adapters.oft import OFT
from pipeline.core.settings import SettingsError
from pipeline.core.site import LINEAR_ROLES
from pipeline.quantization.none import Dense
from pipeline.steps.train import forward
from tests.adapters import tiny

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def placed(shake=True, **other):
    base = tiny.base(Dense())
    given = {"block_size": 8, "factors": 2, "rescaled": False, "dropout": 0.0, "roles": LINEAR_ROLES}
    method = tiny.place(BOFT(**given | other), base)
    if shake:
        tiny.shake(method)
    return base, method


def test_one_factor_is_oft_bit_for_bit():
    base, boft = placed(factors=1)
    oft = tiny.place(OFT(block_size=8, terms=None, shared=False, roles=LINEAR_ROLES), base)
    with torch.no_grad():
        oft.packed_NE.copy_(boft.packed_NE)
    oft.refresh()
    assert torch.equal(tiny.logits_at(base, boft, None), tiny.logits_at(base, oft, None))
    ends = []
    for method in (boft, oft):
        base.attach(method.placed)
        tiny.train(base, method, tiny.optimizer(method), range(2))
        ends.append(method.packed_NE.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("factors", [1, 2, 3, 4])
def test_the_product_of_factors_is_peft_s(factors):
    """PEFT's permutations and products, which without its CUDA extension it makes for one factor only."""
    theirs = pytest.importorskip("peft.tuners.boft.layer").BOFTLayer
    _, method = placed(factors=factors, roles=("q",))
    layer = next(iter(method.placed.values()))
    data, I, C = layer.tensors()["boft_R"].detach(), 64, 8
    product = torch.eye(I)
    for i in range(factors):
        order = theirs.block_butterfly_perm(None, I, (I // C) // 2**i, C // 2, factors - 1)
        P = theirs.perm2mat(None, order)
        product = P @ torch.block_diag(*theirs.cayley_batch(None, data[i])) @ P.T @ product
    x, W = torch.randn(5, I), torch.randn(64, I)
    torch.testing.assert_close(layer.turn(x), x @ product, rtol=1e-5, atol=1e-5)
    merged, _ = layer.update().apply(W, None)
    torch.testing.assert_close(merged, (product @ W.T).T, rtol=1e-5, atol=1e-5)  # PEFT's get_delta_weight and merge


@pytest.mark.parametrize("factor", [1, 2])
def test_pairing_is_undone_and_pairs_halves_that_lie_apart(factor):
    x = torch.arange(32.0)
    assert torch.equal(unpaired(paired(x, factor, 4), factor, 4), x)
    assert paired(x, factor, 4)[:4].tolist() == [0, 1, 2 * 2**factor, 2 * 2**factor + 1]


@pytest.mark.parametrize("factors", [1, 2, 3, 4])
def test_log2_of_2d_over_b_factors_are_dense_and_fewer_are_not(factors):
    _, method = placed(factors=factors, roles=("q",))
    rotation_NCC = next(iter(method.placed.values())).update().rotation_NCC
    width = 8 * 2 ** (factors - 1)
    assert rotation_NCC.shape == (64 // width, width, width)
    assert (rotation_NCC != 0).all()
    torch.testing.assert_close(rotation_NCC @ rotation_NCC.mT, torch.eye(width).expand_as(rotation_NCC))


def test_each_factor_is_orthogonal_and_zero_is_the_identity():
    _, method = placed()
    assert max(method.insight()["orthogonality_error"].values()) < 1e-6
    _, at_start = placed(shake=False)
    assert not at_start.turn_NCC.any()


def test_counts_are_half_of_b_minus_1_times_d_times_m():
    _, method = placed(factors=2)
    expected = sum((8 - 1) * site.in_features * 2 // 2 for site in method.placed)
    assert sum(parameter.numel() for parameter in method.parameters()) == expected


@pytest.mark.parametrize("factors", [1, 2])
def test_a_scale_of_outputs_trains_only_if_asked_and_leaves_the_bias(factors):
    base, method = placed(factors=factors, rescaled=True)
    site, layer = next(iter(method.placed.items()))
    assert any(parameter is layer.scale_O for parameter in method.parameters())
    frozen = base.places[site].frozen
    x = torch.randn(3, site.in_features)
    expected = (layer.turn(x) @ frozen.dense_weight().T) * layer.scale_O + frozen.bias
    torch.testing.assert_close(layer(x, frozen), expected, rtol=1e-5, atol=1e-5)
    _, bias_O = layer.update().apply(frozen.dense_weight(), frozen.bias)
    torch.testing.assert_close(bias_O, frozen.bias)


@pytest.mark.parametrize("rescaled", [False, True])
def test_peft_s_one_factor_file_is_ours_both_ways(tmp_path, rescaled, monkeypatch):
    peft = pytest.importorskip("peft")
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: None)  # else it tries to compile
    base, method = placed(factors=1, rescaled=rescaled)
    files.save(method, tmp_path / "ours", base_name="tiny")
    theirs = peft.PeftModel.from_pretrained(tiny.model(), tmp_path / "ours").eval()
    ids = tiny.parts(step=1)[0].ids_BT
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=ids).logits, tiny.logits_at(base, method, None))
        for name, parameter in theirs.named_parameters():
            if "boft_" in name:  # not skew-symmetric, and with a scale
                parameter.add_(0.05 * torch.randn(parameter.shape))
        theirs.peft_config["default"].base_model_name_or_path = None
        theirs.save_pretrained(tmp_path / "theirs")
        files.fill(method, tmp_path / "theirs" / files.WEIGHTS)
        torch.testing.assert_close(theirs(input_ids=ids).logits, tiny.logits_at(base, method, None))


def test_more_factors_are_not_passed_off_as_peft(tmp_path):
    """The trap: PEFT without its CUDA extension makes one factor, whatever the configuration says."""
    _, method = placed(factors=2)
    files.save(method, tmp_path / "ours", base_name="tiny")
    assert method.peft() is None
    assert not (tmp_path / "ours" / files.CONFIG).exists()
    assert load_file(tmp_path / "ours" / files.WEIGHTS)[
        "base_model.model.model.layers.0.self_attn.q_proj.boft_R"
    ].shape == (2, 8, 8, 8)


@pytest.mark.parametrize(("block_size", "factors"), [(8, 5), (2, 7), (1 + 2, 2)])
def test_factors_that_do_not_fit_name_the_site(block_size, factors):
    with pytest.raises(SettingsError, match=r"adapter\.factors: .* 64 inputs of .*q_proj"):
        placed(block_size=block_size, factors=factors, roles=("q",))


def test_it_is_never_a_dense_block_diagonal(monkeypatch):
    monkeypatch.setattr(torch, "block_diag", None)
    base, method = placed()
    assert tiny.train(base, method, tiny.optimizer(method), range(1))[0] < math.inf


def test_dropout_makes_whole_blocks_the_identity_for_one_step():
    base, method = placed(factors=2, dropout=0.4)
    whole, shares = method.turn_NCC.clone(), []
    method.train()
    for step in range(20):
        method.before_step(step)
        dropped_N = (method.turn_NCC == 0).all(dim=(1, 2))
        assert torch.equal(method.turn_NCC[~dropped_N], whole[~dropped_N])
        shares.append(float(dropped_N.float().mean()))
        method.refresh()
    assert torch.equal(method.turn_NCC, whole), "evaluation sees every block"
    assert len(set(shares)) > 10
    assert abs(sum(shares) / len(shares) - 0.4) < 0.05
    method.before_step(3)
    first = method.turn_NCC.clone()
    method.refresh()
    method.before_step(3)
    assert torch.equal(method.turn_NCC, first), "a draw is of seed and step"
    method.loss(lambda one: forward(base.model, one), tiny.parts()[0]).backward()
    method.after_backward(3)
    dropped_N = (first == 0).all(dim=(1, 2))
    assert not method.packed_NE.grad[dropped_N].any()
    assert method.packed_NE.grad[~dropped_N].any(1).all()
