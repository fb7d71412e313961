"""Adaptive OFT: exactly the budget turns, the least important blocks go first, and PEFT holds what is left."""

import pytest
import torch

from pipeline.adapters.adaptive_oft import AdaptiveOFT
from pipeline.core.settings import SettingsError
from pipeline.core.site import LINEAR_ROLES
from pipeline.quantization.none import Dense
from tests.adapters import tiny

STEPS = 20


def placed(seed=0, **other):
    base = tiny.base(Dense())
    given = {
        "block_size": 8, "terms": 5, "shared": False, "keep": 0.25, "warm": 0.2, "cool": 0.2, "every": 4, "beta": 0.85,
        "roles": LINEAR_ROLES,
    }  # fmt: skip
    method = AdaptiveOFT(**given | other).method(seed, STEPS)
    base.attach(method.place(base.offered()))
    return base, method


@pytest.mark.parametrize("seed", range(3))
def test_exactly_the_budget_turns_after_each_cut(seed):
    base, method = placed(seed)
    optimizer, blocks = tiny.optimizer(method), len(method.packed_NE)
    for step in range(STEPS):
        tiny.train(base, method, optimizer, range(step, step + 1))
        if method.schedule.cuts(step + 1):
            turning_N = method.packed_NE.any(1)
            assert int(turning_N.sum()) == method.budget(step + 1)
            assert torch.equal(method.turn_NCC.flatten(1).any(1), turning_N), "the others are the identity"
    assert method.budget(4) == blocks
    assert method.budget(STEPS) == blocks // 4
    insight = method.insight()
    assert sum(insight["blocks"].values()) == blocks // 4
    assert insight["shipped_parameters"] == blocks // 4 * 28
    shares = {site.name: insight["blocks"][site.name] / (site.in_features // 8) for site in method.placed}
    assert len(set(shares.values())) > 1, "layers come to differ"


def test_the_least_important_by_mean_times_spread_go_first():
    _, method = placed()
    place_N1 = torch.arange(1.0, 1 + len(method.packed_NE))[:, None]
    with torch.no_grad():
        method.packed_NE.normal_()
        method.mean_NE.copy_(place_N1)
        method.spread_NE.copy_(place_N1**-2)
    method.after_step(STEPS - 1)
    kept = method.budget(STEPS)
    assert method.packed_NE[:kept].any(1).all()
    assert not method.packed_NE[kept:].any()


def test_importance_is_the_mean_over_entries_of_the_two_running_means():
    base, method = placed()
    optimizer = tiny.optimizer(method)
    tiny.train(base, method, optimizer, range(1))
    mean, spread = method.mean_NE.clone(), method.spread_NE.clone()
    method.train()
    with torch.no_grad():
        method.packed_NE.grad = torch.randn_like(method.packed_NE)
    sensitivity = (method.packed_NE * method.packed_NE.grad).abs().detach()
    method.gradient_NCC.zero_()
    method.packed_NE.requires_grad_(True)
    method.after_backward(1)  # adds the pulled-back gradient, which is zero here
    mean = 0.85 * mean + 0.15 * sensitivity
    spread = 0.85 * spread + 0.15 * (sensitivity - mean).abs()
    torch.testing.assert_close(method.mean_NE, mean)
    torch.testing.assert_close(method.spread_NE, spread)


def test_a_schedule_without_room_is_refused():
    with pytest.raises(SettingsError, match=r"adapter\.warm, adapter\.cool"):
        placed(warm=0.6, cool=0.6)
