"""The shape of the house: small files, no code at its doors, nothing that belongs to one machine."""

import ast
import re

import pytest

from tests.house.tree import ROOT, files, texts

NAMES = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py", "common.smk", "utils.smk"}
MACHINE = re.compile(r"(?<![\w.])/(work|root|home|farm|Users|tmp)/\w")
PROMISE = re.compile(r"\b(TOD[O]|FIXM[E]|XX[X]|HAC[K])\b")
SIZE_WAIVED = re.compile(r"noqa: *(PLR0915|C901|PLR0912)")


def where(path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", files("*.py", "*.smk", under=("pipeline", "rules", "tests")), ids=where)
def test_file_fits_a_reader(path):
    lines = len(path.read_text().splitlines())
    assert lines <= 300, f"{where(path)} has {lines} lines, at most 300: split it by what it does"


@pytest.mark.parametrize("path", files("__init__.py", under=("pipeline", "snakemake_logger_plugin_sweep")), ids=where)
def test_pipeline_init_holds_only_a_docstring(path):
    if path.parent.name.startswith("snakemake_logger_plugin"):
        return  # Snakemake looks for the plugin's classes there
    if path.parent.name == "pipeline":
        return  # the door for Python, which follows no import: tested in tests/models/test_wrap.py
    body = ast.parse(path.read_text()).body
    assert len(body) == 1, f"{where(path)} must hold one docstring and no code: the code digest of every stage reads it"
    assert ast.get_docstring(ast.Module(body, [])), f"{where(path)} says what the room holds in a docstring"


def test_no_drawer_for_everything():
    drawers = [where(path) for path in files("*.py", "*.smk") if path.name in NAMES]
    assert not drawers, f"name these after what they do: {drawers}"


def test_functions_stay_small():
    waived = [where(path) for path in files("*.py") if SIZE_WAIVED.search(path.read_text())]
    assert not waived, f"ruff's limits on the size of a function are waived in {waived}: split the function"


@pytest.mark.parametrize("pattern", [MACHINE, PROMISE], ids=["machine path", "promise"])
def test_nothing_of_one_machine_and_no_promises(pattern):
    found = [
        f"{where(path)}:{number}: {line.strip()}"
        for path in texts()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)
