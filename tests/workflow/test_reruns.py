"""Which jobs does a change run again? The real Snakefile on stand-in stages: LoRA r2 r8, OFT b8 b16, two tasks."""

import os
import re
import shutil

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

TABLE = {"plan": 1, "aggregate": 1, "figures": 1, "report": 1}
OFT = "pipeline/adapters/oft.py"


def runs(count, tasks=2):
    return {"finetune": count, "merge": count, "evaluate": count * tasks, "score": count}


def scored_again(runs_and_bases):
    return {"score": runs_and_bases - 1, "score_base": 1}


def test_nothing_changed(finished):
    assert finished.plan() == {}


def test_the_plan_names_runs_and_the_settings_that_make_them_run(finished):
    said = finished.snakemake("--dry-run", "--config", "overrides=training.learning_rate=0.5 sweep.rank=[2]")
    assert re.search(r"^ +3  finetune +new: training\.learning_rate 0\.\d+ -> 0\.5$", said, re.MULTILINE)
    assert re.search(r"^ +demo-none-lora-r2-s0-[0-9a-f]{8}$", said, re.MULTILINE)


def test_a_finished_sweep_ends_with_its_table_and_where_the_report_lies(lab):
    said = lab.snakemake("--config", "overrides=report.samples=1")
    assert re.search(r"^\[4/4\] report ", said, re.MULTILINE)
    assert "| demo-none-lora-r2-s0 | ok |" in said
    assert re.search(r"Report: results/tables/default-[0-9a-f]{8}/report.html", said)
    assert "nothing to be done" in lab.snakemake()


def test_one_task_evaluation_setting(finished):
    expected = {"evaluate": 4, "evaluate_base": 1} | scored_again(5) | TABLE
    assert finished.overridden("task.ppl-demo.generation.batch_size=3") == expected


def test_scoring_rules_generate_nothing_again(finished):
    rules = "[{_target_:pipeline.tasks.final_number.Strict}]"
    assert finished.overridden(f"task.gsm8k-demo.scoring={rules}") == scored_again(5) | TABLE


def test_new_rank_and_new_seed(finished):
    assert finished.overridden("sweep.rank=[2,8,16]") == runs(1) | TABLE
    assert finished.overridden("sweep.seed=[0,1]") == runs(4) | TABLE
    assert finished.overridden("sweep.rank=[2]") == TABLE


def test_setting_of_one_adapter(finished):
    assert finished.overridden("adapter.alpha=3.5") == runs(2) | TABLE


def test_setting_of_the_report(finished):
    assert finished.overridden("report.samples=1") == TABLE


def test_settings_that_no_result_depends_on(finished, lab):
    assert finished.overridden("tracker.project=elsewhere hardware.mem_mb=777") == {}
    lab.edit("conf/tracker/none.yaml", "project: null", "project: elsewhere")
    lab.edit("conf/hardware/cpu.yaml", "runtime: ", "runtime: 1")
    for file in (lab.folder / "conf").rglob("*.yaml"):
        os.utime(file)
    assert lab.plan() == {}


def test_comments_docstrings_and_planning_code(lab):
    lab.edit(OFT, '"""', '"""New words. ')
    lab.append(OFT, "# a comment")
    lab.append("pipeline/training/loop.py", "# a comment")
    lab.append("pipeline/sweeps/plan.py", "EDITED = 1")
    assert lab.plan() == {}


def test_an_override_leaves_the_plain_runs_alone(lab):
    override = ("--config", "overrides=training.learning_rate=0.5 evaluation.states=[trained]")
    lab.snakemake(*override)
    assert lab.plan() == {}
    assert lab.plan(*override) == {}
    assert len(list(lab.folder.glob("results/tables/default-????????/table.md"))) == 1


def test_an_edit_in_conf_has_new_folders_and_the_old_are_found_again(lab):
    lab.edit("conf/training/demo.yaml", "max_grad_norm: 1.0", "max_grad_norm: 0.5")
    assert lab.plan() == runs(4) | TABLE
    lab.snakemake()
    lab.edit("conf/training/demo.yaml", "max_grad_norm: 0.5", "max_grad_norm: 1.0")
    assert lab.plan() == TABLE


