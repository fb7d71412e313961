import shutil
from pathlib import Path

import pytest

from tests.aggregation.made_up import SMALL, TASKS, Maker, Plan


@pytest.fixture
def make(tmp_path):
    """Return a function: (fields of a plan) -> path of the sweep.json of a made-up results folder."""

    def call(**fields) -> Path:
        return Maker(tmp_path / "results", Plan(**fields)).make()

    return call


@pytest.fixture(scope="session")
def small_once(tmp_path_factory):
    """Return the results folder of a small sweep, for `small` to copy."""
    return Maker(tmp_path_factory.mktemp("small") / "results", Plan(**SMALL)).make().parents[2]


@pytest.fixture
def small(small_once, tmp_path):
    """Return the path of the sweep.json of a small made-up sweep of the test's own."""
    return shutil.copytree(small_once, tmp_path / "results") / "tables/demo/sweep.json"


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """Return the path of the sweep.json of a whole made-up demo, some of whose runs diverged; nobody changes it."""
    plan = Plan(
        tasks=[(task, protocol, role, min(n, 150)) for task, protocol, role, n in TASKS],
        diverged={"tiny-nf4-double-oft-block_size-16-s1", *(f"tiny-none-adalora-rank-8-s{seed}" for seed in (0, 1))},
        kept={"tiny-none-lora-rank-2-s0"},
    )
    return Maker(tmp_path_factory.mktemp("demo") / "results", plan).make()
