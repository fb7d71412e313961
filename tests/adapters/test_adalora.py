"""AdaLoRA against its paper and the released code: importance, budget, masks, regularizer."""

import pytest
import torch

from pipeline.adapters.adalora import AdaLoRA
from pipeline.core.settings import SettingsError, parse
from pipeline.core.site import LINEAR_ROLES
from pipeline.quantization.none import Dense
from pipeline.steps.train import forward
from tests.adapters import tiny

NODE = {
    "rank": 4, "init_rank": None, "alpha": 12.0, "gamma": 0.1, "regularizer": "code", "warm": 0.1, "cool": 0.3,
    "every": 4, "beta": 0.85, "roles": list(LINEAR_ROLES),
}  # fmt: skip
STEPS = 40


def settings(**other) -> AdaLoRA:
    return parse(AdaLoRA, NODE | other)


def placed(seed=0, steps=STEPS, **other):
    base = tiny.base(Dense())
    method = settings(**other).method(seed=seed, total_steps=steps)
    base.attach(method.place(base.frozen()))
    return base, method


def alive(method):
    return sum(int((layer.lambda_R != 0).sum()) for layer in method.placed.values())


@pytest.mark.parametrize("seed", range(3))
def test_layer_is_the_paper_s_equation(seed):
    _, method = placed(seed)
    tiny.shake(method, seed)
    for site, layer in method.placed.items():
        frozen = tiny.Dense(torch.randn(site.out_features, site.in_features))
        x = torch.randn(3, site.in_features)
        delta_OI = 12.0 / 6 * layer.P_OR @ torch.diag(layer.lambda_R) @ layer.Q_RI
        torch.testing.assert_close(layer(x, frozen), x @ (frozen.weight_OI + delta_OI).T, rtol=1e-4, atol=1e-4)


def test_starts_at_small_factors_and_no_lambda():
    _, method = placed(rank=32)
    _, other = placed(rank=32, seed=1)
    for site, layer in method.placed.items():
        assert layer.P_OR.std().item() == pytest.approx(0.02, rel=0.1)
        assert layer.Q_RI.std().item() == pytest.approx(0.02, rel=0.1)
        assert not layer.lambda_R.any()
        assert not torch.equal(layer.P_OR, other.placed[site].P_OR)


@pytest.mark.parametrize(("rank", "start"), [(1, 2), (2, 3), (4, 6), (8, 12)])
def test_starts_at_one_and_a_half_times_the_rank(rank, start):
    assert settings(rank=rank).start_rank == start
    assert settings(rank=rank, init_rank=64).start_rank == 64


def test_without_alpha_it_is_twice_the_start_rank():
    _, method = placed(alpha=None)
    assert {layer.scale for layer in method.placed.values()} == {2.0}
    assert method.peft()["lora_alpha"] == 12.0


def test_peft_is_told_the_ranks_and_the_schedule():
    told = placed()[1].peft()
    wanted = {"init_r": 6, "target_r": 4, "tinit": 4, "tfinal": 12, "total_step": STEPS, "deltaT": 4, "beta1": 0.85}
    assert {key: told[key] for key in wanted} == wanted


@pytest.mark.parametrize("seed", range(3))
def test_importance_is_the_papers_formula(seed):
    base, method = placed(seed)
    optimizer, layer = tiny.optimizer(method), method.placed[next(iter(method.placed))]
    names = ("P_OR", "lambda_R", "Q_RI")
    mean = {name: torch.zeros_like(getattr(layer, name)) for name in names}
    spread = {name: torch.zeros_like(getattr(layer, name)) for name in names}
    tiny.train(base, method, optimizer, range(1))
    for name in names:
        assert not getattr(layer, f"mean_{name}").isnan().any()
        mean[name], spread[name] = (getattr(layer, f"{kind}_{name}").clone() for kind in ("mean", "spread"))
    for step in range(1, 4):
        method.train()
        method.loss(lambda one: forward(base.model, one), tiny.parts(1, step, method.seed)[0]).backward()
        for name in names:
            weight = getattr(layer, name)
            now = (weight * weight.grad).abs().detach()
            mean[name] = 0.85 * mean[name] + 0.15 * now
            spread[name] = 0.85 * spread[name] + 0.15 * (now - mean[name]).abs()
        method.zero_grad()
        tiny.train(base, method, optimizer, range(step, step + 1))  # clips at 1; the importance must not see that
    s = {name: mean[name] * spread[name] for name in names}
    expected = s["lambda_R"] + s["P_OR"].sum(0) / len(layer.P_OR) + s["Q_RI"].sum(1) / layer.Q_RI.shape[1]
    assert expected.max() > 0
    torch.testing.assert_close(layer.importance_R(), expected, rtol=1e-3, atol=0)


