"""What is installed is what is declared, and the lock, the ranges and the conda environment say the same."""

import ast
import re
import sys
from importlib.metadata import packages_distributions

import pytest
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house.tree import ROOT, files, pyproject

LOCK = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
FROM_TORCH = re.compile("cuda-|nvidia-|triton=")  # torch asks for these itself, and only where there is CUDA
OURS = {"benchmarks", "pipeline", "snakemake_logger_plugin_sweep", "tests"}
EXTRAS = pyproject()["project"]["optional-dependencies"]
AS_A_ROW = {"bitsandbytes", "peft"}  # compared with; whoever chooses such a row and lacks the library is told
RUNTIME = pyproject()["project"]["dependencies"]


def names(requirements) -> set[str]:
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


def imported(*folders: str) -> set[str]:
    """Distributions that the Python files below the folders import, anywhere in them."""
    modules = set()
    for path in files("*.py", under=folders):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(str(node.module).split(".")[0])
    distributions = packages_distributions()
    return {canonicalize_name(distributions[m][0]) for m in modules - OURS - sys.stdlib_module_names}


def test_pipeline_declares_what_it_imports():
    used = imported("pipeline", "snakemake_logger_plugin_sweep") | {"snakemake"}
    assert used - names(RUNTIME) - {"snakemake-interface-logger-plugins"} - AS_A_ROW == set()
    assert names(RUNTIME) - used == set(), "declared and never imported"


def test_tests_declare_what_they_import():
    assert imported("tests") - names(RUNTIME) - names(EXTRAS["dev"]) == set()


@pytest.mark.parametrize("requirement", RUNTIME + EXTRAS["dev"] + EXTRAS["slurm"])
def test_lock_lies_within_the_ranges(requirement):
    wanted = Requirement(requirement)
    pins = [Requirement(line) for line in LOCK]
    versions = [
        next(iter(p.specifier)).version for p in pins if canonicalize_name(p.name) == canonicalize_name(wanted.name)
    ]
    assert versions, f"{wanted.name} is not in constraints.txt: `make lock`"
    assert all(wanted.specifier.contains(version) for version in versions), (versions, str(wanted.specifier))


def test_lock_pins_every_line_and_names_no_place():
    assert len(LOCK) > 100
    for line in LOCK:
        requirement = Requirement(line)
        assert [clause.operator for clause in requirement.specifier] == ["=="], line
        assert "+" not in str(requirement.specifier), f"{line}: a build for one kind of machine"
    assert not re.search(r"://|(^|\s)/|--", "\n".join(LOCK))


def test_conda_environment_is_the_lock():
    environment = OmegaConf.to_container(OmegaConf.load(ROOT / "environment.yml"))
    python, pip, pins = environment["dependencies"]
    assert pip == "pip"
    assert Requirement("python" + pyproject()["project"]["requires-python"]).specifier.contains(python.split("=")[1])
    assert pins["pip"] == [line for line in LOCK if not FROM_TORCH.match(line)], "stale: `make lock`"


def test_ci_runs_the_tests_that_a_person_runs():
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
