"""The real workflow from the command line, and the commands of its jobs as it prints them."""

import itertools
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMOKE = "sweep=smoke"
PATIENCE = 900


@dataclass(frozen=True)
class Job:
    """One job: `command` is what stands after `python -m pipeline`; `outputs` are below the working folder."""

    stage: str
    command: list[str]
    outputs: dict[str, Path]

    def clear(self, folder: Path) -> None:
        """Remove what the job makes, and a run's checkpoints and adapter with its record."""
        extra = {"finetune": ("adapter", "checkpoints"), "prepare_model": ("model",), "quantize_base": ("base",)}
        for path in self.outputs.values():
            beside = [path.parent / name for name in extra.get(self.stage, ())]
            for gone in (folder / path, *(folder / one for one in beside)):
                shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)


def environment() -> dict[str, str]:
    """An environment as `make` gives it."""
    here = str(Path(sys.executable).parent)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PIPELINE_"))}
    return kept | {"PATH": os.pathsep.join([here, kept["PATH"]]), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the workflow to its end, with everything that it writes in `folder`."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    return subprocess.run(
        [*command, *arguments],
        check=False,
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )


def after(flag: str, words: list[str]) -> list[str]:
    """Return the words that belong to one flag of a command."""
    return list(itertools.takewhile(lambda word: not word.startswith("--"), words[words.index(flag) + 1 :]))


def jobs(folder: Path, *config: str) -> list[Job]:
    """Return every job of the sweep, read from what `snakemake -n -p` prints."""
    done = snakemake(folder, "-n", "-F", "-p", "--workflow-profile", "none", "--config", *config)
    assert done.returncode == 0, done.stdout
    found = []
    for line in done.stdout.splitlines():
        _, pasted, rest = line.partition("python -m pipeline ")
        if pasted:
            words = shlex.split(rest.rpartition(" > ")[0])
            pairs = dict(word.split("=", 1) for word in after("--output", words))
            found.append(Job(words[0], words, {name: Path(path) for name, path in pairs.items()}))
    assert found, done.stdout
    return found
