"""Plans of conf/sweep/default.yaml, with one memory of checked settings a session."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.sweeps import plan as plans


@dataclass
class Planner:
    results: Path
    memory: Path

    def __call__(self, overrides="", **config):
        told = {"overrides": overrides} if overrides else {}
        return plans.load(told | config, root=self.results, memory=self.memory)


@pytest.fixture(scope="session")
def memory(tmp_path_factory):
    return tmp_path_factory.mktemp("memory")


@pytest.fixture
def plan(tmp_path, memory):
    return Planner(tmp_path / "results", memory)
