"""Every method through the one loop: killed and resumed with the same bits, damage named, divergence a result."""

import inspect
import math
from functools import partial

import pytest
import torch

from pipeline.adapters.lora import LoRAMethod
from pipeline.core.records import RecordError
from pipeline.core.settings import parse
from pipeline.quantization.nf4 import NF4
from pipeline.quantization.none import Dense
from pipeline.steps.train import forward
from pipeline.training import loop
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.loop import Run, train
from pipeline.training.settings import Training
from tests.adapters import tiny

MADE_BY = {"settings": {"seed": 0}, "code": "code:1"}
STEPS = tiny.TOTAL_STEPS


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


def settings(**changes):
    node = {
        "task": "t", "steps": STEPS, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 5e-3,
        "max_grad_norm": 1.0,
        "schedule": {"shape": "cosine", "warmup_steps": 2, "final_fraction": 0.1}, "max_length": 12,
        "checkpoint_every": 3,
    }  # fmt: skip
    return parse(Training, node | changes)


def run(path, folder, *, kill_after=None, made_by=MADE_BY, seed=0, count=2, **changes):
    """Train one method from where its checkpoints are; return its final state and the outcome."""
    adapter = tiny.settings(path)
    quantized = adapter.method(seed=seed, total_steps=STEPS).quantized_base[0]
    base = tiny.base(NF4(block_size=64, double=False) if quantized else Dense())
    method = tiny.place(adapter, base, seed)
    optimizer = tiny.optimizer(method)

    def report(point):
        if point["step"] == kill_after:
            raise Killed

    outcome = train(
        Run(
            forward=partial(forward, base.model),
            parts=lambda step: tiny.parts(count, step, seed),
            method=method,
            optimizer=optimizer,
            settings=settings(**changes),
            checkpoints=Checkpoints(folder, made_by),
            report=report,
        )
    )
    return {k: v.clone() for k, v in method.state_dict().items()}, outcome


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def by_name(name):
    return next(path for path in tiny.ADAPTERS if path.stem == name)


@pytest.mark.parametrize("path", tiny.ADAPTERS, ids=lambda path: path.stem)
def test_killed_and_resumed_gives_the_same_bits_and_the_same_curve(path, tmp_path):
    undisturbed, outcome = run(path, tmp_path / "a")
    for kill_after in (4, 7, 10):
        with pytest.raises(Killed):
            run(path, tmp_path / "b", kill_after=kill_after)
    resumed, again = run(path, tmp_path / "b")
    assert again.resumed_at == 9
    assert equal(undisturbed, resumed)
    assert again.curve == outcome.curve
    assert len(again.curve) == STEPS


def test_two_seeds_differ_and_one_repeats(tmp_path):
    path = by_name("lora")
    first, _ = run(path, tmp_path / "a")
    same, _ = run(path, tmp_path / "b")
    other, _ = run(path, tmp_path / "c", seed=1)
    assert equal(first, same)
    assert not any(torch.equal(first[k], other[k]) for k in first)


def test_every_step_calls_the_hooks_in_their_order(tmp_path, monkeypatch):
    called = []
    for hook in ("before_step", "after_backward", "after_step", "refresh"):
        monkeypatch.setattr(LoRAMethod, hook, lambda _, *step, hook=hook: called.append((hook, *step)))
    run(by_name("lora"), tmp_path)
    first = called.index(("before_step", 0))
    assert set(called[:first]) == {("refresh",)}
    assert called[first:] == [
        one
        for step in range(STEPS)
        for one in (("before_step", step), ("after_backward", step), ("after_step", step), ("refresh",))
    ]


def test_a_step_in_parts_with_unequal_numbers_of_labels_is_the_step_as_a_whole(tmp_path):
    path = by_name("lora")
    (_, whole), (_, parted) = (run(path, tmp_path / str(count), count=count) for count in (1, 4))
    for one, other in zip(whole.curve[:3], parted.curve[:3], strict=True):
        assert one["labelled_tokens"] == other["labelled_tokens"]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("damage", ["truncate", "flip", "record"])
def test_a_damaged_checkpoint_is_named_and_the_older_one_is_used(tmp_path, capsys, damage):
    path = by_name("adalora")
    undisturbed, _ = run(path, tmp_path / "a")
    with pytest.raises(Killed):
        run(path, tmp_path / "b", kill_after=10)
    file = tmp_path / "b" / ("step-000009.json" if damage == "record" else "step-000009.safetensors")
    data = file.read_bytes()
    file.write_bytes(data[:-9] if damage != "flip" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    resumed, outcome = run(path, tmp_path / "b")
    assert outcome.resumed_at == 6
    assert str(file) in capsys.readouterr().err
    assert equal(undisturbed, resumed)


def test_without_a_whole_checkpoint_there_is_an_error_that_names_all(tmp_path):
    path = by_name("lora")
    with pytest.raises(Killed):
        run(path, tmp_path, kill_after=10)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 2
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(RecordError) as error:
        run(path, tmp_path)
    assert all(str(file) in str(error.value) for file in files)


def test_checkpoints_of_other_settings_or_code_are_not_resumed(tmp_path, capsys):
    path = by_name("lora")
    fresh, _ = run(path, tmp_path / "a", learning_rate=1e-3)
    with pytest.raises(Killed):
        run(path, tmp_path / "b", kill_after=10)
    other, outcome = run(path, tmp_path / "b", made_by={**MADE_BY, "code": "code:2"}, learning_rate=1e-3)
    assert outcome.resumed_at == 0
    assert "made by other settings or code" in capsys.readouterr().err
    assert equal(fresh, other)
    kept = sorted(file.name for file in (tmp_path / "b").glob("*.json"))
    assert kept == ["step-000006.json", "step-000009.json"]


@pytest.mark.parametrize("name", ["lora", "dylora", "oft", "adalora", "dora", "rslora"])
def test_an_absurd_learning_rate_ends_as_a_diverged_outcome(name, tmp_path):
    outcome = run(by_name(name), tmp_path, steps=40, learning_rate=1e3, checkpoint_every=100)[1]
    assert outcome.reason is not None
    assert "loss" in outcome.reason


@pytest.mark.parametrize("path", tiny.ADAPTERS, ids=lambda path: path.stem)
def test_an_absurd_learning_rate_is_an_outcome_and_no_error(path, tmp_path):
    """A method that cannot move the model far, such as an exact rotation, may well end without diverging."""
    outcome = run(path, tmp_path, steps=10, learning_rate=1e3, checkpoint_every=100)[1]
    assert outcome.reason or all(math.isfinite(point["loss"]) for point in outcome.curve)


def test_a_training_shorter_than_the_window_can_diverge_too():
    curve = [{"step": step, "loss": loss, "grad_norm": 1.0} for step, loss in enumerate((1.0, 4.0, 4.0))]
    assert "steps 0 to 2" in loop._diverged(curve, settings(steps=3))
    assert loop._diverged(curve, settings(steps=4)) is None


def test_the_loss_may_rise_for_a_while(tmp_path):
    assert run(by_name("lora"), tmp_path, learning_rate=5e-2)[1].reason is None


def test_the_loop_names_no_method():
    source = inspect.getsource(loop).lower()
    assert not [path.stem for path in tiny.ADAPTERS if path.stem in source]
