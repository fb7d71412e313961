"""Every file in conf/adapter is a method that keeps the promises of adapters/base.py, on every format of weights."""

import importlib
import inspect
import itertools

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pipeline.adapters.base import AdapterSettings
from pipeline.core.settings import SettingsError, build
from pipeline.quantization.int8 import Int8
from pipeline.quantization.none import Dense
from pipeline.steps.train import forward
from tests.adapters import tiny

FORMATS = sorted((tiny.ROOT / "conf" / "quantization").glob("*.yaml"))
QUICK = ("none", "nf4", "nf4-double")
"""Formats that are tried with all seeds, a part of that in the loop while you write; the others with one seed."""
DENSE, NF4 = (tiny.ROOT / "conf" / "quantization" / f"{name}.yaml" for name in QUICK[:2])
SEEDS = range(3)
CLOSE = 1e-5
"""Of the largest logit. Measured on 2026-11-21 over methods, formats, seeds and points: at most 2.3e-6."""
ROUNDED = 0.05
"""The same where a format rounds inputs and a merged dense weight does not. Measured on 2026-11-21: at most 0.035."""

REMEMBERING = ("lora", "dylora", "adalora", "adamix", "adaptive-oft")
"""Methods that are killed and resumed in the loop while you write: one that remembers nothing, and those that do."""

every_adapter = pytest.mark.parametrize("adapter", tiny.ADAPTERS, ids=lambda path: path.stem)
every_adapter_and_seed = pytest.mark.parametrize(("adapter", "seed"), tiny.crossed(SEEDS, tiny.ADAPTERS))


def slow(path):
    return pytest.param(path, id=path.stem, marks=() if path == NF4 else pytest.mark.slow)


every_format = pytest.mark.parametrize("format_", [slow(path) for path in FORMATS])
every_adapter_format_and_seed = pytest.mark.parametrize(
    ("adapter", "format_", "seed"),
    [
        *tiny.crossed(SEEDS, tiny.ADAPTERS, [path for path in FORMATS if path.stem in QUICK]),
        *tiny.crossed(range(1), tiny.ADAPTERS, [path for path in FORMATS if path.stem not in QUICK], quick=False),
    ],
)


def on_base(adapter, format_=None, seed=0):
    """The method on a base of this format (None: one it goes with); where it says it cannot be, it must refuse."""
    method = (settings := tiny.settings(adapter)).method(seed, tiny.TOTAL_STEPS)
    base = tiny.base(tiny.settings(format_ or (DENSE if method.unquantized_base[0] else NF4)))
    allowed, why = method.unquantized_base if isinstance(base.format, Dense) else method.quantized_base
    assert why
    if not allowed:
        with pytest.raises(SettingsError, match=why):
            tiny.place(settings, base, seed)
        pytest.skip(f"refused, as it must be: {why}")
    return base, tiny.place(settings, base, seed)


def assert_close(got, expected, bound):
    difference = (got - expected).abs().max() / expected.abs().max()
    assert difference <= bound, f"{difference:.2e}"


def test_every_method_of_the_room_has_a_file():
    names = [path.stem for path in (tiny.ROOT / "pipeline" / "adapters").glob("[!_]*.py")]
    modules = [importlib.import_module(f"pipeline.adapters.{name}") for name in names]
    defined = {
        found
        for module in modules
        for _, found in inspect.getmembers(module, inspect.isclass)
        if issubclass(found, AdapterSettings) and hasattr(found, "label") and found.__module__ == module.__name__
    }
    assert len(tiny.ADAPTERS) >= 16
    assert {type(tiny.settings(path)) for path in tiny.ADAPTERS} == defined


@every_adapter
def test_settings_say_what_they_are(adapter):
    settings = tiny.settings(adapter)
    assert build(settings.node()) == settings
    assert settings.label
    if settings.axis is not None:
        assert settings.size() == (settings.axis, getattr(settings, settings.axis))
        with pytest.raises(SettingsError, match=settings.axis):
            build(settings.node() | {settings.axis: 0})
    with pytest.raises(SettingsError, match="no_such_setting"):
        build(settings.node() | {"no_such_setting": 1})
    with pytest.raises(SettingsError, match="roles"):
        build(settings.node() | {"roles": []})


