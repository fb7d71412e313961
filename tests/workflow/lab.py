"""A copy of the house in which stand-in stages take milliseconds: the real Snakefile, rules, conf and planning."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAGES = Path(__file__).parent / "stages"
SWEEP = """
_target_: pipeline.sweeps.settings.Sweep
name: default
model: [demo]
quantization: [none]
adapter: [lora, oft]
optimizer: [adamw]
training: [demo]
rank: [2, 8]
block_size: [8, 16]
seed: [0]
task: [gsm8k-demo, ppl-demo]
"""


class Lab:
    """One copy. Four runs: LoRA of rank 2 and 8, OFT of block size 8 and 16."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        for name in ("Snakefile", "rules", "conf", "pipeline", "profiles", "docs", "snakemake_logger_plugin_sweep"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, folder / name)
        shutil.copy(ROOT / "environment.yml", folder)
        shutil.copytree(STAGES, folder / "pipeline/stages", dirs_exist_ok=True)
        (folder / "conf/sweep/default.yaml").write_text(SWEEP)

    def copy(self, folder: Path) -> "Lab":
        """Return a second one in the same state."""
        other = object.__new__(Lab)
        other.folder = Path(shutil.copytree(self.folder, folder, symlinks=True))
        return other

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace the first `old` in a file."""
        file = self.folder / path
        text = file.read_text()
        assert old in text, (path, old)
        file.write_text(text.replace(old, new, 1))

    def append(self, path: str, line: str) -> None:
        """Add a line to a file."""
        file = self.folder / path
        file.write_text(f"{file.read_text()}\n{line}\n")

    def table(self, name: str = "default") -> list[str]:
        """Return the lines of a table: name, status, kept stages."""
        return (self.folder / "results/tables" / name / "table.md").read_text().splitlines()

    def snakemake(self, *arguments: str, pretend: str = "", code: int = 0) -> str:
        """Run snakemake, in one process a job, and return all it said."""
        environment = os.environ | {"PYTHONPATH": str(self.folder), "PIPELINE_PRELOADED": "", "PRETEND": pretend}
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=environment, text=True, capture_output=True, check=False)
        said = done.stdout + done.stderr
        assert done.returncode == code, said[-4000:]
        return said

    def overridden(self, overrides: str, *arguments: str) -> dict[str, int]:
        """Return the jobs that a plan with `overrides` has, by rule."""
        return self.plan("--config", f"overrides={overrides}", *arguments)

    def plan(self, *arguments: str) -> dict[str, int]:
        """Return the jobs that would run, by rule."""
        found: Counter[str] = Counter()
        for count, rule in re.findall(r"^ +(\d+)  (\w+) ", self.snakemake("--dry-run", *arguments), re.MULTILINE):
            found[rule] += int(count)
        return dict(found)

    def runs(self) -> list[str]:
        """Return the names of the finished runs, without their digits."""
        return sorted(path.parent.name[:-9] for path in self.folder.glob("results/runs/*/train.json"))
