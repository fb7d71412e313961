"""AdaMix on bottlenecks: what each pass computes, what is shared, what moves, and the mean that is shipped."""

import pytest
import torch
from torch import nn

from pipeline.adapters.adamix_houlsby import AdaMixHoulsby
from pipeline.adapters.bottleneck import BottleneckLayer, Houlsby
from pipeline.quantization.none import Dense
from pipeline.steps.train import forward
from tests.adapters import tiny


def placed(seed=0, shake=True, **other):
    base = tiny.base(Dense())
    given = {"width": 4, "sigma": 0.01, "activation": "gelu", "experts": 3, "shared_up": False, "roles": ("o", "down")}
    method = tiny.place(AdaMixHoulsby(**given | other), base, seed)
    if shake:
        tiny.shake(method, seed)
    return base, method


@pytest.mark.parametrize("shared_up", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_each_half_of_the_stacked_batch_passes_its_own_experts(seed, shared_up):
    base, method = placed(seed, shared_up=shared_up)
    method.train()
    method.before_step(seed)
    for site, layer in method.placed.items():
        frozen = base.places[site].frozen
        x = torch.randn(2, 5, site.in_features)
        (a, a_other), (b, b_other) = layer.drawn_2P.tolist()
        assert not shared_up or b == b_other == 0
        for got, one, m, n in zip(layer(x, frozen), x, (a, a_other), (b, b_other), strict=True):
            h = frozen(one)
            inner = nn.functional.gelu(h @ layer.D_MRO[m].T + layer.d_MR[m])
            torch.testing.assert_close(got, h + inner @ layer.U_MOR[n].T + layer.u_MO[n], rtol=1e-4, atol=1e-5)


def test_two_passes_disagree_and_must_agree():
    """The trap: two passes of the same experts, and a consistency loss that is zero."""
    base, method = placed()
    method.train()
    method.before_step(0)
    (batch,) = tiny.parts()
    value = method.loss(lambda one: forward(base.model, one), batch)
    method.drawn_S2P.copy_(method.drawn_S2P[..., :1].expand_as(method.drawn_S2P))
    alike = method.loss(lambda one: forward(base.model, one), batch)
    torch.testing.assert_close(alike, forward(base.model, stacked(batch)).cross_entropy(stacked(batch).labels_BT))
    assert value > alike + 1e-5 or value < alike - 1e-5


def stacked(batch):
    return type(batch)(batch.ids_BT.repeat(2, 1), batch.labels_BT.repeat(2, 1), batch.share)


def test_the_shipped_adapter_is_the_mean_of_every_weight():
    base, method = placed(shared_up=True)
    exported = method.export()
    for site, layer in exported.items():
        assert type(layer) is BottleneckLayer
        experts = method.placed[site]
        torch.testing.assert_close(layer.D_RO, sum(experts.D_MRO) / 3)
        torch.testing.assert_close(layer.d_R, sum(experts.d_MR) / 3)
        torch.testing.assert_close(layer.U_OR, experts.U_MOR[0])
        torch.testing.assert_close(layer.u_O, experts.u_MO[0])
    method.eval()
    base.attach(method.placed)
    first = tiny.logits(base)
    method.before_step(7)
    assert torch.equal(tiny.logits(base), first)
    torch.testing.assert_close(tiny.logits_at(base, method, None), first, rtol=1e-5, atol=1e-5)


def test_one_expert_is_houlsby():
    base, method = placed(experts=1, shared_up=True)
    method.train()
    method.before_step(0)
    one = tiny.place(Houlsby(width=4, sigma=0.01, activation="gelu", norms=False, roles=("o", "down")), base)
    one.placed.update(method.export())
    (batch,) = tiny.parts()
    base.attach(method.placed)
    got = method.loss(lambda one: forward(base.model, one), batch)
    base.attach(one.placed)
    torch.testing.assert_close(got, forward(base.model, batch).cross_entropy(batch.labels_BT), rtol=1e-5, atol=1e-6)


def test_parameters_of_training_and_of_the_shipped_adapter_are_both_counted():
    _, method = placed(shared_up=True)
    down, up = 4 * 64 + 4, 64 * 4 + 64  # D and d, U and u of one expert
    assert sum(parameter.numel() for parameter in method.parameters()) == 4 * (3 * down + up)
    assert method.insight() == {"shipped_parameters": 4 * (down + up)}


def test_experts_that_are_not_drawn_do_not_move_nor_does_momentum_move_them():
    base, method = placed(experts=6)
    moves = tiny.optimizer(method)
    tiny.train(base, method, moves, range(3))
    before = {site: [weight.detach().clone() for weight in layer.parameters()] for site, layer in method.placed.items()}
    tiny.train(base, method, moves, range(3, 4))
    for site, layer in method.placed.items():
        for old, new, part in zip(before[site], layer.parameters(), (0, 0, 1, 1), strict=True):
            moved = {m for m in range(6) if not torch.equal(old[m], new[m])}
            assert moved == set(layer.drawn_2P[part].tolist())
