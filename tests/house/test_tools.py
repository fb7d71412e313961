"""The style and type checkers are content."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import ROOT

TOOLS = {
    "ruff check": ["ruff", "check", "--no-cache"],
    "ruff format": ["ruff", "format", "--check", "--no-cache"],
    "import-linter": ["lint-imports", "--no-cache"],
    "snakefmt": ["snakefmt", "--check", "Snakefile", "rules"],
    "snakemake lint": ["snakemake", "--lint"],
    "pyright": ["pyright", "--pythonpath", sys.executable],
}
SLOW = ("snakemake lint", "pyright")


@pytest.mark.parametrize(
    "tool", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in TOOLS]
)
def test_tool_is_content(tool):
    here = str(Path(sys.executable).parent)
    done = subprocess.run(
        TOOLS[tool],
        check=False,
        cwd=ROOT,
        env=os.environ | {"PATH": os.pathsep.join([here, os.environ["PATH"]])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{' '.join(TOOLS[tool])}\n{done.stdout}\n{done.stderr}"
