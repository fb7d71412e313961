"""Somebody follows CONTRIBUTING.md to the letter, in a copy of the repository, and it works."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.house.tree import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
FILE = re.compile(r"^`([\w/.-]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"`(pytest [^`]+)`")
LEFT_BEHIND = shutil.ignore_patterns(".*", "results", "__pycache__", "build", "*.egg-info")


def chapter(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.slow
@pytest.mark.parametrize("title", ["Add a method", "Add a task"])
def test_worked_example_works(title, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=LEFT_BEHIND)
    written = FILE.findall(chapter(title))
    assert sorted(path.rsplit(".")[-1] for path, _ in written) == ["py", "py", "yaml"]
    for path, text in written:
        assert not (copy / path).exists(), f"{path}: the example edits what exists"
        (copy / path).write_text(text)
    new = [path for path, _ in written if path.endswith(".py")]
    (command,) = COMMAND.findall(chapter(title))
    for call in (
        ["pytest", *shlex.split(command)[1:], "-p", "no:cacheprovider"],
        ["ruff", "check", *new],
        ["ruff", "format", "--check", *new],
    ):
        done = run(call, copy)
        assert done.returncode == 0, f"{shlex.join(call)}\n{done.stdout}\n{done.stderr}"
        counted = re.search(r"(\d+) passed", done.stdout)
        assert call[0] != "pytest" or (counted and int(counted[1]) > 3), done.stdout


def run(call: list[str], cwd) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(cwd)}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", *call]
    return subprocess.run(command, check=False, cwd=cwd, env=environment, capture_output=True, text=True)
