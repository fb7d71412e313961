"""runs, explain, diff and gc on a results folder of bare records."""

import os

import pytest

from pipeline.__main__ import main
from pipeline.core import records

SMALL = "sweep.adapter=[lora] sweep.rank=[2,8] sweep.seed=[0] sweep.quantization=[none]"


@pytest.fixture
def results(plan, monkeypatch):
    """A finished sweep of two runs, and one run of another setting that no table names."""
    for overrides in (SMALL, f"{SMALL} sweep.rank=[8] training.learning_rate=0.5"):
        found = plan(overrides)
        for job in found.shop.jobs.values():
            about = {"code": job.made.code, "upstream": job.made.upstream, "seconds": 2.5}
            result = {"final_loss": 0.25, "steps": 7} if job.stage == "finetune" else {}
            records.write(plan.results / job.record, stage=job.stage, settings=job.settings, result=result, about=about)
        if overrides == SMALL:
            sweep = plan.results / "tables/small/sweep.json"
            records.write(sweep, stage="plan", settings={}, result=found.expected, about={})
    monkeypatch.chdir(plan.results.parent)
    return plan.results


def test_runs(results, capsys):
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert sum(line.endswith(" small") for line in lines) == 2
    assert sum(line.endswith(" none") for line in lines) == 1
    assert "0.2500" in lines[1]


def test_explain_says_whether_the_code_has_changed(results, capsys):
    assert main(["explain", "demo-none-lora-r2"]) == 0
    said = capsys.readouterr().out
    assert "train.json: ok" in said
    assert "(as it is now)" in said
    assert "changed since" not in said
    assert "  adapter.rank = 2\n" in said


def test_diff_names_what_differs_and_no_more(results, capsys):
    one, other = sorted(path.name for path in results.glob("runs/demo-none-lora-r8-*"))
    assert main(["diff", one, other]) == 0
    said = capsys.readouterr().out
    assert "  training.learning_rate: " in said
    assert "adapter.rank" not in said
    assert "result: the same" in said


def test_a_run_that_is_not_one(results, capsys):
    assert main(["explain", "demo-none-lora"]) == 1
    assert "several runs begin so" in capsys.readouterr().err
    assert main(["explain", "demo-none-lora-r22"]) == 1
    assert "Did you mean 'demo-none-lora-r" in capsys.readouterr().err


def test_gc_takes_what_no_table_names_and_nothing_else(results, capsys):
    used = {path for path in results.rglob("*.json") if "-r2-" in str(path) or "models" in str(path)}
    litter = results / ".table.md.x.unfinished"
    litter.touch()
    os.utime(litter, (0, 0))
    assert main(["gc"]) == 0
    assert len(list(results.glob("runs/*"))) == 3
    assert main(["gc", "--delete"]) == 0
    assert len(list(results.glob("runs/*"))) == 2
    assert not litter.exists()
    assert all(path.exists() for path in used)
    capsys.readouterr()
    assert main(["gc"]) == 0
    assert capsys.readouterr().out.startswith("0 unused")


def test_gc_without_a_table_removes_nothing(tmp_path, capsys):
    (tmp_path / "runs/some").mkdir(parents=True)
    assert main(["gc", "--delete", "--results", str(tmp_path)]) == 1
    assert (tmp_path / "runs/some").exists()
