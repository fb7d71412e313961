"""Layers of the quantized bases: a csv row each, and the loss where it was asked for on this very base."""

import csv

import pytest

from pipeline.aggregation import layers, style
from pipeline.aggregation.sweep import load
from pipeline.core import records
from pipeline.core.settings import digest


def rows(sweep):
    return list(csv.DictReader(layers.layers_csv(layers.read_layers(sweep)).decode().splitlines()))


@pytest.fixture
def measured(small):
    """Write losses beside the first base of the sweep."""
    sweep = load(small)
    base = sweep.bases[0]
    made = sweep.fetch(base.records["quantize_base"], "quantize_base").result
    changes = [
        {"site": row["site"], "loss_change": 0.5 * k, "loss_change_outliers_kept": 0.25 * k}
        for k, row in enumerate(made["layers"])
    ]
    result = {"loss": 1.0, "layers": changes, "base": digest(made, 64), "task": "ppl-demo", "items": 3}
    path = (sweep.results / base.records["quantize_base"].path).with_name(layers.SENSITIVITY)
    records.write(path, stage="sensitivity", settings={}, result=result, about={})
    return sweep, path


def test_a_row_for_each_layer_of_each_base(small):
    sweep = load(small)
    found = rows(sweep)
    assert len(found) == 4 * len(sweep.bases)
    assert {"base", "site", "role", "layer", *layers.FIGURES, *layers.LOSSES, "loss_task"} == found[0].keys()
    assert (found[0]["relative_error"], found[0]["kurtosis"], found[0]["loss_change"]) == ("0.09", "3", "")


def test_measured_losses_stand_beside_the_errors_and_are_drawn(measured):
    sweep, _ = measured
    found = rows(sweep)[:4]
    assert [row["loss_change"] for row in found] == ["0", "0.5", "1", "1.5"]
    assert {row["loss_task"] for row in found} == {"ppl-demo"}
    with style.drawing():
        drawn = style.svg(layers.layers(layers.read_layers(sweep)), "layers").decode()
    assert "change of loss on ppl-demo" in drawn


def test_losses_of_another_base_are_not_taken(measured):
    sweep, path = measured
    record = records.read(path, "sensitivity")
    result = record.result | {"base": digest("another", 64)}
    records.write(path, stage="sensitivity", settings={}, result=result, about={})
    assert {row["loss_change"] for row in rows(sweep)} == {""}
