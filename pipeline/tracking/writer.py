"""Writes one journal to W&B: `python -m pipeline.tracking.writer offline|online|upload JOURNAL`.

Started beside a job, it follows the journal until the job closes our stdin, and ends soon after, whatever the network
does. `offline` makes W&B's file anew from the first line, so that a resumed job has one file with every step once.
`online` and `upload` (of what is there already) send the steps after the last one that the server has.
Only here is wandb imported.
"""

import hashlib
import json
import os
import select
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb
from wandb.errors import CommError, Error

from pipeline.tracking import notes
from pipeline.tracking.journal import NO_SERVER

POLL_SECONDS = 0.2
INIT_SECONDS, FINISH_SECONDS = 5, 6
"""What the client may take beside a job; `sync` is patient."""
ENDING_SECONDS = 90
"""After the job's end, or its death, no writer lives longer."""


class Follower:
    """The lines of a journal as they come, until stdin ends; `sha256` is of all that were read.

    A job that was killed and goes on puts another file in the journal's place, with a writer of its own.
    """

    def __init__(self, journal: Path, ending_seconds: int) -> None:
        self._journal, self._ending_seconds, self._hash = journal, ending_seconds, hashlib.sha256()
        self._file = journal.open("rb")
        self._inode = os.fstat(self._file.fileno()).st_ino

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rest, ended = b"", False
        with self._file as file:
            while not ended:
                ended = bool(select.select([sys.stdin], [], [], POLL_SECONDS)[0])  # nobody writes there: it is the end
                if ended:
                    signal.alarm(self._ending_seconds)
                *lines, rest = (rest + file.read()).split(b"\n")
                for line in lines:
                    self._hash.update(line + b"\n")
                    yield json.loads(line)

    @property
    def superseded(self) -> bool:
        """Whether another file has taken the journal's place."""
        return self._journal.exists() and self._inode != self._journal.stat().st_ino

    @property
    def sha256(self) -> str:
        """The digest of the lines so far."""
        return self._hash.hexdigest()


def main(mode: str, journal: Path) -> int:
    """Write the journal; return the exit status."""
    follower = Follower(journal, 0 if mode == "upload" else ENDING_SECONDS)
    entries = iter(follower)
    head = next(entries)["run"]
    try:
        with tempfile.TemporaryDirectory(prefix="wandb-", ignore_cleanup_errors=True) as scratch:
            run = _begin(mode, head, scratch)
            _write(run, entries)
        if (
            mode == "offline" and follower.superseded
        ):  # the new writer replaces what it finds, and may have looked too soon
            shutil.rmtree(run.settings.sync_dir, ignore_errors=True)
    except (Error, TimeoutError) as error:
        print(f"W&B run {head['id']}: {mode}: {error}", file=sys.stderr, flush=True)
        return NO_SERVER if isinstance(error, CommError | TimeoutError) else 1
    if mode != "offline":
        notes.write(journal, head, follower.sha256)
    return 0


def _begin(mode: str, head: dict[str, Any], scratch: str) -> Any:
    """Open the run: offline in the tracker's folder, in place of an older file of the same run."""
    root = Path(head["root"] if mode == "offline" else scratch).resolve()
    # Else copies of artifacts and the client's own logs would lie in the user's home.
    os.environ |= {"WANDB_DATA_DIR": str(root / "wandb"), "WANDB_CACHE_DIR": scratch}
    for old in root.glob(f"wandb/offline-run-*-{head['id']}"):
        shutil.rmtree(old)
    beside_a_job = {"init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS}
    limits: dict[str, Any] = {} if mode == "upload" else beside_a_job
    settings = wandb.Settings(
        silent=True, console="off", disable_git=True, disable_code=True, x_disable_meta=True, x_save_requirements=False,
        x_stats_pid=os.getppid(), x_disable_stats=mode == "upload", finish_timeout_raises=True, **limits,
    )  # fmt: skip
    return wandb.init(
        dir=root,
        project=head["project"],
        group=head["group"],
        tags=[head["group"]],
        id=head["id"],
        name=head["name"],
        job_type=head["job_type"],
        config=head["config"],
        resume=None if mode == "offline" else "allow",
        settings=settings,
    )


def _write(run: Any, entries: Iterator[dict[str, Any]]) -> None:
    """Write the points that the run has not yet, and all else."""
    status = "killed"
    for entry in entries:
        if "log" in entry and entry["step"] >= run.starting_step:
            run.log(entry["log"], step=entry["step"])
        run.summary.update(entry.get("summary", {}))
        if artifact := entry.get("artifact"):
            made = wandb.Artifact(artifact["name"], type="table")
            for file in artifact["files"]:
                made.add_file(file)
            run.log_artifact(made)
        status = entry.get("end", status)
    run.summary["status"] = status
    run.finish(exit_code=0 if status == "ok" else 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
