"""One finished copy of the house a session; tests that change anything take a copy of it."""

import pytest

from tests.workflow.lab import Lab


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("workflow") / "finished")
    lab.snakemake()
    return lab


@pytest.fixture
def lab(finished, tmp_path):
    return finished.copy(tmp_path / "lab")
