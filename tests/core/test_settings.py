"""One wrong key gives one line that names it."""

import pytest
from pydantic import Field

from pipeline.core.settings import Settings, SettingsError, build, canonical, digest, parse
from pipeline.training.settings import Schedule, Training


class Inner(Settings):
    rank: int = Field(ge=1)


class Outer(Settings):
    inner: Inner
    betas: tuple[float, float] = (0.9, 0.999)
    name: str = "x"


GOOD = {"inner": {"rank": 2}, "betas": [0.9, 0.99]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nam": "y"}, r"at\.nam: there is no such setting\. Did you mean 'name'\? Allowed here: betas, inner, name\."),
        ({"inner": {"rnk": 1}}, r"at\.inner\.rnk: there is no such setting\. Did you mean 'rank'\?"),
        ({"inner": {"rank": 0}}, r"at\.inner\.rank: .*greater than or equal to 1, got 0"),
        ({"inner": {"rank": "4"}}, r"at\.inner\.rank: .*integer, got '4'"),
        ({"inner": {"rank": True}}, r"at\.inner\.rank: .*got True"),
        ({"inner": {"rank": None}}, r"at\.inner\.rank: .*got None"),
        ({"inner": {}}, r"at\.inner\.rank: a value is needed"),
        ({"betas": [0.9]}, r"at\.betas\.1: a value is needed"),
        ({"betas": [0.9, float("inf")]}, r"at\.betas\.1: .*finite"),
    ],
)
def test_names_the_key(change, message):
    with pytest.raises(SettingsError, match=message):
        parse(Outer, GOOD | change, "at")


@pytest.mark.parametrize("target", [None, "os.path.join", "pipeline.nowhere.X", "pipeline.core.settings.digest", 3])
def test_refuses_a_foreign_target(target):
    with pytest.raises(SettingsError, match="_target_"):
        build({"_target_": target}, "adapter")


def test_node_builds_itself_again():
    schedule = Schedule(shape="linear", warmup_steps=3, final_fraction=0.1)
    assert build(schedule.node()) == schedule


def test_canonical_text_ignores_the_order_of_keys_and_nothing_else():
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})
    assert digest({"rank": 16, "alpha": 32}) != digest({"rank": 32, "alpha": 16})


def test_a_micro_batch_cannot_be_larger_than_the_batch():
    node = {
        "task": "t", "steps": 1, "batch_size": 2, "micro_batch_size": 4, "learning_rate": 1e-3, "max_grad_norm": 1,
        "schedule": {"warmup_steps": 0, "final_fraction": 0}, "max_length": 8, "checkpoint_every": 1,
    }  # fmt: skip
    with pytest.raises(SettingsError, match=r"micro_batch_size must be at most batch_size \(2\), got 4"):
        parse(Training, node, "training")
