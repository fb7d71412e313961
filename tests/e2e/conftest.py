"""One small sweep, run once through the real workflow, for all tests that look at it or do it harm."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.jobs import ROOT, SMOKE, Job, jobs, snakemake
from tests.e2e.lab import Lab


def pytest_collection_modifyitems(items):
    """Mark everything here: it runs the real workflow."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a finished sweep, and what was printed on the way."""
    folder = tmp_path_factory.mktemp("sweep")
    done = snakemake(folder, "--cores", "2", "--config", SMOKE)
    assert done.returncode == 0, done.stdout
    return folder, done.stdout


@pytest.fixture(scope="session")
def sweep(finished) -> Path:
    """The folder of a finished sweep; nobody may write to it."""
    return finished[0]


@pytest.fixture(scope="session")
def all_jobs(sweep) -> list[Job]:
    return jobs(sweep, SMOKE)


@pytest.fixture(scope="session")
def job(all_jobs) -> Callable[..., Job]:
    """The first job of a stage whose command names all the words."""

    def find(stage: str, *words: str) -> Job:
        fits = [one for one in all_jobs if one.stage == stage and all(word in " ".join(one.command) for word in words)]
        assert fits, f"the sweep has no {stage} job with {words}"
        return fits[0]

    return find


@pytest.fixture
def copy(sweep, tmp_path) -> Path:
    """A copy of the finished sweep that a test may spoil."""
    folder = tmp_path / "copy"
    shutil.copytree(sweep, folder)
    return folder


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    lab = Lab(ROOT)
    yield lab
    lab.close()
