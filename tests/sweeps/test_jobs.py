"""A path holds the digest of all that decides what lies there, and of nothing else."""

import json
import re

import pytest

from pipeline.core import records
from pipeline.core.settings import SettingsError

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
        ("model.training.steps=77", set(RULES) - {"prepare_data"}),
        ("tracker=wandb", set()),
        ("tracker.project=x hardware.mem_mb=9 hardware.runtime=9 hardware.gpus=1 report.samples=1", set()),
        ("hardware.price_per_hour=2.5", set()),
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


@pytest.mark.parametrize(
    ("always", "setting"),
    [
        ("", "training.checkpoint_every=7"),
        ("", "model.training.checkpoint_every=7"),
        ("sweep.optimizer=[paged-adamw]", "optimizer.budget_bytes=7"),
    ],
)
def test_what_changes_no_bit_moves_nothing_and_reaches_its_job(plan, always, setting):
    before, after = plan(f"{SMALL} {always}"), plan(f"{SMALL} {always} {setting}")
    assert {job.record for job in after.shop.jobs.values()} == {job.record for job in before.shop.jobs.values()}
    assert after.shop.jobs.keys() == before.shop.jobs.keys()
    assert after.runs[0].finetune.now == before.runs[0].finetune.now
    assert sum(f'"{setting.rpartition(".")[2].partition("=")[0]}":7' in j.cfg for j in after.shop.jobs.values()) >= 1
    assert {**after.expected, "name": "", "overrides": []} == {**before.expected, "name": "", "overrides": []}
    assert after.table == before.table or always


