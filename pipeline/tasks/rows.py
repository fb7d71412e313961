"""Rows on disk: one JSON object a line, checked against the hash that a record holds."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.core import records
from pipeline.tasks.base import SPLITS, Row


def write(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Write rows atomically and return the SHA-256 of the file."""
    text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n" for row in rows)
    records.write_atomic(path, text.encode())
    return records.file_sha256(path)


def read(path: Path, sha256: str) -> list[dict[str, Any]]:
    """Read rows.

    Raises:
        RecordError: the file is missing, or not the one with this hash.
    """
    records.check_sha256(path, sha256)
    # Not splitlines(): it also cuts at line separators that stand inside of texts, such as U+2028.
    return [json.loads(line) for line in path.read_bytes().decode().split("\n") if line]


def split(manifest: Path, name: str) -> list[Row]:
    """Return the rows of one split of a prepared data folder, named by its manifest."""
    kept = records.read(manifest, "prepare_data").result["splits"][name]
    return read(manifest.parent / kept["file"], kept["sha256"])


def train_file(manifest: Path) -> list[Row]:
    """Return the rows of train's own file in its order, those that were carved out for dev and test included."""
    every = [row for name in SPLITS for row in split(manifest, name)]
    own = [row for row in every if row["id"].startswith("train-")]
    return sorted(own, key=lambda row: int(row["id"].removeprefix("train-")))