@pytest.mark.parametrize(
    ("path", "names"),
    [
        (OFT, ["oft-b16", "oft-b8"]),
        ("pipeline/adapters/turn.py", ["oft-b16", "oft-b8"]),
        ("pipeline/adapters/lora.py", ["lora-r2", "lora-r8"]),
        ("pipeline/training/loop.py", ["lora-r2", "lora-r8", "oft-b16", "oft-b8"]),
        ("pipeline/stages/prepare_model.py", ["lora-r2", "lora-r8", "oft-b16", "oft-b8"]),
    ],
)
def test_changed_code_stops_and_lists_the_runs_that_load_it(lab, path, names):
    lab.append(path, "EDITED = 1")
    said = lab.snakemake("--dry-run", code=1)
    assert sorted(re.findall(r"demo-none-(\S+)-s0-[0-9a-f]{8}:", said)) == names
    assert "code=rerun" in said
    assert "code=keep" in said
    assert "Traceback" not in said


def test_changed_code_rerun_or_kept(lab):
    lab.append(OFT, "EDITED = 1")
    assert lab.plan("--config", "code=rerun") == runs(2) | TABLE
    assert lab.plan("--config", "code=keep") == TABLE
    lab.snakemake("--config", "code=keep")
    kept = [line for line in lab.table() if "finetune" in line]
    assert len(kept) == 2
    assert all("oft" in line for line in kept)
    assert lab.plan("--config", "code=keep") == {}
    lab.snakemake("--config", "code=rerun")
    assert not [line for line in lab.table() if "finetune" in line]
    assert lab.plan() == {}


def test_code_that_changes_under_a_running_sweep_is_not_recorded_as_the_old(lab):
    shutil.rmtree(next(lab.folder.glob("results/runs/*oft-b8-*")))
    said = lab.snakemake(pretend="edit:pipeline/stages/merge.py", code=1)
    assert "the plan was for code:" in said


def test_changed_code_of_evaluation_trains_nothing(lab):
    lab.append("pipeline/stages/evaluate.py", "EDITED = 1")
    assert lab.plan() == {"evaluate": 8, "evaluate_base": 2} | scored_again(5) | TABLE


def test_a_failed_rerun_never_mixes_old_and_new(lab):
    """The stand-in of aggregate refuses any record that is not of the code and settings of the plan."""
    before = lab.table()
    lab.append("pipeline/training/loop.py", "EDITED = 1")
    said = lab.snakemake("--config", "code=rerun", pretend="fail:lora-r2", code=1)
    assert "pretended failure" in said
    assert re.search(r"^FAILED finetune demo-none-lora-r2-s0-", said, re.MULTILINE)
    assert re.search(r"^\S*python -m pipeline finetune --gpus 0 --config '\{", said, re.MULTILINE)
    assert lab.table() == before
    assert lab.plan() == runs(1) | {rule: 1 for rule in TABLE if rule != "plan"}
    lab.snakemake()
    assert len(lab.table()) == 5
    assert lab.plan() == {}


def test_a_diverged_run_is_a_row_and_may_be_retried(lab):
    shutil.rmtree(next(lab.folder.glob("results/runs/*oft-b8-*")))
    lab.snakemake(pretend="diverge:oft-b8")
    assert [line for line in lab.table() if "diverged" in line] == [line for line in lab.table() if "oft-b8" in line]
    assert lab.plan() == {}
    assert lab.plan("--config", "retry=failed") == runs(1) | TABLE
    lab.snakemake("--config", "retry=failed")
    assert not [line for line in lab.table() if "diverged" in line]
    assert lab.plan() == {}


def test_results_may_be_a_link(lab, tmp_path):
    shutil.move(lab.folder / "results", tmp_path / "elsewhere")
    (lab.folder / "results").symlink_to(tmp_path / "elsewhere")
    assert lab.plan() == {}


def test_wrong_settings_are_one_message_and_run_nothing(finished):
    said = finished.snakemake("--config", "overrides=adapter=lroa", code=1)
    assert "adapter: there is no adapter 'lroa'. Did you mean 'lora'? Allowed: adalora, " in said
    assert "Traceback" not in said
    assert "Job stats" not in said
