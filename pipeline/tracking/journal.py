"""What a job tells of itself while it runs, in a journal that costs it no more than a line in a file.

Beside the job, `writer` follows the journal in a process of its own: one writes W&B's offline file, and where W&B is to
be online another uploads. Neither can hold the job up: at the end it waits PATIENCE seconds, says what became of
them, and leaves the rest to `python -m pipeline sync`. No result depends on any of it, so a job is told by an
environment variable, which is no part of what Snakemake compares.

| journal.jsonl, one object a line | |
|---|---|
| `{"run": {id, name, project, group, job_type, config, root}}` | the first line |
| `{"step": n, "log": {...}}` | one point of the curves |
| `{"summary": {...}}`, `{"artifact": {name, files}}` | what came out |
| `{"end": status}` | the last line; a killed job has none |
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from pipeline.core.records import write_atomic
from pipeline.core.settings import digest

VARIABLE = "PIPELINE_TRACKER"
"""Holds {project, group, root} as JSON; empty where nothing is tracked."""
FILE = "tracker/journal.jsonl"
PATIENCE = {"offline": 60.0, "online": 8.0}
"""Seconds that the end of a job waits for a writer; the offline one waits for no network, only for the CPU."""
NO_SERVER = 75
"""Exit status of a writer whose server does not answer (EX_TEMPFAIL)."""
DONE = {"offline": "written", "online": "uploaded"}


class Tracker:
    """The journal of one job; with `run` None, one that takes everything and keeps nothing."""

    def __init__(self, folder: Path, run: dict[str, Any] | None) -> None:
        self._path, self._run = folder / FILE, run
        self._file: TextIO | None = None
        self._writers: dict[str, subprocess.Popen[bytes]] = {}

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Add one point; steps rise. The first one decides what is kept of a job that was killed: the steps before."""
        self._add({"step": step, "log": _given(values) | {"_timestamp": time.time()}})

    def end(self, status: str, summary: dict[str, Any], files: tuple[Path, ...] = ()) -> dict[str, Any]:
        """Add what came out, wait for the writers, and return what the job's record should say of its tracker."""
        self._add({"summary": _given(summary)})
        if files:
            self._add({"artifact": {"name": self._path.parts[-3], "files": [str(path.resolve()) for path in files]}})
        self._add({"end": status})
        if self._run is None:
            return {}
        run = {key: self._run[key] for key in ("project", "group", "id")}
        said = self.close()
        print(f"tracker: W&B run {run['id']}: {'; '.join(f'{mode}: {how}' for mode, how in said.items())}", flush=True)
        return {"tracker": run | said}

    def close(self) -> dict[str, str]:
        """Tell the writers that no more comes; return how each of them ended."""
        if self._file is not None:
            self._file.close()
        for writer in self._writers.values():
            assert writer.stdin is not None
            writer.stdin.close()
        closed = time.monotonic()
        said = {}
        for mode, writer in self._writers.items():
            code = ended(writer, max(0.0, closed + PATIENCE[mode] - time.monotonic()))
            why = f"no end within {PATIENCE[mode]:g} s" if code is None else "see above"
            said[mode] = DONE[mode] if code == 0 else f"not {DONE[mode]} ({why}), `python -m pipeline sync` uploads it"
        self._writers = {}
        return said

    def _add(self, entry: dict[str, Any]) -> None:
        """Add a line; a journal that cannot be written ends the tracking and not the job."""
        if self._run is None:
            return
        try:
            file = self._file or self._begin(self._run, entry.get("step", 0))
            file.write(json.dumps(entry, sort_keys=True) + "\n")
            file.flush()
        except (OSError, ValueError) as error:
            self._run = None
            print(f"tracker: {self._path}: {error}; no more is tracked.", file=sys.stderr, flush=True)

    def _begin(self, run: dict[str, Any], step: int) -> TextIO:
        kept = [line for line in _lines(self._path, run["id"]) if line.get("step", step) < step]
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in [{"run": run}, *kept])
        write_atomic(self._path, text.encode())
        self._file = self._path.open("a", encoding="utf-8")
        for mode in ("offline", "online") if _online() else ("offline",):
            self._writers[mode] = started(mode, self._path, stdin=subprocess.PIPE)
        return self._file


@contextmanager
def tracked(folder: Path, kind: str, config: dict[str, Any]) -> Iterator[Tracker]:
    """Yield the tracker of the job whose record lies in `folder`; how the job ends, its writers end with it.

    The run's id is the digest of the folder's name and of `config`, which names settings and code: a job that goes on
    from its checkpoint goes on with its run, and changed code has a run of its own.
    """
    told = json.loads(os.environ.get(VARIABLE) or "null")
    run = None
    if told is not None and os.environ.get("WANDB_MODE") != "disabled":
        identity = {"id": digest([kind, folder.name, config], 16), "name": folder.name, "job_type": kind}
        run = identity | told | {"config": config}
    tracker = Tracker(folder, run)
    try:
        yield tracker
    finally:
        tracker.close()


def _online() -> bool:
    """Say whether W&B is to be online: WANDB_MODE decides, and without it whether there is a key."""
    return os.environ.get("WANDB_MODE", "online" if os.environ.get("WANDB_API_KEY") else "offline") == "online"


def _lines(path: Path, run_id: str) -> list[dict[str, Any]]:
    """Return the whole lines of a journal after its first; none where it is of another run, or there is none."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last line's end was cut short
    head, *rest = map(json.loads, whole)
    return rest if head["run"]["id"] == run_id else []


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def started(mode: str, journal: Path, stdin: int) -> subprocess.Popen[bytes]:
    """Start a writer, in a group of its own with what it starts itself; it says what is wrong on our stderr."""
    command = [sys.executable, "-m", "pipeline.tracking.writer", mode, str(journal)]
    # In the environment: told of online there, wandb would try the network even where init is told of offline.
    environment = os.environ | {"WANDB_MODE": "offline" if mode == "offline" else "online"}
    return subprocess.Popen(command, env=environment, stdin=stdin, stdout=subprocess.DEVNULL, start_new_session=True)


def ended(writer: subprocess.Popen[bytes], patience: float) -> int | None:
    """Return the exit status of a writer; None where it had to be stopped."""
    try:
        return writer.wait(patience)
    except subprocess.TimeoutExpired:
        os.killpg(writer.pid, signal.SIGKILL)
        writer.wait()
        return None