@every_adapter_format_and_seed
def test_starts_as_it_says(adapter, format_, seed):
    base, method = on_base(adapter, format_, seed)
    kind, why = method.start
    assert why
    for mode in (method.train, method.eval):
        mode()
        base.attach(method.placed)
        start = tiny.logits(base)
        base.detach()
        difference = (start - tiny.logits(base)).abs().max()
        if kind == "identity":
            # The one method that multiplies with a weight of its own making does not round inputs as int8 does.
            own_product = adapter.stem == "weight-oft" and isinstance(base.format, Int8)
            assert difference <= (ROUNDED if own_product else 0)
        else:
            assert difference > 0
            assert kind != "near" or difference < 0.05


@every_adapter_format_and_seed
def test_merged_is_unmerged_at_every_point(adapter, format_, seed):
    base, method = on_base(adapter, format_, seed)
    base.detach()
    before = tiny.logits(base)
    tiny.shake(method, seed)
    mergeable, why = method.mergeable
    assert why
    seen, bound = [], ROUNDED if isinstance(base.format, Int8) else CLOSE
    for at in tiny.points(method):
        layers = method.export(at)
        unmerged = tiny.logits_at(base, method, at)
        assert (unmerged - before).abs().max() > 0.02
        seen.append(unmerged)
        if mergeable:
            assert_close(tiny.logits(tiny.merged(base, layers)), unmerged, bound)
        else:
            assert any(layer.update() is None for layer in layers.values())
    assert all((one - other).abs().max() > 0.01 for one, other in itertools.pairwise(seen))


@every_format
@every_adapter
def test_training_moves_the_method_and_nothing_else(adapter, format_):
    base, method = on_base(adapter, format_)
    before = tiny.logits(base)
    weights = {name: value.clone() for name, value in base.model.state_dict().items()}
    stored = {site: frozen.dense_weight().clone() for site, frozen in base.frozen().items()}
    start = {name: value.detach().clone() for name, value in method.named_parameters()}
    chance = torch.get_rng_state()
    moves = tiny.optimizer(method)
    losses = tiny.train(base, method, moves, range(2))
    assert all(not torch.equal(value, start[name]) for name, value in method.named_parameters())
    losses += tiny.train(base, method, moves, range(2, tiny.TOTAL_STEPS))
    assert sum(losses[-2:]) < sum(losses[:2]) - 0.1
    assert (tiny.logits(base) - before).abs().max() > 0.1
    assert all(parameter.grad is None for parameter in base.model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in base.model.state_dict().items())
    assert all(torch.equal(frozen.dense_weight(), stored[site]) for site, frozen in base.frozen().items())
    assert torch.equal(torch.get_rng_state(), chance), "a draw came from the global generator"
    assert method.insight() == method.insight()


@every_adapter_and_seed
def test_every_gradient_is_whole_before_clipping(adapter, seed):
    base, method = on_base(adapter, seed=seed)
    tiny.shake(method, seed)
    method.train()
    method.before_step(0)
    for batch in tiny.parts(count=4):
        (method.loss(lambda one: forward(base.model, one), batch) * batch.share).backward()
    method.after_backward(0)
    grouped = [parameter for group in method.groups() for parameter in group.parameters]
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in method.parameters()}
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in grouped)
    assert all(parameter.grad.abs().max() > 0 for parameter in grouped)


@every_adapter_and_seed
def test_accumulated_parts_are_one_step(adapter, seed):
    ends = []
    for count in (1, 4):
        base, method = on_base(adapter, seed=seed)
        # With a large eps, for Adam would divide round-off by round-off where a gradient is nearly zero.
        tiny.train(base, method, tiny.optimizer(method, eps=1e-3), range(3), count)
        ends.append(torch.cat([parameter.detach().flatten() for parameter in method.parameters()]))
    assert (ends[0] - ends[1]).abs().max() < 1e-6  # measured on 2026-11-21: at most 1.6e-7


@pytest.mark.parametrize(
    ("adapter", "seed"),
    [
        case if case.values[0].stem in REMEMBERING else pytest.param(*case.values, id=case.id, marks=pytest.mark.slow)
        for case in tiny.crossed(SEEDS, tiny.ADAPTERS)
    ],
)
def test_killed_and_resumed_is_undisturbed(adapter, seed):
    def fresh():
        base, method = on_base(adapter, seed=seed)
        return base, method, tiny.optimizer(method)

    base, whole, moves = fresh()
    tiny.train(base, whole, moves, range(tiny.TOTAL_STEPS))
    base, killed, moves = fresh()
    tiny.train(base, killed, moves, range(5))
    kept = [{name: value.clone() for name, value in one.state_dict().items()} for one in (killed, moves)]
    base, resumed, moves = fresh()
    addresses = [tensor.data_ptr() for tensor in (*resumed.parameters(), *resumed.buffers())]
    resumed.load_state_dict(kept[0])
    moves.load_state_dict(kept[1])
    resumed.refresh()
    tiny.train(base, resumed, moves, range(5, tiny.TOTAL_STEPS))
    assert addresses == [tensor.data_ptr() for tensor in (*resumed.parameters(), *resumed.buffers())]
    expected = whole.state_dict()
    assert expected.keys() == resumed.state_dict().keys()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())


@every_adapter
def test_a_seed_repeats_and_another_differs(adapter):
    ends = []
    for seed in (0, 0, 1):
        base, method = on_base(adapter, seed=seed)
        tiny.train(base, method, tiny.optimizer(method), range(3))
        ends.append(torch.cat([parameter.detach().flatten() for parameter in method.parameters()]))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


@every_adapter_and_seed
def test_what_a_mask_freezes_stays_and_the_rest_moves(adapter, seed):
    base, method = on_base(adapter, seed=seed)
    moves = tiny.optimizer(method)
    for step in range(8):
        before = [parameter.detach().clone() for group in method.groups() for parameter in group.parameters]
        tiny.train(base, method, moves, range(step, step + 1))
        after = [parameter for group in method.groups() for parameter in group.parameters]
        masks = [mask for group in method.groups() for mask in group.masks or [None] * len(group.parameters)]
        for old, new, mask in zip(before, after, masks, strict=True):
            moved = old != new
            frozen = torch.zeros_like(moved) if mask is None else (mask == 0).expand_as(moved)
            assert not moved[frozen].any()
            assert step == 0 or moved[~frozen].any()


@every_adapter
def test_a_captured_step_would_replay(adapter):
    """A trace bakes what the host knows and keeps tensors by reference, as a captured CUDA graph does."""
    base, method = on_base(adapter)
    safe, why = method.graph_safe
    assert why
    moves = tiny.optimizer(method)
    site, layer = next(iter(method.placed.items()))
    x = torch.randn(4, site.in_features)
    tiny.train(base, method, moves, range(1))
    method.train()
    method.before_step(1)
    traced = make_fx(lambda x: layer(x, base.places[site].frozen))(x)
    for step in range(1, 6):
        tiny.train(base, method, moves, range(step, step + 1))
        method.train()
        method.before_step(step + 1)
        with torch.no_grad():
            replayed, real = traced(x), layer(x, base.places[site].frozen)
        assert not safe or torch.allclose(replayed, real, atol=1e-6)


@every_adapter
def test_refuses_a_model_without_its_roles(adapter):
    settings = tiny.settings(adapter)
    others = {site: frozen for site, frozen in tiny.base(Dense()).offered().items() if site.role not in settings.roles}
    with pytest.raises(SettingsError, match="roles"):
        settings.method(seed=0, total_steps=tiny.TOTAL_STEPS).place(others)
