"""Houlsby and Pfeiffer: the equation, where they sit, how near the identity they start, what trains beside them."""

import pytest
import torch
from torch import nn

from pipeline.adapters.bottleneck import Houlsby, Pfeiffer
from pipeline.models.states import labels
from pipeline.quantization.none import Dense
from tests.adapters import tiny

HOULSBY = Houlsby(width=4, sigma=0.01, activation="gelu", norms=True, roles=("o", "down"))
PFEIFFER = Pfeiffer(width=4, sigma=0.01, activation="relu", norms=False, roles=("down",))
FUNCTIONS = {"gelu": nn.functional.gelu, "relu": torch.relu}


@pytest.mark.parametrize("settings", [HOULSBY, PFEIFFER], ids=lambda one: one.label)
def test_layer_is_the_paper_s_bottleneck_before_the_residual(settings):
    base = tiny.base(Dense())
    method = tiny.place(settings, base)
    tiny.shake(method, size=0.3)
    site, layer = next((site, layer) for site, layer in method.placed.items() if site.role == "down")
    frozen = base.places[site].frozen
    x = torch.randn(3, site.in_features)
    rows = []
    for h in frozen(x):
        inner = FUNCTIONS[settings.activation](layer.D_RO @ h + layer.d_R)
        rows.append(h + layer.U_OR @ inner + layer.u_O)
    torch.testing.assert_close(layer(x, frozen), torch.stack(rows), rtol=1e-5, atol=1e-5)


def test_houlsby_trains_norms_and_pfeiffer_does_not():
    sites = {one.label: list(tiny.place(one, tiny.base(Dense())).placed) for one in (HOULSBY, PFEIFFER)}
    assert sorted(site.role for site in sites["Houlsby"]) == sorted(["o", "down", "norm", "norm"] * 2)
    assert [site.role for site in sites["Pfeiffer"]] == ["down", "down"]


def test_counts_are_2_m_d_and_d_and_m_each():
    method = tiny.place(HOULSBY, tiny.base(Dense()))
    d, m = 64, 4
    assert sum(parameter.numel() for parameter in method.parameters()) == 4 * (2 * m * d + d + m) + 4 * d
    assert method.insight() == {"norm_parameters": 4 * d}


@pytest.mark.parametrize("seed", range(3))
def test_the_start_is_near_the_identity_by_the_square_of_sigma(seed):
    """Measured on 2026-11-21 at sigma 0.01 and width 16: at most 0.0069."""
    base = tiny.base(Dense())
    before = tiny.logits(base)
    moves = []
    for sigma in (0.01, 0.02):
        tiny.place(HOULSBY.model_copy(update={"sigma": sigma, "width": 16}), base, seed)
        moves.append((tiny.logits(base) - before).abs().max().item())
    assert 0 < moves[0] < 0.01
    assert moves[1] / moves[0] == pytest.approx(4, rel=0.25)


def test_projections_are_cut_off_at_two_sigma_and_biases_zero():
    method = tiny.place(HOULSBY.model_copy(update={"width": 64, "norms": False}), tiny.base(Dense()))
    for layer in method.placed.values():
        for weight in (layer.D_RO, layer.U_OR):
            assert 0.019 < weight.abs().max() <= 0.02
            assert weight.std().item() == pytest.approx(0.0088, rel=0.05)  # of a Gaussian cut off at two sigma
        assert not layer.d_R.any()
        assert not layer.u_O.any()


def test_norms_do_not_decay():
    method = tiny.place(HOULSBY, tiny.base(Dense()))
    assert [(group.decay, len(group.parameters)) for group in method.groups()] == [(True, 16), (False, 4)]


@pytest.mark.parametrize("settings", [HOULSBY, PFEIFFER], ids=lambda one: one.label)
def test_merging_is_refused_with_the_reason(settings):
    base = tiny.base(Dense())
    wanted, skipped = labels(["trained", "merged-original"], tiny.place(settings, base), base.format)
    assert [str(label) for label in wanted] == ["trained"]
    assert "nonlinearity" in skipped["merged-original"]
