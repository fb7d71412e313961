"""The disk is full at every write of every stage: the job says so, and nothing half-written is taken for done."""

import contextlib
import os
import shutil
import subprocess

import pytest

PAGE = os.sysconf("SC_PAGE_SIZE")
LEVELS = 8
STAGES = (
    "prepare_data", "prepare_model", "quantize_base", "finetune", "merge", "evaluate", "score",
    "plan", "aggregate", "figures", "report",
)  # fmt: skip


@pytest.fixture
def disk(sweep, tmp_path):
    """A folder whose results/ is a disk of its own, with the finished sweep on it."""
    results = tmp_path / "results"
    results.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", results], check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        shutil.copytree(sweep / "results", results, dirs_exist_ok=True)
        shutil.copytree(sweep / ".snakemake" / "sweep", tmp_path / ".snakemake" / "sweep")
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", results], check=True)


def used(disk) -> int:
    state = os.statvfs(disk / "results")
    return (state.f_blocks - state.f_bfree) * state.f_frsize


@contextlib.contextmanager
def room(disk, free: int):
    """Leave `free` bytes on the disk."""
    results = disk / "results"
    subprocess.run(["mount", "-o", f"remount,size={used(disk) + free}", results], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,size=50%", results], check=True)


@pytest.mark.parametrize("stage", STAGES)
def test_full_disk(stage, sweep, disk, job, lab):
    one = job(stage)
    occupied = used(disk)
    one.clear(disk)
    written = occupied - used(disk)
    assert written >= PAGE
    names = {path for path in disk.rglob("*") if "checkpoints" not in path.parts}
    for free in sorted({written * level // LEVELS // PAGE * PAGE for level in range(LEVELS)}):
        one.clear(disk)  # as Snakemake does with what a failed job leaves
        with room(disk, free):
            done = lab.run(one.command, disk)
        assert done.code == 1, f"{free} bytes were enough: {done.output}"
        assert "No space left on device" in done.output
        assert "Traceback" not in done.output
        assert not any((disk / path).exists() for name, path in one.outputs.items() if name == "record")
        left = {path for path in disk.rglob("*") if "checkpoints" not in path.parts} - names
        assert not [path for path in left if "unfinished" in path.name], left
    done = lab.run(one.command, disk)
    assert done.code == 0, done.output
    for path in one.outputs.values():
        assert same(disk / path, sweep / path), path


def same(path, expected) -> bool:
    """Say whether two files agree in all that must repeat."""
    from pipeline.core import records  # noqa: PLC0415

    if path.is_dir():
        return all(same(file, expected / file.name) for file in path.iterdir())
    if path.suffix == ".json":
        return records.read(path).result == records.read(expected).result
    return path.read_bytes() == expected.read_bytes()
