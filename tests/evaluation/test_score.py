"""Scores from what was kept: means, exponentials of means, and nothing that is compared with nothing."""

import math

import pytest

from pipeline.core.settings import SettingsError
from pipeline.evaluation.score import scores
from pipeline.tasks.final_number import Flexible, Strict
from pipeline.tasks.perplexity import Perplexity


def test_aggregates():
    items = {"base": [{"item": "a", "reply": "#### 1"}, {"item": "b", "reply": "#### 3"}]}
    got = scores([Strict(), Flexible()], items, {"a": "#### 1", "b": "#### 2"})
    assert [rule["states"]["base"]["score"] for rule in got.values()] == [50.0, 50.0]
    chunks = {"base": [{"item": str(n), "log_likelihood": -n * math.log(2), "tokens": 1} for n in (1, 3)]}
    got = scores([Perplexity()], chunks, {})["perplexity"]
    assert got["states"]["base"]["score"] == pytest.approx(4.0)


@pytest.mark.parametrize("references", [{"a": "#### 1"}, {"a": "#### 1", "b": " "}])
def test_an_item_without_a_reference_is_an_error_that_names_it(references):
    items = {"base": [{"item": "a", "reply": "#### 1"}, {"item": "b", "reply": ""}]}
    with pytest.raises(SettingsError, match=r"gsm8k-strict: item 'b' has no reference"):
        scores([Strict()], items, references)
