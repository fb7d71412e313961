import hashlib
import shutil
import subprocess
import sys

import pytest

from pipeline.aggregation.command import main
from pipeline.aggregation.files import NAMES
from pipeline.core import records
from pipeline.core.records import RecordError
from pipeline.core.settings import digest
from pipeline.stages import aggregate, figures, report

MADE = ["aggregate.json", "layers.csv", "report.html", "rows.csv", "table.csv", "table.md", "table.tex", "table.txt"]
FIGURES = [
    "block-range", "drawn-ranks", "effective-rank", "layers", "rank-curve", "retention-vs-gain",
    "score-vs-parameters", "states", "training-curves", "update-size",
]  # fmt: skip


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "sweep.json"
    }


@pytest.fixture
def undrawn(monkeypatch):
    """Draw no figures, which take most of the time of a table."""
    monkeypatch.setattr("pipeline.aggregation.figures.draw", lambda *_: {"states.svg": b"<svg></svg>"})
    monkeypatch.setattr("pipeline.aggregation.insight.draw", lambda *_: {})


def test_the_same_bytes_again_from_a_copy_elsewhere(small, tmp_path, capsys):
    results = small.parents[2]
    assert main([str(results), "--sweep", "demo"]) == 0
    first = contents(small.parent)
    assert sorted(first) == sorted([*MADE, *(f"figures/{name}.svg" for name in FIGURES)])
    copy = tmp_path / "another machine" / "kept-results"
    shutil.copytree(results, copy, ignore=shutil.ignore_patterns(*MADE, "figures"))
    assert main([str(copy)]) == 0
    assert contents(copy / "tables/demo") == first
    assert "gsm8k-0shot-" in capsys.readouterr().out


def test_a_partial_table_never_takes_the_place_of_the_whole_one(small, undrawn, capsys):
    results = small.parents[2]
    assert main([str(results)]) == 0
    whole = contents(small.parent)
    record = next((results / "runs").glob("*-lora-rank-2-s1-*/train.json"))
    trained = record.read_bytes()
    record.unlink()
    assert main([str(results)]) == 3
    assert "1 record is missing or does not fit:\n  tiny-nf4-double-lora-rank-2-s1" in capsys.readouterr().out
    assert main([str(results), "--partial"]) == 0
    after = contents(small.parent)
    assert {name: after[name] for name in whole} == whole
    assert sorted(name for name in after if name.startswith("partial/")) == [
        f"partial/{name}" for name in sorted(whole)
    ]
    assert "Partial table:" in (small.parent / "partial/report.html").read_text()
    record.write_bytes(trained)
    assert main([str(results)]) == 0
    assert contents(small.parent) == whole, "and it goes with the complete one"


def test_a_sweep_that_is_not_there_is_named(small):
    with pytest.raises(RecordError, match=r"no sweep 'dmeo' under tables/ \(found: demo\)"):
        main([str(small.parents[2]), "--sweep", "dmeo"])
    with pytest.raises(RecordError, match="no planned sweep"):
        main([str(small.parents[2] / "runs")])


def run_stages(plan, folder):
    """Run the three stages as the workflow does."""
    settings = {"sweep": "demo", "report": {"_target_": "pipeline.aggregation.settings.Report"}}
    outputs = {key: folder / name for key, name in NAMES.items()}
    about = {"started": 0.0, "code": "code:1", "upstream": "upstream:2"}
    inputs = {"sweep": plan, "record": outputs["record"], "figures": folder / "figures"}
    aggregate.run(settings, {"sweep": plan}, outputs, dict(about))
    figures.run(settings, inputs, {"folder": folder / "figures"}, dict(about))
    outputs = {"html": folder / "report.html", "record": folder / "report.json"}
    report.run(settings, inputs, outputs, dict(about))


def test_the_stages_make_what_the_command_makes(small, undrawn, tmp_path):
    run_stages(small, tmp_path / "staged")
    assert main([str(small.parents[2])]) == 0
    made = contents(small.parent)
    assert records.read(tmp_path / "staged/report.json").about["files"].keys() == made.keys()
    (tmp_path / "staged/report.json").unlink()
    assert contents(tmp_path / "staged") == made


def test_the_workflow_never_tables_what_does_not_fit(small, tmp_path):
    record = next((small.parents[2] / "runs").glob("*-lora-rank-2-s1-*/merge.json"))
    old = records.read(record)
    records.write(record, stage="merge", settings={"other": 1}, result=old.result, about=old.about)
    with pytest.raises(RecordError, match=r"1 record is missing or does not fit.*\n.*merge\.json: was made with other"):
        run_stages(small, tmp_path / "staged")
    assert not (tmp_path / "staged").exists()


def test_a_changed_setting_of_the_report_reaches_the_table(small, undrawn):
    results = small.parents[2]
    main([str(results)])
    before = contents(small.parent)
    plan = records.read(small)
    changed = plan.result | {"report": plan.result["report"] | {"state": "merged-original", "seed": 5}}
    records.write(small, stage="plan", settings={}, result=changed, about={})
    main([str(results)])
    after = contents(small.parent)
    assert after["rows.csv"] == before["rows.csv"]
    assert after["table.md"] != before["table.md"]
    assert records.read(small.parent / "aggregate.json").settings["report"]["seed"] == 5


def test_tables_need_neither_torch_nor_a_workflow(small):
    code = (
        "import sys; from pipeline.__main__ import main; status = main(['table', sys.argv[1]]);"
        "heavy = {'torch', 'transformers', 'hydra', 'snakemake', 'datasets', 'pandas'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(small.parents[2])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Report: " in done.stdout


def test_expected_digests_are_those_that_plans_write(small):
    """The plan holds 16 hex digits of each record's settings, and so does `fetch` count them."""
    expected = records.read(small).result["runs"][0]["records"]["finetune"]
    assert expected["settings"] == digest(records.read(small.parents[2] / expected["path"]).settings, 16)
