"""A path holds the digest of all that decides what lies there, and of nothing else."""

import json
import re

import pytest

from pipeline.core import records

SMALL = "sweep.adapter=[lora,oft] sweep.rank=[2] sweep.block_size=[8] sweep.seed=[0] sweep.quantization=[none]"


def _paths(plan, rule):
    return {job.record for key, job in plan.shop.jobs.items() if key[0] == rule}


def _moved(plan, overrides, rules):
    before, after = plan(SMALL), plan(f"{SMALL} {overrides}")
    return {rule for rule in rules if _paths(before, rule) != _paths(after, rule)}


RULES = (
    "prepare_model", "prepare_data", "quantize_base", "finetune", "merge", "evaluate", "evaluate_base", "score",
    "score_base",
)  # fmt: skip
DOWNSTREAM = {"finetune", "merge", "evaluate", "score"}
ASKED = {"evaluate", "score", "evaluate_base", "score_base"}


@pytest.mark.parametrize(
    ("overrides", "moved"),
    [
        ("training.learning_rate=0.5", DOWNSTREAM),
        ("optimizer.weight_decay=0.5", DOWNSTREAM),
        ("adapter.alpha=3.5", DOWNSTREAM),
        ("task.ppl-demo.generation.batch_size=3", ASKED),
        ("task.gsm8k-demo.generation.limit=3", ASKED),
        ("task.gsm8k-demo.role=retention", set()),
        ("task.gsm8k-demo.scoring=[{_target_:pipeline.tasks.final_number.Strict}]", {"score", "score_base"}),
        ("task.ppl-demo.data.test=100", {"prepare_data", *ASKED}),
        ("task.gsm8k-demo.data.train=100", {"prepare_data", "finetune", "merge", *ASKED}),
        ("evaluation.states=[trained]", {"evaluate", "score"}),
        ("hardware.threads=2", set(RULES) - {"prepare_data"}),
        ("model.training.steps=7", set(RULES) - {"prepare_data"}),
        ("tracker.project=x hardware.mem_mb=9 hardware.runtime=9 hardware.gpus=1 report.samples=1", set()),
    ],
)
def test_what_moves(plan, overrides, moved):
    assert _moved(plan, overrides, RULES) == moved


def test_an_adapter_that_takes_a_part_of_the_weights_trains_on_a_base_of_its_own(plan):
    made = plan("sweep.adapter=[lora,loftq] sweep.quantization=[nf4-double] sweep.seed=[0] sweep.rank=[2,8]")
    trained = {run.folder: run.finetune.needs["base"] for run in made.runs}
    assert len(set(trained.values())) == 3, "one for LoRA, one for each rank of LoftQ"
    assert {run.base for run in made.runs} == {base.job for base in made.bases}, "all are compared with the plain base"
    assert len(made.bases) == 1
    (folder,) = (base.wildcards[0] for name, base in trained.items() if "loftq-r2" in name)
    assert re.fullmatch(r"demo-nf4-double-loftq-[0-9a-f]{8}", folder)
    assert "pipeline.adapters.loftq" not in made.bases[0].job.cfg


def test_paths_have_the_letters_of_wildcards_and_names_that_people_read(plan):
    for job in plan().shop.jobs.values():
        assert all(re.fullmatch(r"[a-z0-9.-]+-[0-9a-f]{8}", name) for name in job.wildcards)
    assert re.fullmatch(r"demo-none-lora-r2-s0-[0-9a-f]{8}", plan(SMALL).runs[0].folder)


def test_no_machine_and_no_resource_in_params(plan):
    texts = [job.cfg for job in plan("hardware.mem_mb=12345").shop.jobs.values()]
    assert not any("12345" in text or str(plan.results.parent) in text for text in texts)


def test_overrides_have_a_table_of_their_own(plan):
    assert plan().table == plan("tracker.project=x").table == "default"
    assert re.fullmatch(r"default-[0-9a-f]{8}", plan("report.samples=1").table)
    assert plan("report.samples=1 training.steps=9").table == plan("training.steps=9  report.samples=1").table


def test_the_plan_of_the_table_is_short_on_the_command_line_and_whole_in_a_file(plan):
    found = plan("sweep.seed=[0,1,2,3,4,5,6,7,8,9]")
    assert max(map(len, (found.plan_cfg, found.report_cfg, *(job.cfg for job in found.shop.jobs.values())))) < 8000
    assert json.loads(found.expected_file.read_text()) == json.loads(json.dumps(found.expected))
    assert len(found.expected["runs"]) == 140


def _finish(plan, jobs, **other):
    for job in jobs:
        about = {"code": job.made.code, "upstream": job.made.upstream} | other
        records.write(plan.root / job.record, stage=job.stage, settings=job.settings, result={}, about=about)


def test_changed_code_is_kept_only_behind_records_that_are_there(plan):
    found = plan(SMALL)
    _finish(found, found.shop.jobs.values(), code="code:old")
    kept = plan(SMALL, code="keep")
    run = kept.runs[0]
    assert run.finetune.made.code == run.merge.made.code == "code:old"
    assert "finetune" in kept.expected["runs"][0]["kept"]
    (plan.results / run.finetune.record).unlink()
    run = plan(SMALL, code="keep").runs[0]
    assert run.finetune.made == run.finetune.now
    assert run.merge.made == run.merge.now


def test_retry_counts_in_the_record_of_a_failed_run_alone(plan):
    found = plan(SMALL)
    _finish(found, found.shop.jobs.values())
    job = found.runs[0].finetune
    about = {"code": job.made.code, "upstream": job.made.upstream}
    failed = {"stage": job.stage, "settings": job.settings, "result": {"reason": "x"}, "status": "diverged"}
    records.write(plan.results / job.record, about=about, **failed)
    assert plan(SMALL).runs[0].finetune.made == job.made
    again = plan(SMALL, retry="failed")
    assert again.runs[0].finetune.made.upstream == f"{job.made.upstream}.1"
    assert again.runs[1].finetune.made == found.runs[1].finetune.made
    assert not again.changed()
    records.write(plan.results / job.record, about=about | {"upstream": f"{job.made.upstream}.1"}, **failed)
    assert plan(SMALL).runs[0].finetune.made.upstream == f"{job.made.upstream}.1"
    assert plan(SMALL, retry="failed").runs[0].finetune.made.upstream == f"{job.made.upstream}.2"
