"""A learning rate is chosen by dev loss from the one grid, and the default sweep uses what was chosen."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pipeline.aggregation.learning_rates import _keep_others, choose
from pipeline.core import records
from pipeline.core.records import RecordError

ROOT = Path(__file__).parents[2]


def test_takes_the_least_mean_and_leaves_out_rates_that_diverged():
    found = choose({"a": {0.1: [0.5, 0.7], 0.2: [0.1, 0.9], 0.4: [0.0, None]}})["a"]
    assert found["chosen"] == 0.2
    assert found["mean_dev_loss"] == [[0.1, 0.6], [0.2, 0.5], [0.4, None]]
    assert found["at_edge"] is False


def test_says_when_the_best_rate_lies_at_the_edge_of_the_grid():
    assert choose({"a": {0.1: [0.5], 0.2: [0.6]}})["a"]["at_edge"] is True


def test_a_method_that_always_diverged_is_an_error_by_name():
    with pytest.raises(RecordError, match="adalora: diverged at every learning rate"):
        choose({"adalora": {0.1: [None]}})


def test_a_record_of_more_methods_is_not_replaced(tmp_path):
    path = tmp_path / "rates.json"
    records.write(path, stage="learning_rates", settings={}, result={"methods": {"lora": {}, "oft": {}}}, about={})
    _keep_others(path, {"lora", "oft", "ia3"})
    with pytest.raises(RecordError, match="also holds oft, which this sweep has not"):
        _keep_others(path, {"lora", "ia3"})


def test_the_default_sweep_uses_the_committed_grid():
    chosen = records.read(ROOT / "docs/results/learning-rates.json", "learning_rates").result
    sweep = OmegaConf.load(ROOT / "conf/sweep/default.yaml")
    assert set(chosen["methods"]) == set(sweep.adapter)
    for name, method in chosen["methods"].items():
        assert sweep.per_adapter[name]["training.learning_rate"] == method["chosen"]
        assert [rate for rate, _ in method["mean_dev_loss"]] == chosen["grid"], "one grid for all"
