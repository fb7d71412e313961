"""What of a journal a server was sent, noted beside it, so that nothing is sent twice."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.core.records import write_atomic

NAME = "uploaded.json"


@dataclass(frozen=True)
class Note:
    """An upload: of which run, whereto, how many steps, and the SHA-256 of the lines that it read."""

    id: str
    project: str
    entity: str
    server: str
    steps: int
    sha256: str


def write(journal: Path, run: dict[str, Any], steps: int, sha256: str) -> None:
    """Note an upload of a journal's run."""
    note = Note(**_whereto(run), steps=steps, sha256=sha256)
    write_atomic(journal.with_name(NAME), json.dumps(asdict(note)).encode())


def steps(journal: Path, run: dict[str, Any]) -> int:
    """Return how many steps of a run the server of now was sent."""
    note = _read(journal)
    return note.steps if note is not None and _same(note, run) else 0


def complete(journal: Path) -> bool:
    """Say whether the server of now was sent the journal as it is."""
    note = _read(journal)
    data = journal.read_bytes()
    run = json.loads(data.partition(b"\n")[0])["run"]
    return note is not None and _same(note, run) and note.sha256 == hashlib.sha256(data).hexdigest()


def _read(journal: Path) -> Note | None:
    path = journal.with_name(NAME)
    return Note(**json.loads(path.read_bytes())) if path.exists() else None


def _same(note: Note, run: dict[str, Any]) -> bool:
    return asdict(note) | _whereto(run) == asdict(note)


def _whereto(run: dict[str, Any]) -> dict[str, str]:
    place = {"entity": os.environ.get("WANDB_ENTITY", ""), "server": os.environ.get("WANDB_BASE_URL", "")}
    return {"id": run["id"], "project": run["project"]} | place
