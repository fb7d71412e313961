"""What of a journal a server was sent, noted beside it, so that it is not asked again about what it has."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pipeline.core.records import write_atomic

NAME = "uploaded.json"


def write(journal: Path, run: dict[str, Any], sha256: str) -> None:
    """Note that the lines of a journal with this SHA-256 were sent."""
    write_atomic(journal.with_name(NAME), json.dumps(_note(run, sha256)).encode())


def complete(journal: Path) -> bool:
    """Say whether the server of now was sent the journal as it is."""
    path, data = journal.with_name(NAME), journal.read_bytes()
    run = json.loads(data.partition(b"\n")[0])["run"]
    return path.exists() and json.loads(path.read_bytes()) == _note(run, hashlib.sha256(data).hexdigest())


def _note(run: dict[str, Any], sha256: str) -> dict[str, str]:
    place = {"entity": os.environ.get("WANDB_ENTITY", ""), "server": os.environ.get("WANDB_BASE_URL", "")}
    return {"id": run["id"], "project": run["project"], "sha256": sha256} | place
