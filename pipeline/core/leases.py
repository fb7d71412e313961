"""Gives each local job its own GPUs: Snakemake counts GPUs, but never says which ones a job may use.

A lease is a file lock on a slot of a GPU, so that it vanishes with its process however that ends. A GPU has one slot,
or `hardware.jobs_per_gpu` where small models would leave most of it idle.
"""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

from pipeline.core.settings import SettingsError

VISIBLE = "CUDA_VISIBLE_DEVICES"
SHARED = "PIPELINE_JOBS_PER_GPU"
"""The variable that tells jobs of one machine how many of them may share a GPU."""
DEVICES = Path("/dev")


def visible() -> list[str]:
    """Return the ids of the GPUs that this process may use: what the scheduler or user set, else what there is."""
    given = os.environ.get(VISIBLE)
    if given is not None:
        return [gpu.strip() for gpu in given.split(",") if gpu.strip()]
    return [str(number) for number in range(len(list(DEVICES.glob("nvidia[0-9]*"))))]


def slots() -> int:
    """Return how many jobs may use one GPU at once."""
    return int(os.environ.get(SHARED, "1"))


@contextlib.contextmanager
def lease(count: int, poll_seconds: float = 0.2) -> Iterator[list[str]]:
    """Hold `count` GPUs for the block, and show it no others through CUDA_VISIBLE_DEVICES.

    Enter it before CUDA is initialized. Waits while other jobs hold the GPUs. Inside a Slurm job the scheduler has
    already handed out the GPUs, so they are taken as given.

    Raises:
        SettingsError: this process sees fewer than `count` GPUs.
    """
    if count == 0:
        yield []
        return
    ids = visible()
    if len(ids) < count:
        raise SettingsError(
            f"hardware.gpus: this step needs {count} GPU(s) and sees {len(ids)} "
            f"({VISIBLE}={os.environ.get(VISIBLE)!r}). Set hardware.gpus=0 hardware.device=cpu, or free a GPU."
        )
    if "SLURM_JOB_ID" in os.environ:
        yield ids[:count]
        return
    held = _wait_for(ids, count, poll_seconds)
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ",".join(held)
    try:
        yield list(held)
    finally:
        if before is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = before
        for lock in held.values():
            lock.close()


def _wait_for(ids: list[str], count: int, poll_seconds: float) -> dict[str, TextIOWrapper]:
    """Lock `count` of `ids`: all or none of them, so that no two jobs can wait for each other."""
    folder = Path(tempfile.gettempdir()) / f"gpu-leases-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        held: dict[str, TextIOWrapper] = {}
        for slot in range(slots()):  # a second job on a GPU only once every GPU has its first
            for gpu in ids:
                if gpu not in held and (lock := _locked(folder / f"{gpu.replace('/', '-')}.{slot}.lock")):
                    held[gpu] = lock
                if len(held) == count:
                    return held
        for lock in held.values():
            lock.close()
        time.sleep(poll_seconds)


def _locked(path: Path) -> TextIOWrapper | None:
    """Return the open file once it is locked; None where another process holds it."""
    lock = path.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock
