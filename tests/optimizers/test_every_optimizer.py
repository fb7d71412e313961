"""Every file in conf/optimizer is an optimizer that moves what it is given, and goes on after a kill with its bits."""

import inspect
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from pipeline.core import library
from pipeline.core.group import Group
from pipeline.core.settings import build
from pipeline.quantization.none import Dense
from pipeline.steps.train import forward
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.loop import Run, train
from tests.adapters import tiny
from tests.training.test_loop import Killed, equal, settings

OPTIMIZERS = sorted((tiny.ROOT / "conf" / "optimizer").glob("*.yaml"))
every_optimizer = pytest.mark.parametrize("path", OPTIMIZERS, ids=lambda path: path.stem)


def optimizer_settings(path, **changes):
    node = OmegaConf.to_container(OmegaConf.load(path))
    return build(node | {key: value for key, value in changes.items() if key in node})


def parameters(seed=0):
    """A matrix with a ragged last block, one of exactly the size from which states have 8 bits, one below, a scalar."""
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=g)) for shape in [(70, 101), (64, 64), (4095,), ()]]


def give_gradients(params, seed):
    g = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=g) * 10 ** float(torch.randn((), generator=g))


def test_all_are_found():
    ours = ["adamw", "adamw8bit", "paged-adamw", "paged-adamw8bit"]
    assert sorted([*ours, "bnb-adamw8bit", "bnb-paged-adamw8bit"]) == [path.stem for path in OPTIMIZERS]


@every_optimizer
def test_moves_every_element(path):
    params = parameters()
    optimizer = optimizer_settings(path).build([Group(params)])
    give_gradients(params, 0)
    before = [p.detach().clone() for p in params]
    optimizer.step(0.1)
    assert all((p != b).all() for p, b in zip(params, before, strict=True))
    assert json.loads(json.dumps(optimizer.about())) == optimizer.about()


@every_optimizer
def test_follows_adamw(path):
    """Learning-rate scales, decay by group, missing gradients: 8 bits round, a wrong rate or decay is off by more."""
    ours, exact = parameters(), parameters()
    decay = {"weight_decay": 0.5, "betas": [0.9, 0.99]}
    optimizers = [
        optimizer_settings(p, **decay).build([Group(ps[:2], lr_scale=0.3), Group(ps[2:], decay=False)])
        for p, ps in ((path, ours), (path.with_stem("adamw"), exact))
    ]
    for step in range(20):
        for params, optimizer in zip((ours, exact), optimizers, strict=True):
            give_gradients(params, step)
            if step % 3 == 1:
                params[0].grad = params[2].grad = None
            optimizer.step(1e-2 * math.cos(step / 20))
    for a, b, start in zip(ours, exact, parameters(), strict=True):
        assert (a - b).detach().norm() <= 0.05 * (b - start).detach().norm()  # measured 2026-11-21: at most 0.03


@every_optimizer
def test_killed_and_resumed_gives_the_same_bits(path, tmp_path, monkeypatch):
    """Through the loop and its checkpoints, with 8-bit states for all but the smallest parameters."""

    def run(folder, kill_after=None):
        base = tiny.base(Dense())
        method = tiny.place(tiny.settings(next(p for p in tiny.ADAPTERS if p.stem == "lora")), base)
        optimizer = optimizer_settings(path, min_8bit_size=300).build(method.groups())

        def report(point):
            if point["step"] == kill_after:
                raise Killed

        checkpoints = Checkpoints(folder, {"settings": path.stem})
        parts = partial(tiny.parts, 2)
        outcome = train(Run(partial(forward, base.model), parts, method, optimizer, settings(), checkpoints, report))
        state = {f"method.{k}": v.clone() for k, v in method.state_dict().items()}
        return state | {k: v.clone() for k, v in optimizer.state_dict().items()}, outcome

    undisturbed, outcome = run(tmp_path / "a")
    for kill_after in (4, 7):
        with pytest.raises(Killed):
            run(tmp_path / "b", kill_after)
    resumed, again = run(tmp_path / "b")
    assert again.resumed_at == 6
    assert equal(undisturbed, resumed)
    assert again.curve == outcome.curve
    if "8bit" in path.stem:
        assert sum(value.dtype == torch.uint8 for value in undisturbed.values()) > 10


@every_optimizer
def test_a_foreign_state_and_a_step_without_gradients_are_refused(path):
    optimizer = optimizer_settings(path).build([Group(parameters())])
    with pytest.raises(ValueError, match="missing"):
        optimizer.load_state_dict({})
    name = next(iter(optimizer.state_dict()))
    with pytest.raises(ValueError, match=name):
        optimizer.load_state_dict(optimizer.state_dict() | {name: torch.zeros(2, 2, 2)})
    with pytest.raises(RuntimeError, match="no parameter has a gradient"):
        optimizer.step(0.1)


@every_optimizer
def test_paged_ones_say_on_a_cpu_that_nothing_is_paged(path, capsys):
    optimizer = optimizer_settings(path).build([Group(parameters())])
    paged = "paged" in path.stem
    assert capsys.readouterr().err.count("nothing is paged") == paged
    assert str(optimizer.about()).count("nothing is paged") == paged


def test_only_one_module_imports_the_library():
    home = Path(inspect.getfile(library))
    assert [path for path in home.parents[1].rglob("*.py") if "import bitsandbytes" in path.read_text()] == [home]
