"""AdamW against torch's, its two forms against each other, and what a mask must leave alone."""

import copy
import math

import pytest
import torch
from torch import nn

from pipeline.core.group import Group
from pipeline.core.settings import SettingsError, parse
from pipeline.optimizers.adamw import AdamW, update_masked, update_together

SHAPES = [(8, 16), (16,), (), (3, 5, 2)]


def settings(**changes):
    return AdamW(**({"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1} | changes))


def parameters(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=g)) for shape in SHAPES]


def give_gradients(params, seed):
    g = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=g) * 10 ** float(torch.randn((), generator=g))


def schedule(step):
    return 1e-2 * (0.5 + 0.5 * math.cos(step / 10))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_torch_over_50_steps(seed, masked):
    """The fast form, and the readable one with a mask of ones, for both decay and a learning-rate scale."""
    ours, theirs = parameters(seed), parameters(seed)
    groups = [Group(ours[:2]), Group(ours[2:], decay=False, lr_scale=0.3)]
    if masked:
        for group in groups:
            group.masks = [torch.ones(()) for _ in group.parameters]
    optimizer = settings().build(groups)
    reference = torch.optim.AdamW(
        [{"params": theirs[:2]}, {"params": theirs[2:], "weight_decay": 0.0}],
        betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, foreach=False,
    )  # fmt: skip
    for step in range(50):
        give_gradients(ours, 100 * seed + step)
        give_gradients(theirs, 100 * seed + step)
        reference.param_groups[0]["lr"], reference.param_groups[1]["lr"] = schedule(step), 0.3 * schedule(step)
        optimizer.step(schedule(step))
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)  # measured 2.4e-7 absolute


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_fast_form_is_the_readable_form(seed):
    fast, slow = (settings().build([Group(parameters(seed), lr_scale=0.5)])._slots for _ in range(2))
    for step in range(20):
        for slots in (fast, slow):
            give_gradients([slot.parameter for slot in slots], step)
        with torch.no_grad():
            update_together(fast, settings(), schedule(step))
            for slot in slow:
                update_masked(slot, torch.tensor(True), settings(), schedule(step))
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a.parameter, b.parameter, rtol=2e-6, atol=2e-7)
        assert a.count == b.count == 20


@pytest.mark.parametrize("masks", [None, [torch.ones(3)]])
def test_the_first_step_is_the_sign_of_the_gradient(masks):
    """m / sqrt(v) with both biases corrected; 1 - 0.999 in float32 would be off by 1e-5 of the step."""
    p = nn.Parameter(torch.zeros(3))
    optimizer = settings(betas=(0.9, 0.999)).build([Group([p], masks=masks)])
    p.grad = torch.tensor([0.5, -2.0, 300.0])
    optimizer.step(1.0)
    torch.testing.assert_close(p.detach(), torch.tensor([-1.0, 1.0, -1.0]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_masked_row_is_a_parameter_of_its_own(seed):
    """Rows drawn at random end exactly where optimizers that saw only their own steps would bring them."""
    whole = nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)))
    mask = torch.zeros(4, 1)
    rows = [nn.Parameter(row.clone()) for row in whole.detach()]
    optimizer = settings().build([Group([whole], masks=[mask])])
    own = [torch.optim.AdamW([row], lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1) for row in rows]
    g = torch.Generator().manual_seed(seed)
    moved = torch.zeros(4)
    for _ in range(40):
        drawn = torch.rand(4, generator=g) < torch.tensor([0.1, 0.5, 0.9, 0.0])
        gradient = torch.randn(4, 6, generator=g)
        mask.copy_(drawn[:, None])
        whole.grad = gradient
        optimizer.step(0.01)
        for i in drawn.nonzero().flatten().tolist():
            rows[i].grad = gradient[i]
            own[i].step()
        moved += drawn
    for row, reference in zip(whole, rows, strict=True):
        torch.testing.assert_close(row, reference, rtol=2e-6, atol=2e-7)
    assert optimizer.state_dict()["0.count"].flatten().tolist() == moved.tolist()


def test_a_masked_element_keeps_weight_moments_and_count_bit_for_bit():
    p = nn.Parameter(torch.randn(3, 4))
    mask = torch.ones(3, 1)
    optimizer = settings().build([Group([p], masks=[mask])])
    p.grad = torch.ones_like(p)
    optimizer.step(0.1)
    before = [tensor[1].clone() for tensor in (p.detach(), *optimizer.state_dict().values())]
    mask[1] = 0
    p.grad = torch.ones_like(p)
    p.grad[1] = torch.tensor([math.inf, math.nan, 1e30, 0.0])  # 0 x inf must not reach anything
    optimizer.step(0.1)
    after = [tensor[1] for tensor in (p.detach(), *optimizer.state_dict().values())]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.isfinite(p).all()
    assert optimizer.state_dict()["0.count"].flatten().tolist() == [2, 1, 2]


