"""A small sweep from nothing to its table, through the real Snakefile; what runs again, and what comes out again."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.core import records
from tests.e2e.jobs import ROOT, SMOKE, environment, snakemake
from tests.e2e.lab import Lab

TABLES = Path("results/tables")
MADE = ("table.md", "table.csv", "table.tex", "rows.csv", "report.html")


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".snakemake_timestamp"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_ends_with_the_table(finished):
    folder, printed = finished
    table = folder / TABLES / "smoke"
    for name in MADE:
        assert (table / name).stat().st_size > 0, name
    assert len(list((table / "figures").glob("*.svg"))) >= 4
    end = printed.splitlines()[-40:]
    for method in ("base alone", "LoRA", "DyLoRA", "OFTv2", "AdaLoRA"):
        assert any(line.strip("| ").startswith(method) for line in end), printed
    assert str(TABLES / "smoke" / "report.html") in end[-1]


def test_second_run_plans_nothing(sweep):
    before = contents(sweep / "results")
    done = snakemake(sweep, "--cores", "2", "--config", SMOKE)
    assert done.returncode == 0, done.stdout
    assert "nothing to be done" in done.stdout.lower(), done.stdout
    assert contents(sweep / "results") == before


def test_copied_results_give_the_same_bytes(sweep, tmp_path):
    shutil.copytree(sweep / "results", tmp_path / "results")
    before = contents(sweep / TABLES)
    for name in (*MADE, "figures"):
        made = tmp_path / TABLES / "smoke" / name
        shutil.rmtree(made) if made.is_dir() else made.unlink()
    command = [sys.executable, "-m", "pipeline", "table", "results/"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = contents(tmp_path / TABLES)
    assert {name for name in before if after.get(name) != before[name]} == set()


def test_one_seed_gives_the_same_adapter_and_two_seeds_differ(sweep, all_jobs, job, tmp_path):
    lora = [one for one in all_jobs if one.stage == "finetune" and "lora.LoRA" in " ".join(one.command)]
    folders = {one.outputs["record"].parent.name.rpartition("-s")[2][0]: one.outputs["record"].parent for one in lora}
    assert len(folders) >= 2, "the small sweep has two seeds"
    adapters = [(sweep / folder / "adapter/adapter_model.safetensors").read_bytes() for folder in folders.values()]
    assert len(set(adapters)) == len(adapters)
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        shutil.copytree(sweep / "results", place / "results")
        lora[0].clear(place)
    labs = [Lab(ROOT), Lab(ROOT)]
    with ThreadPoolExecutor() as both:
        done = list(both.map(lambda lab, place: lab.run(lora[0].command, place), labs, places))
    for lab in labs:
        lab.close()
    assert [one.code for one in done] == [0, 0], done
    record = lora[0].outputs["record"]
    first = (sweep / record.parent / "adapter/adapter_model.safetensors").read_bytes()
    for place in places:
        assert (place / record.parent / "adapter/adapter_model.safetensors").read_bytes() == first
        assert records.read(place / record).result == records.read(sweep / record).result


def test_divergence_is_a_row_and_the_table_finishes(copy):
    plain = contents(copy / TABLES / "smoke")
    done = snakemake(copy, "--cores", "2", "--config", SMOKE, "overrides=training.learning_rate=1e3")
    assert done.returncode == 0, done.stdout
    (other,) = [path for path in (copy / TABLES).iterdir() if path.name != "smoke"]
    assert "diverged" in (other / "table.md").read_text()
    assert (other / "report.html").exists()
    assert contents(copy / TABLES / "smoke") == plain
    done = snakemake(copy, "--cores", "2", "--config", SMOKE)
    assert "nothing to be done" in done.stdout.lower(), done.stdout
