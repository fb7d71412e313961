from dataclasses import replace

import pytest

from pipeline.aggregation import rows, sweep
from pipeline.core import records
from pipeline.core.records import RecordError
from tests.aggregation.made_up import SMALL, rewrite

RUN = "tiny-nf4-double-lora-rank-8-s1"


def one(plan):
    return next(run for run in rows.collect(sweep.load(plan)) if run.subject.name == RUN)


@pytest.mark.parametrize("part", ["train.json", "score/tasks-0badf00d.json", "evaluate/gsm8k-demo-0badf00d.json"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"settings": {"rank": 9}}, "other settings"),
        ({"about": {"code": "code:other", "upstream": "upstream:33cc44dd"}}, "other code"),
        ({"about": {"code": "code:11aa22bb", "upstream": "upstream:other"}}, "other earlier steps"),
    ],
)
def test_a_record_that_does_not_fit_the_plan_is_a_missing_one(small, part, changes, reason):
    path = small.parents[2] / "runs" / f"{RUN}-00000000" / part
    assert not one(small).problems()
    rewrite(path, **changes)
    ((status, said),) = one(small).problems()
    assert status == "missing"
    assert reason in said
    assert f"runs/{RUN}-00000000/{part}" in said
    assert str(small.parents[2]) not in said
    stale = {"gsm8k-demo"} if part.startswith("evaluate") else {task for task, *_ in SMALL["tasks"]}
    assert not stale & {score.task for score in one(small).scores}


@pytest.mark.parametrize("damage", [lambda text: text[:-40], lambda text: text.replace(b"100.0", b"000.0", 1)])
def test_a_damaged_record_is_a_missing_one(small, damage):
    path = small.parents[2] / "runs" / f"{RUN}-00000000/score/tasks-0badf00d.json"
    path.write_bytes(damage(path.read_bytes()))
    ((status, said),) = one(small).problems()
    assert status == "missing"
    assert "whole record" in said or "damaged" in said


def test_a_plan_that_lacks_a_key_names_it(small):
    result = records.read(small).result
    del result["runs"][0]["kept"]
    rewrite(small, result=result)
    with pytest.raises(RecordError, match=r"sweep\.json: the plan lacks or misspells 'kept'"):
        sweep.load(small)


def test_labels():
    assert sweep.split_label("trained") == ("trained", None)
    assert sweep.split_label("requantized-dequantized@r16") == ("requantized-dequantized", 16)
    with pytest.raises(RecordError, match="Trained!"):
        sweep.split_label("Trained!")


def test_lines_are_told_apart_by_what_differs(make):
    plan = sweep.load(make(**SMALL, learning_rates=[1e-3, 2e-3]))
    names = sweep.variants(plan.runs)
    assert set(names.values()) == {"learning_rate=0.001", "learning_rate=0.002"}
    assert len(names) == 6  # LoRA at two sizes and DyLoRA, each at two rates; seeds share a line


def test_files_of_conf_stand_for_the_settings_in_them(make):
    plan = sweep.load(make(**SMALL, learning_rates=[1e-3, 2e-3]))
    named = [replace(run, files={"training": f"t{run.settings['training']['learning_rate']}"}) for run in plan.runs]
    assert set(sweep.variants(tuple(named)).values()) == {"training=t0.001", "training=t0.002"}
    one_file = [replace(run, files={"training": "t"}) for run in plan.runs]
    assert set(sweep.variants(tuple(one_file)).values()) == {"learning_rate=0.001", "learning_rate=0.002"}


def test_what_nothing_else_has_needs_no_telling(small):
    assert set(sweep.variants(sweep.load(small).runs).values()) == {""}
