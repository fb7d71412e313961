"""Checks nodes by their settings classes, and remembers which were right.

The classes of adapters, formats and optimizers live beside code that imports torch: 2 s, too long for every plan. So an
answer is kept in `.snakemake/` under the node and the digest of the code that gave it; a second plan imports nothing.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.core.records import file_sha256, write_atomic
from pipeline.core.settings import SettingsError, build, canonical, digest
from pipeline.sweeps.closure import digest as code_digest
from pipeline.sweeps.closure import modules, targets

KEPT = 10_000


@dataclass(frozen=True)
class Checked:
    """A node that its class accepts, with defaults filled in, and what the settings say of themselves.

    `size` and `label` of an adapter, and whether it `takes` a part of the weights; `paths`, the local files that a data
    source reads; `rules`, the ids of a task's scoring rules.
    """

    node: dict[str, Any]
    size: list[Any] | None = None
    label: str | None = None
    takes: bool = False
    paths: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()


class Checks:
    """Checks nodes; `memory` is the file that remembers."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known: dict[str, Any] = {}
        with suppress(FileNotFoundError, json.JSONDecodeError):  # only a cache: made anew where it is damaged
            self._known = json.loads(memory.read_bytes())
        self._before = len(self._known)
        self._seen: dict[str, Checked] = {}

    def check(self, node: Mapping[str, Any], where: str) -> Checked:
        """Return `node` as its class writes it.

        Raises:
            SettingsError: a key or value is wrong; `where` is the node's place in the message.
        """
        text = canonical(node)
        if text not in self._seen:
            key = digest([text, code_digest(modules(targets(text)))], 16)
            if key not in self._known:
                self._known[key] = asdict(_ask(node, where))
            self._seen[text] = Checked(**self._known[key])
        return self._seen[text]

    def sha256(self, path: str) -> str:
        """Return the SHA-256 of a local file, read once for each size and time of change."""
        try:
            stat = Path(path).stat()
        except OSError as error:
            raise SettingsError(f"{path}: a data source names this file, and it cannot be read ({error}).") from None
        key = f"{Path(path).resolve()} {stat.st_size} {stat.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = file_sha256(Path(path))
        return self._known[key]

    def save(self) -> None:
        """Write what was learned, the newest `KEPT` answers."""
        if len(self._known) > self._before:
            newest = dict(list(self._known.items())[-KEPT:])
            write_atomic(self._memory, json.dumps(newest).encode())


@contextmanager
def checks(folder: Path) -> Iterator[Checks]:
    """Yield Checks that remember in `folder`, also when a setting turns out to be wrong."""
    found = Checks(folder / "checked-settings.json")
    try:
        yield found
    finally:
        found.save()


def _ask(node: Mapping[str, Any], where: str) -> Checked:
    settings: Any = build(node, where)
    size = settings.size() if hasattr(settings, "size") else None
    return Checked(
        node=settings.node(),
        size=list(size) if size else None,
        label=getattr(settings, "label", None),
        takes=getattr(settings, "takes", False),
        paths=tuple(map(str, settings.paths())) if hasattr(settings, "paths") else (),
        rules=tuple(rule.id for rule in getattr(settings, "scoring", ())),
    )
