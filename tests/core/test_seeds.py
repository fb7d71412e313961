"""Named streams: independent of each other, and pure functions of their arguments."""

import torch

from pipeline.core.seeds import generator, number, shuffled


def test_a_stream_repeats_and_every_argument_matters():
    draw = lambda *args: torch.randn(8, generator=generator(*args))  # noqa: E731
    assert torch.equal(draw(0, "init/a", 3), draw(0, "init/a", 3))
    others = [draw(1, "init/a", 3), draw(0, "init/b", 3), draw(0, "init/a", 4)]
    assert all(not torch.equal(draw(0, "init/a", 3), other) for other in others)


def test_zero_is_a_seed_like_any_other():
    assert len({number(seed, "order") for seed in range(100)}) == 100


def test_shuffled_is_a_permutation():
    assert sorted(shuffled(0, "order/0", 50)) == list(range(50))
    assert shuffled(0, "order/0", 50) != shuffled(0, "order/1", 50)
