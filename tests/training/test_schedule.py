"""Learning-rate schedules at their ends."""

import itertools

import pytest

from pipeline.training.schedule import learning_rate
from pipeline.training.settings import Schedule


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_ends(shape):
    schedule = Schedule(shape=shape, warmup_steps=4, final_fraction=0.1)
    rates = [learning_rate(schedule, 2.0, step, 20) for step in range(20)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(2.0 if shape == "constant" else 0.2)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))


def test_halfway_down_a_cosine_is_the_middle():
    schedule = Schedule(shape="cosine", warmup_steps=0, final_fraction=0.0)
    assert learning_rate(schedule, 1.0, 5, 11) == pytest.approx(0.5)


def test_one_step_has_the_peak():
    schedule = Schedule(shape="linear", warmup_steps=0, final_fraction=0.5)
    assert learning_rate(schedule, 1.0, 0, 1) == 1.0
