"""What is gone, cut short or copied without Snakemake's memory: the records decide what runs, and say why."""

import os
import re
import shutil
import zlib

import pytest

from tests.workflow.test_reruns import OFT, TABLE, scored_again

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


def forget(lab):
    """Take away all that Snakemake remembers, and give every file another time of change."""
    shutil.rmtree(lab.folder / ".snakemake")
    for path in lab.folder.glob("results/**/*"):
        os.utime(path, (0, zlib.crc32(str(path).encode()) % 10**9))


def test_a_copy_is_worth_what_it_was_worth_and_code_edits_are_seen_in_it(lab):
    forget(lab)
    assert lab.plan() == {}
    lab.append("pipeline/stages/evaluate.py", "EDITED = 1")
    evaluated = {"evaluate": 8, "evaluate_base": 2} | scored_again(5) | TABLE
    assert lab.plan() == evaluated
    lab.append(OFT, "EDITED = 1")
    assert "code=rerun" in lab.snakemake("--dry-run", code=1)
    assert lab.plan("--config", "code=rerun") == evaluated | {"finetune": 2, "merge": 2}


@pytest.mark.parametrize(
    ("gone", "planned"),
    [
        (["tables/default/sweep.json"], TABLE),
        (["tables/default/figures/states.svg"], {rule: 1 for rule in TABLE if rule != "plan"}),
        (["tables", "runs/*-oft-b8-*/merge.json"], {"merge": 1, "evaluate": 2, "score": 1} | TABLE),
        (
            ["runs/*-lora-r2-*/adapter", "runs/*-lora-r8-*/evaluate/ppl-demo-*.jsonl", "tables/default/table.csv"],
            {"finetune": 1, "merge": 1, "evaluate": 3, "score": 2, "aggregate": 1, "figures": 1, "report": 1},
        ),
    ],
)
def test_what_somebody_deleted_is_made_again_and_no_more(lab, gone, planned):
    for path in [path for one in gone for path in (lab.folder / "results").glob(one)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert lab.plan() == planned
    if len(gone) == 3:
        lab.snakemake()
        assert all(list((lab.folder / "results").glob(one)) for one in gone)
        assert lab.plan() == {}


def test_neither_a_deleted_manifest_nor_a_shell_line_trains_nothing_unasked(lab):
    (manifest,) = (lab.folder / "results").glob("data/gsm8k-demo-*/manifest.json")
    manifest.unlink()
    said = lab.snakemake("--dry-run", code=1)
    assert "4 finished fine-tune(s) would be trained again" in said
    assert "prepare_data (its record is missing)" in said
    assert lab.plan("--config", "code=keep") == {"prepare_data": 1} | {r: 1 for r in TABLE if r != "plan"}
    lab.snakemake("--config", "code=keep")
    assert manifest.exists()
    lab.edit("rules/finetune.smk", "python -m pipeline finetune", "nice python -m pipeline finetune")
    assert lab.plan() == {}


def test_kept_code_does_not_keep_a_deleted_output_from_being_made(lab):
    lab.append(OFT, "EDITED = 1")
    lab.snakemake("--config", "code=keep")
    (path,) = (lab.folder / "results").glob("runs/*-oft-b8-*/evaluate/ppl-demo-*.jsonl")
    path.unlink()
    lab.snakemake("--config", "code=keep")
    assert path.exists()


def test_a_failed_evaluation_may_be_retried_alone(lab):
    shutil.rmtree(next(lab.folder.glob("results/runs/*oft-b8-*/evaluate")))
    lab.snakemake(pretend="diverge:evaluate/ppl-demo")
    assert lab.plan("--config", "retry=failed") == {"evaluate": 1, "score": 1} | TABLE
    lab.snakemake("--config", "retry=failed")
    assert lab.plan("--config", "retry=failed") == {}


def test_by_hand_all_can_be_asked_for(lab):
    said = lab.snakemake("--dry-run", "--forceall")
    assert re.search(r"^ +4  finetune +asked for by hand$", said, re.MULTILINE)