def test_budget_falls_with_the_cube_between_exact_ends():
    _, method = placed()
    n, first, last = 14, 4, 28
    assert (method.schedule.warm, method.schedule.last) == (first, last)
    assert {method.budget(t) for t in range(first + 1)} == {n * 6}
    assert {method.budget(t) for t in range(last, STEPS + 1)} == {n * 4}
    for t in range(first, last + 1):
        assert method.budget(t) == int(n * 4 + n * 2 * (1 - (t - first) / (last - first)) ** 3 + 1e-9)
    assert method.budget(last - 1) == n * 4
    assert method.budget(first + 1) < n * 6


@pytest.mark.parametrize("seed", range(3))
def test_exactly_the_budget_lives_after_each_mask(seed):
    base, method = placed(seed)
    optimizer, revived, before, final = tiny.optimizer(method), 0, None, None
    for step in range(STEPS):
        tiny.train(base, method, optimizer, range(step, step + 1))
        t, now = step + 1, torch.cat([layer.lambda_R.detach() != 0 for layer in method.placed.values()])
        if t > 4 and (t % 4 == 0 or t >= 28):
            assert alive(method) == method.budget(t)
        elif t > 8:
            revived += int((now & ~before).sum())
        before = now
        if t == 28:
            final = now
        assert t < 28 or torch.equal(now, final), "the mask of the last pruning stays"
    assert revived > 0, "between two masks a zeroed lambda may come back"
    ranks = method.insight()["rank"]
    assert sum(ranks.values()) == 14 * 4
    assert len(set(ranks.values())) > 1
    assert {site.name: len(layer.A_RI) for site, layer in method.export().items()} == ranks


def test_importance_is_frozen_while_cooling():
    base, method = placed()
    optimizer = tiny.optimizer(method)
    tiny.train(base, method, optimizer, range(28))
    before = [layer.importance_R() for layer in method.placed.values()]
    tiny.train(base, method, optimizer, range(28, STEPS))
    assert all(
        torch.equal(old, layer.importance_R()) for old, layer in zip(before, method.placed.values(), strict=True)
    )
    tiny.train(base, method, optimizer, range(27, 28))
    assert not torch.equal(before[0], next(iter(method.placed.values())).importance_R())


def test_the_least_important_go_first():
    _, method = placed(warm=0.0, every=1)
    for i, layer in enumerate(method.placed.values()):
        with torch.no_grad():
            layer.lambda_R.fill_(1.0)
            layer.mean_lambda_R.copy_(torch.arange(6) + 10 * i)
            layer.spread_lambda_R.fill_(1.0)
    method.after_step(STEPS - 1)
    score = torch.cat([layer.importance_R() for layer in method.placed.values()])
    kept = torch.cat([layer.lambda_R for layer in method.placed.values()]) != 0
    assert score[kept].min() > score[~kept].max()
    assert int(kept.sum()) == 14 * 4


def test_without_excess_nothing_is_pruned():
    base, method = placed(init_rank=4)
    tiny.train(base, method, tiny.optimizer(method), range(STEPS))
    assert alive(method) == 14 * 4


def test_a_site_may_lose_all_of_its_triplets():
    base, method = placed()
    tiny.shake(method)
    with torch.no_grad():
        next(iter(method.placed.values())).lambda_R.zero_()
    base.attach(method.placed)
    here = tiny.logits(base)
    torch.testing.assert_close(tiny.logits_at(base, method, None), here, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tiny.logits(tiny.merged(base, method.export())), here, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("regularizer", ["paper", "code"])
def test_regularizers_are_what_they_are_named_after(regularizer):
    base, method = placed(regularizer=regularizer, gamma=0.5)
    _, without = placed(regularizer=regularizer, gamma=0.0)
    batch = tiny.parts()[0]
    losses = [one.loss(lambda batch: forward(base.model, batch), batch).item() for one in (method, without)]
    norms = []
    for layer in method.placed.values():
        norms.append(torch.linalg.norm(layer.P_OR.T @ layer.P_OR - torch.eye(6)))
        norms.append(torch.linalg.norm(layer.Q_RI @ layer.Q_RI.T - torch.eye(6)))
    expected = sum(norm**2 for norm in norms) if regularizer == "paper" else sum(norms) / len(norms)
    assert losses[0] - losses[1] == pytest.approx(0.5 * expected.item(), rel=1e-4)
    for layer in method.placed.values():
        with torch.no_grad():
            layer.P_OR.copy_(torch.linalg.qr(layer.P_OR)[0])
            layer.Q_RI.copy_(torch.linalg.qr(layer.Q_RI.T)[0].T)
    assert method.loss(lambda one: forward(base.model, one), batch).item() == pytest.approx(losses[1], abs=1e-4)


def test_wrong_settings_are_refused():
    with pytest.raises(SettingsError, match="init_rank must be at least rank 4, got 3"):
        settings(init_rank=3)
    with pytest.raises(SettingsError, match="1 warm and 1 cool steps of 2"):
        settings().method(seed=0, total_steps=2)
    assert settings().method(seed=0, total_steps=3).schedule.last == 2