def test_auto_is_the_device_that_the_plan_sees(plan, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    on_cpu = plan(f"{SMALL} hardware.device=auto")
    assert on_cpu.grid.remarks[-1].startswith("hardware.device=auto: cpu")
    assert _paths(on_cpu, "finetune") == _paths(plan(SMALL), "finetune")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert _paths(plan(f"{SMALL} hardware.device=auto"), "finetune") == _paths(
        plan(f"{SMALL} hardware.device=cuda"), "finetune"
    )


def test_no_machine_and_no_resource_in_params(plan):
    texts = [job.cfg for job in plan("hardware.mem_mb=12345").shop.jobs.values()]
    assert not any("12345" in text or str(plan.results.parent) in text for text in texts)


def test_jobs_are_told_of_the_tracker_by_the_environment_alone(plan):
    assert plan(SMALL).tracker == ""
    found = plan(f"{SMALL} tracker=wandb tracker.project='a name'")
    root = str(plan.results)
    assert json.loads(found.tracker) == {"project": "a name", "group": "default", "root": root}
    texts = [found.report_cfg, found.plan_cfg, *(job.cfg for job in found.shop.jobs.values())]
    assert not any("a name" in text or "wandb" in text for text in texts)


def test_overrides_have_a_table_of_their_own(plan):
    assert plan().table == plan("tracker.project=x").table == plan("tracker=wandb").table == "default"
    assert re.fullmatch(r"default-[0-9a-f]{8}", plan("report.samples=1").table)
    assert plan("report.samples=1 training.steps=90").table == plan("training.steps=90  report.samples=1").table


def test_the_plan_of_the_table_is_short_on_the_command_line_and_whole_in_a_file(plan):
    found = plan("sweep.seed=[0,1,2,3,4,5,6,7,8,9]")
    assert max(map(len, (found.plan_cfg, found.report_cfg, *(job.cfg for job in found.shop.jobs.values())))) < 8000
    assert json.loads(found.expected_file.read_text()) == json.loads(json.dumps(found.expected))
    assert len(found.expected["runs"]) == 140


def _write(plan, job, **other):
    about = {"code": job.made.code, "upstream": job.made.upstream} | other.pop("about", {})
    kept = {"stage": job.stage, "settings": job.settings, "result": {}} | other
    records.write(plan.root / job.record, about=about, **kept)


@pytest.fixture
def finished(plan):
    """A plan whose records are all there."""
    found = plan(SMALL)
    for job in found.shop.jobs.values():
        _write(found, job)
    return found


def due(plan, **config):
    return sorted(job.rule for job in plan(SMALL, **config).shop.jobs.values() if job.due)


def test_changed_code_is_kept_and_what_is_missing_is_made_by_the_code_of_now(plan, finished):
    for job in finished.shop.jobs.values():
        _write(finished, job, about={"code": "code:old"})
    kept = plan(SMALL, code="keep")
    run = kept.runs[0]
    assert run.finetune.made.code == run.merge.made.code == "code:old"
    assert "finetune" in kept.expected["runs"][0]["kept"]
    assert due(plan, code="keep") == []
    (plan.results / run.finetune.record).unlink()
    run = plan(SMALL, code="keep").runs[0]
    assert run.finetune.made == run.finetune.now
    assert run.merge.made == run.merge.now
    assert due(plan, code="keep") == ["evaluate"] * 4 + ["finetune", "merge", "score"]


def test_a_file_that_a_record_names_and_that_is_gone_or_cut_makes_the_job_due(plan, finished):
    job = finished.runs[0].finetune
    adapter = (plan.results / job.record).parent / "adapter"
    adapter.write_bytes(b"12345")
    _write(finished, job, about={"files": {"adapter": 5}})
    assert due(plan) == []
    adapter.write_bytes(b"1234")
    assert due(plan) == ["evaluate"] * 4 + ["finetune", "merge", "score"]
    assert plan(SMALL).runs[0].finetune.lost == "adapter has 4 bytes, not 5"
    adapter.unlink()
    assert plan(SMALL).why(("finetune", *job.wildcards)) == "adapter is missing"
    assert plan(SMALL).changed() == []
    assert plan(SMALL, code="keep").runs[0].finetune.due, "there is nothing to keep"


def test_a_deleted_manifest_never_trains_again_unasked(plan, finished):
    manifest = finished.runs[0].finetune.needs["data"]
    (plan.results / manifest.record).unlink()
    with pytest.raises(SettingsError, match=r"2 finished .*\n.*: prepare_data \(its record is missing\)") as caught:
        plan(SMALL).start()
    assert "code=keep" in str(caught.value)
    kept = plan(SMALL, code="keep")
    assert [job.rule for job in kept.shop.jobs.values() if job.due] == ["prepare_data"]
    assert kept.lost == [f"{plan.results}/{manifest.record}"]
    assert kept.expected["runs"][0]["kept"] == [], "the same code makes the same again"
    assert "finetune" in due(plan, code="rerun")


def test_what_stands_on_a_changed_step_is_due(plan, finished):
    _write(finished, finished.runs[0].evaluate["gsm8k-demo"], about={"code": "code:old"})
    assert due(plan) == ["evaluate", "score"]
    assert due(plan, code="keep") == []


@pytest.mark.parametrize("part", ["finetune", "merge", "evaluate"])
def test_retry_counts_in_the_record_of_what_failed_alone(plan, finished, part):
    job = getattr(finished.runs[0], part)
    job = job["gsm8k-demo"] if part == "evaluate" else job
    failed = {"result": {"reason": "x"}, "status": "diverged"}
    _write(finished, job, **failed)
    again = plan(SMALL, retry="failed")

    def now(found):
        return found.shop.jobs[job.rule, *job.wildcards].made

    assert now(plan(SMALL)) == job.made
    assert now(again).upstream == f"{job.made.upstream}.1"
    assert again.runs[1].finetune.made == finished.runs[1].finetune.made
    assert not again.changed()
    assert "score" in due(plan, retry="failed")
    assert due(plan, retry="failed", code="keep") == due(plan, retry="failed")
    _write(finished, job, about={"upstream": f"{job.made.upstream}.1"}, **failed)
    assert now(plan(SMALL)).upstream == f"{job.made.upstream}.1"
    assert now(plan(SMALL, retry="failed")).upstream == f"{job.made.upstream}.2"


def test_a_failure_that_was_passed_on_is_not_tried_by_itself(plan, finished):
    run = finished.runs[0]
    for job in (run.finetune, run.merge):
        _write(finished, job, result={"reason": "x"}, status="diverged")
    again = plan(SMALL, retry="failed").runs[0]
    assert (again.finetune.retried, again.merge.retried, again.merge.due) == (True, False, True)
