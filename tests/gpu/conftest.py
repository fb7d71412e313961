"""Tests that need a CUDA device. Elsewhere they are skipped; their last result on one is docs/results/gpu-tests.json.

`GPU_RECORD=FILE pytest tests/gpu` writes that record: outcomes, measured figures, device, versions, commit.
"""

import os
import time
from pathlib import Path

import pytest
import torch

from pipeline.core import provenance, records

HERE = Path(__file__).parent
# A cap on memory counts what the allocator has reserved: without gaps between blocks that is what is allocated.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
STARTED = time.time()
RESULTS: dict[str, dict] = {}


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if HERE in Path(item.path).parents:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def measured(request):
    """A dictionary whose numbers go into the record of the test."""
    return RESULTS.setdefault(request.node.name, {})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call" and HERE in Path(item.path).parents:
        RESULTS.setdefault(item.name, {})["outcome"] = report.outcome
    return report


def pytest_sessionfinish():
    if (path := os.environ.get("GPU_RECORD")) and RESULTS:
        about = provenance.about(STARTED, device=provenance.device_name("cuda"))
        about["commit"] = about["commit"] or os.environ.get("GPU_RECORD_COMMIT")
        result = {"tests": dict(sorted(RESULTS.items()))}
        records.write(Path(path), stage="gpu_tests", settings={}, result=result, about=about)
