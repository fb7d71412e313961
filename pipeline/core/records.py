"""The versioned JSON record of each stage, and files that are whole or not there.

A record has a `result` part, which must repeat bit for bit on the same settings, and an `about` part, which may differ
(time, host, commit). A SHA-256 over everything else makes a truncated or damaged record an error and never a number.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pipeline.core.settings import canonical

VERSION = 1
STATUSES = ("ok", "diverged", "oom")


class RecordError(ValueError):
    """A file is missing, damaged or of the wrong kind. The message names it and says what to do."""


@dataclass(frozen=True)
class Record:
    """What one stage left behind."""

    path: Path
    version: int
    stage: str
    status: str
    settings: dict[str, Any]
    result: dict[str, Any]
    about: dict[str, Any]


def write(
    path: Path,
    *,
    stage: str,
    settings: dict[str, Any],
    result: dict[str, Any],
    about: dict[str, Any],
    status: str = "ok",
) -> None:
    """Write one record atomically."""
    assert status in STATUSES, status
    body = {
        "version": VERSION, "stage": stage, "status": status,
        "settings": settings, "result": result, "about": about,
    }  # fmt: skip
    write_atomic(path, _bytes(body))


def sizes(record: Path, files: Iterable[Path]) -> dict[str, int]:
    """Return the bytes of each file below the record's folder.

    As `about["files"]` of a record it lets a plan see what has gone since, without reading it.
    """
    return {file.relative_to(record.parent).as_posix(): file.stat().st_size for file in files}


def read(path: Path, stage: str | None = None) -> Record:
    """Read one record and check that it is whole.

    Raises:
        RecordError: missing, not JSON, damaged, of another version or of another stage than `stage`.
    """
    remake = "Delete it and run the workflow again to make it anew."
    try:
        data = path.read_bytes()
        body = json.loads(data)
    except FileNotFoundError:
        raise RecordError(f"{path}: there is no such record.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: is not a whole record ({error}). {remake}") from None
    if not isinstance(body, dict) or body.get("version") != VERSION:
        got = body.get("version") if isinstance(body, dict) else type(body).__name__
        raise RecordError(f"{path}: record version must be {VERSION}, got {got!r}. {remake}")
    body.pop("sha256", None)
    if data != _bytes(body):  # the bytes, for the last digits of a number may change without changing it
        raise RecordError(f"{path}: its contents do not fit its own SHA-256: the file is damaged. {remake}")
    if stage is not None and body["stage"] != stage:
        raise RecordError(f"{path}: must be a record of stage {stage!r}, got {body['stage']!r}.")
    return Record(path=path, **body)


def _bytes(body: dict[str, Any]) -> bytes:
    sha256 = hashlib.sha256(canonical(body).encode()).hexdigest()
    return (json.dumps(body | {"sha256": sha256}, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`: afterwards the file is whole, or as it was before."""
    with writing(path) as unfinished:
        unfinished.write_bytes(data)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it, on failure remove it.

    What is yielded does not exist yet: the block makes a file or a folder of it. An existing file or folder at `path`
    is replaced. Errors of the disk (full, read-only) name `path`.
    """
    unfinished = Path(tempfile.mktemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent))  # noqa: S306  (a name inside our own folder; the block decides between file and folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        for file in [unfinished, *unfinished.rglob("*")]:
            _flush(file)
        if path.is_dir():
            shutil.rmtree(path)
        unfinished.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise type(error)(error.errno, f"{os.strerror(error.errno or 0)} while writing", str(path)) from error
    except SafetensorError as error:  # its writer is not Python's, and tells of a full disk in its own way
        if not (told := re.search(r"os error (\d+)", str(error))):
            raise
        raise OSError(int(told[1]), f"{os.strerror(int(told[1]))} while writing", str(path)) from error
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


REMAKE = (
    "To make it anew, delete the record that names it (manifest.json, train.json or the task's .json in its folder "
    "or the one above) and run the workflow again."
)


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file that is missing or whose bytes are not the recorded ones.

    Raises:
        RecordError: names the file, both hashes and what to do.
    """
    if not path.is_file():
        raise RecordError(f"{path}: the file is missing. {REMAKE}")
    got = file_sha256(path)
    if got != expected:
        raise RecordError(f"{path}: the file is damaged: SHA-256 {got[:16]}…, recorded {expected[:16]}…. {REMAKE}")
