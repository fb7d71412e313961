"""Sampling: transformers' distribution, and draws that depend on seed, row and place alone."""

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from pipeline.steps.sample import Sampler

NAMES = [f"row-{n}" for n in range(4000)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.1, 40, 0.95), (1.0, 5, 0.6), (1.5, 90, 1.0)])
def test_the_distribution_is_transformers(seed, temperature, top_k, top_p):
    torch.manual_seed(seed)
    logits_BV = torch.randn(6, 90) * 3
    theirs_BV = logits_BV
    for warp in (TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)):
        theirs_BV = warp(None, theirs_BV)
    shares_BK, tokens_BK = Sampler(temperature, top_k, top_p, seed, []).shares(logits_BV)
    ours_BV = torch.zeros(6, 90, dtype=torch.float64).scatter(1, tokens_BK, shares_BK)
    torch.testing.assert_close(ours_BV, theirs_BV.double().softmax(-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_draws_follow_the_distribution(seed):
    sampler = Sampler(1.0, 8, 1.0, seed, NAMES)
    logits_V = torch.randn(8, generator=torch.Generator().manual_seed(seed))
    drawn = sampler(logits_V.expand(len(NAMES), 8), list(range(len(NAMES))), 0).bincount(minlength=8) / len(NAMES)
    torch.testing.assert_close(drawn, logits_V.softmax(-1), atol=0.03, rtol=0)  # four standard deviations


def test_a_draw_does_not_depend_on_its_company():
    logits_BV = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(1.0, 30, 1.0, 42, NAMES)
    whole = sampler(logits_BV, list(range(50)), 3)
    assert sampler(logits_BV[[7, 31]], [7, 31], 3).tolist() == whole[[7, 31]].tolist()
    assert Sampler(1.0, 30, 1.0, 42, ["row-7"])(logits_BV[[7]], [0], 3).tolist() == whole[[7]].tolist()
    assert (sampler(logits_BV, list(range(50)), 4) != whole).any(), "the same draw at every place"
    assert (Sampler(1.0, 30, 1.0, 0, NAMES)(logits_BV, list(range(50)), 3) != whole).any(), "a seed that does nothing"
