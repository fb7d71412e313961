"""AdaMix against its paper and its code: two passes of other experts that agree, a true freeze, the mean at the end."""

import pytest
import torch
from torch import nn

from pipeline.adapters.adamix import AdaMix, consistency
from pipeline.adapters.lora import LoRA
from pipeline.core.site import LINEAR_ROLES
from pipeline.quantization.none import Dense
from pipeline.steps.train import forward
from tests.adapters import tiny


def placed(seed=0, shake=True, **other):
    base = tiny.base(Dense())
    given = {"rank": 2, "alpha": 4.0, "experts": 3, "shared_up": False, "roles": LINEAR_ROLES}
    method = tiny.place(AdaMix(**given | other), base, seed)
    if shake:
        tiny.shake(method, seed)
    return base, method


def loss(base, method, batch):
    return method.loss(lambda one: forward(base.model, one), batch)


@pytest.mark.parametrize("seed", range(3))
def test_each_half_of_the_stacked_batch_passes_its_own_experts(seed):
    base, method = placed(seed)
    method.train()
    method.before_step(seed)
    for site, layer in method.placed.items():
        frozen = base.places[site].frozen
        x = torch.randn(2, 5, site.in_features)
        (a, a_other), (b, b_other) = layer.drawn_2P.tolist()
        first, second = layer(x, frozen)
        for got, one, m, n in ((first, x[0], a, b), (second, x[1], a_other, b_other)):
            expected = frozen(one) + 4.0 / 2 * one @ layer.A_MRI[m].T @ layer.B_MOR[n].T
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_code_s():
    """The first pass's cross-entropy, and both divergences; not the second pass's cross-entropy."""
    base, method = placed()
    method.train()
    method.before_step(0)
    (batch,) = tiny.parts()
    passes = []
    for one in range(2):  # each pass alone, with its experts in both halves
        whole = method.drawn_S2P.clone()
        method.drawn_S2P.copy_(whole[..., one : one + 1].expand_as(whole))
        passes.append(forward(base.model, batch).logits()[batch.labels_BT >= 0])
        method.drawn_S2P.copy_(whole)
    p, q = (logits.softmax(-1) for logits in passes)
    divergences = (p * (p / q).log()).sum(-1).mean(), (q * (q / p).log()).sum(-1).mean()
    assert min(divergences) > 1e-4, "both passes drew the same experts"
    expected = nn.functional.cross_entropy(passes[0], batch.labels_BT[batch.labels_BT >= 0]) + sum(divergences) / 2
    torch.testing.assert_close(loss(base, method, batch), expected)


def test_what_a_divergence_is_held_against_gets_no_gradient_from_it():
    p, q = (torch.randn(4, 7).log_softmax(-1).requires_grad_() for _ in range(2))
    consistency(p, q).backward()
    torch.testing.assert_close(p.grad, -q.detach().exp() / 2 / 4)  # of KL(q || p) alone
    torch.testing.assert_close(q.grad, -p.detach().exp() / 2 / 4)


def test_a_part_without_labels_costs_nothing():
    base, method = placed()
    method.train()
    method.before_step(0)
    (batch,) = tiny.parts()
    batch.labels_BT = torch.full_like(batch.labels_BT, -100)
    value = loss(base, method, batch)
    value.backward()
    assert value == 0


def test_export_is_the_mean_of_a_and_of_b():
    _, method = placed()
    for site, layer in method.export().items():
        experts = method.placed[site]
        A, B = (sum(part) / 3 for part in (experts.A_MRI, experts.B_MOR))
        torch.testing.assert_close(layer.update().delta_OI, (4.0 / 2 * B @ A).detach())


def test_evaluation_is_the_exported_mean_and_repeats():
    base, method = placed()
    method.eval()
    base.attach(method.placed)
    first = tiny.logits(base)
    method.before_step(7)
    assert torch.equal(tiny.logits(base), first)
    torch.testing.assert_close(tiny.logits_at(base, method, None), first, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared_up", [False, True])
def test_one_expert_is_lora(shared_up):
    base, method = placed(experts=1, shared_up=shared_up)
    method.train()
    method.before_step(0)
    lora = LoRA(rank=2, alpha=4.0, roles=LINEAR_ROLES).method(0, 1)
    lora.place(base.offered())
    with torch.no_grad():
        for site, layer in lora.placed.items():
            layer.A_RI.copy_(method.placed[site].A_MRI[0])
            layer.B_OR.copy_(method.placed[site].B_MOR[0])
    (batch,) = tiny.parts()
    with torch.no_grad():
        base.attach(method.placed)
        got = loss(base, method, batch)
        base.attach(lora.placed)
        expected = forward(base.model, batch).cross_entropy(batch.labels_BT)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_draws_are_of_the_step_and_uniform_for_each_site_and_pass():
    _, method = placed(shake=False)
    seen = []
    for step in range(400):
        method.before_step(step)
        seen.append(method.drawn_S2P.clone())
    seen = torch.stack(seen)
    method.before_step(3)
    assert torch.equal(method.drawn_S2P, seen[3])
    shares = nn.functional.one_hot(seen, 3).double().mean(0)
    assert (shares - 1 / 3).abs().max() < 0.12
    assert ((seen[..., 0] != seen[..., 1]).double().mean() - 2 / 3).abs() < 0.02, "passes draw apart"
    assert ((seen[:, 0] != seen[:, 1]).double().mean() - 2 / 3).abs() < 0.05, "sites draw apart"


def test_an_expert_that_is_not_drawn_gets_no_gradient_and_does_not_move():
    """The trap: momentum and decay would move it all the same."""
    base, method = placed(experts=6)
    moves = tiny.optimizer(method)
    tiny.train(base, method, moves, range(3))  # every expert may have momentum now
    before = {site: layer.A_MRI.detach().clone() for site, layer in method.placed.items()}
    tiny.train(base, method, moves, range(3, 4))
    for site, layer in method.placed.items():
        drawn = set(layer.drawn_2P[0].tolist())
        moved = {m for m in range(6) if not torch.equal(layer.A_MRI[m], before[site][m])}
        assert moved == drawn


def test_experts_start_apart_and_shared_up_has_one_b():
    _, method = placed(shake=False, shared_up=True)
    for layer in method.placed.values():
        assert layer.B_MOR.shape[0] == 1
        assert not layer.B_MOR.any()
        assert not torch.equal(layer.A_MRI[0], layer.A_MRI[1])
    trained = sum(parameter.numel() for parameter in method.parameters())
    lora = tiny.place(LoRA(rank=2, alpha=4.0, roles=LINEAR_ROLES), tiny.base(Dense()))
    shipped = sum(parameter.numel() for parameter in lora.parameters())
    assert method.insight()["shipped_parameters"] == shipped
    assert trained > shipped