def test_masks_shared_by_parameters_and_read_when_the_step_is_made():
    """As DyLoRA hands them over: one (R, 1) mask, its transpose for the other factor, filled in place."""
    a, b = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(7, 4))
    mask = torch.zeros(4, 1)
    optimizer = settings().build([Group([a, b], masks=[mask, mask.T])])
    start_a, start_b = a.detach().clone(), b.detach().clone()
    mask[2] = 1
    a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
    optimizer.step(0.1)
    assert (a != start_a).any(1).tolist() == [False, False, True, False]
    assert (b != start_b).any(0).tolist() == [False, False, True, False]


@pytest.mark.parametrize("masked", [False, True])
def test_state_comes_back_bit_for_bit(masked):
    def make():
        params = parameters()
        masks = [torch.ones(p.shape) for p in params] if masked else None
        return params, settings().build([Group(params, masks=masks)])

    params, optimizer = make()
    for step in range(5):
        give_gradients(params, step)
        optimizer.step(0.01)
    state = copy.deepcopy(optimizer.state_dict())
    resumed_params, resumed = make()
    for old, new in zip(params, resumed_params, strict=True):
        new.data.copy_(old.data)
    resumed.load_state_dict(state)
    for step in range(5, 10):
        for ps, opt in ((params, optimizer), (resumed_params, resumed)):
            give_gradients(ps, step)
            opt.step(0.01)
    assert all(torch.equal(a, b) for a, b in zip(params, resumed_params, strict=True))
    ends = [opt.state_dict().values() for opt in (optimizer, resumed)]
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_foreign_state_is_refused_by_name():
    optimizer = settings().build([Group(parameters())])
    state = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"missing \['0.count'\]"):
        optimizer.load_state_dict({k: v for k, v in state.items() if k != "0.count"})
    with pytest.raises(ValueError, match=r"0.first_moment must be of shape \(8, 16\), got \(2,\)"):
        optimizer.load_state_dict(state | {"0.first_moment": torch.zeros(2)})


def test_a_parameter_without_gradient_stays_and_so_does_its_state():
    params = parameters()
    optimizer = settings().build([Group(params)])
    give_gradients(params, 0)
    optimizer.step(0.1)
    kept = params[1].detach().clone()
    give_gradients(params, 1)
    params[1].grad = None
    optimizer.step(0.1)
    assert torch.equal(params[1], kept)
    assert [float(optimizer.state_dict()[f"{i}.count"]) for i in range(4)] == [2, 1, 2, 2]


def test_no_gradient_at_all_is_an_error_not_a_step_that_does_nothing():
    with pytest.raises(RuntimeError, match="no parameter has a gradient"):
        settings().build([Group(parameters())]).step(0.1)


def test_clipping_returns_the_norm_before_and_shows_what_is_not_finite():
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    optimizer = settings().build([Group([p]), Group([q], lr_scale=2.0)])
    p.grad, q.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert optimizer.clip(10.0) == 5.0
    assert q.grad.item() == 4.0
    assert optimizer.clip(None) == 5.0
    assert optimizer.clip(1.0) == 5.0
    assert torch.linalg.vector_norm(torch.cat([p.grad, q.grad])).item() == pytest.approx(1.0, rel=1e-5)
    p.grad = torch.tensor([math.inf, 0.0])
    assert optimizer.clip(1.0) == math.inf
    p.grad = torch.tensor([math.nan, 0.0])
    assert math.isnan(optimizer.clip(1.0))


def test_gradients_are_gone_after_zero_grad():
    params = parameters()
    optimizer = settings().build([Group(params)])
    give_gradients(params, 0)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        settings().build([])
    p = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="two groups"):
        settings().build([Group([p]), Group([p])])
    with pytest.raises(ValueError, match=r"float32 parameters, got torch.bfloat16"):
        settings().build([Group([nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"betas": [0.9, 1.0]}, r"betas\.1.*less than 1"),
        ({"eps": 0.0}, r"eps.*greater than 0"),
        ({"weight_decay": -0.1}, r"weight_decay.*greater than or equal to 0"),
        ({"beta": 0.9}, r"no such setting.*Did you mean 'betas'"),
    ],
)
def test_wrong_settings_are_named(change, message):
    node = {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0} | change
    with pytest.raises(SettingsError, match=message):
        parse(AdamW, node, "optimizer")
