import csv
import io

import numpy as np
import pytest

from pipeline.aggregation import rows, sweep
from pipeline.core import records
from pipeline.core.records import RecordError
from tests.aggregation.made_up import rewrite


def read(plan):
    loaded = sweep.load(plan)
    return list(csv.DictReader(io.StringIO(rows.to_csv(loaded, rows.collect(loaded)).decode())))


def test_one_row_for_each_run_state_and_rule(demo):
    found = read(demo)
    keys = [tuple(row[key] for key in ("folder", "state", "rank", "task", "rule")) for row in found]
    assert len(set(keys)) == len(keys)
    assert {row["seed"] for row in found if row["adapter"]} == {"0", "1"}
    base = [row for row in found if row["state"] == "base"]
    assert len(base) == 2 * (2 + 2 + 1 + 4)
    dylora = [row for row in found if row["adapter"] == "dylora" and row["task"] == "ppl-demo" and row["seed"] == "0"]
    assert {row["rank"] for row in dylora} == {"1", "2", "4", "8"}
    assert {row["shipped_parameters"] for row in dylora if row["rank"] == "2"} == {"1024"}
    assert {row["trainable_parameters"] for row in dylora} == {"4096"}


def test_scores_are_those_of_the_records(demo):
    record = records.read(demo.parents[2] / "runs/tiny-none-lora-rank-2-s0-00000000/score/tasks-0badf00d.json")
    expected = record.result["tasks"]["ppl-demo"]["rules"]["ppl"]["states"]["trained"]["score"]
    (row,) = [
        row
        for row in read(demo)
        if row["folder"].startswith("runs/tiny-none-lora-rank-2-s0")
        and (row["task"], row["state"]) == ("ppl-demo", "trained")
    ]
    assert float(row["score"]) == expected
    assert row["code"] == "kept"


def test_what_diverged_has_a_row_with_its_reason(demo):
    failed = [row for row in read(demo) if row["status"] == "diverged"]
    assert len(failed) == 3
    assert {row["score"] for row in failed} == {""}
    assert {row["reason"] for row in failed} == {"the loss is not finite"}


def test_a_score_that_its_items_do_not_give_is_refused(small):
    path = next((small.parents[2] / "runs").glob("*-lora-rank-2-s0-*/score/tasks-*.json"))
    result = records.read(path).result
    result["tasks"]["gsm8k-demo"]["rules"]["strict"]["states"]["trained"]["score"] += 0.5
    rewrite(path, result=result)
    with pytest.raises(RecordError, match=r"strict, trained: the score .* does not follow from its 60 item scores"):
        read(small)


def test_another_generation_than_the_plans_is_refused(small):
    path = next((small.parents[2] / "runs").glob("*-lora-rank-2-s0-*/score/tasks-*.json"))
    result = records.read(path).result
    result["tasks"]["gsm8k-demo"]["generation_id"] = "gsm8k-8shot"
    rewrite(path, result=result)
    with pytest.raises(RecordError, match="scores 'gsm8k-8shot', the plan says 'gsm8k-0shot-demo-v1'"):
        read(small)


def test_means_are_summed_up_as_the_rule_says():
    assert rows.summarize(2.0, "mean") == 2
    assert rows.summarize(np.log([2.0, 4.0]), "exp-mean") == pytest.approx([2, 4])
    with pytest.raises(RecordError, match="got 'median'"):
        rows.summarize(1.0, "median")
