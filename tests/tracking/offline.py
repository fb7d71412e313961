"""Reads W&B's offline files, by its own command."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Offline:
    """One offline file."""

    run: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, list[str]] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def steps(self) -> list[int]:
        return [point["_step"] for point in self.history]


def read(results: Path) -> dict[str, Offline]:
    """Return the offline files below a results folder, by the names of their runs; two of one name are an error."""
    found = {}
    for path in sorted(results.glob("wandb/offline-run-*/run-*.wandb")):
        one = _read(path)
        assert one.run["display_name"] not in found, "two files of one run"
        found[one.run["display_name"]] = one
    return found


def _read(path: Path) -> Offline:
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    one = Offline()
    for line in map(json.loads, done.stdout.splitlines()):
        entry = line.get(line["type"], {})
        if line["type"] == "run":
            one.run, one.config = entry, entry["config"]["update"]
        elif line["type"] == "history":
            one.history.append(entry["item"])
        elif line["type"] == "summary":
            one.summary |= entry.get("update", {})
        elif line["type"] == "artifact":
            one.artifacts[entry["name"]] = [file["path"] for file in entry["manifest"]["contents"]]
        elif line["type"] == "exit":
            one.exit_code = entry.get("exit_code", 0)
    return one
