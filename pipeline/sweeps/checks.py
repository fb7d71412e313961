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

from pipeline.core import hub
from pipeline.core.records import file_sha256, write_atomic
from pipeline.core.settings import TARGET, SettingsError, build, canonical, digest, imported, parse
from pipeline.models.source import Local
from pipeline.sweeps.closure import digest as code_digest
from pipeline.sweeps.closure import modules, targets

KEPT = 10_000
FIT = "pipeline.models.fit"
"""The module that is asked what fits; imported only where an answer is not remembered."""


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
    """Checks nodes; `memory` is the file that remembers. `repositories` are those of the hub, by place and entry."""

    def __init__(self, memory: Path, lock: Mapping[str, hub.Pin]) -> None:
        self._memory, self._lock = memory, lock
        self.repositories: dict[tuple[str, str], hub.Repository] = {}
        self._known: dict[str, Any] = {}
        with suppress(FileNotFoundError, json.JSONDecodeError):  # only a cache: made anew where it is damaged
            self._known = json.loads(memory.read_bytes())
        self._before = len(self._known)
        self._seen: dict[str, Checked] = {}
        self._answers: dict[str, Any] = {}

    def check(self, node: Mapping[str, Any], where: str) -> Checked:
        """Return `node` as its class writes it, pinned by the lock where it names a repository of the hub.

        Raises:
            SettingsError: a key or value is wrong; `where` is the node's place in the message.
        """
        text = canonical(node)
        if text not in self._seen:
            if '"repository"' in text:
                node = hub.pinned(node, self._lock, where, self.repositories)
            now = canonical(node)
            key = digest([now, code_digest(modules(targets(now)))], 16)
            if key not in self._known:
                self._known[key] = asdict(_ask(node, where))
            self._seen[text] = Checked(**self._known[key])
        return self._seen[text]

    def shape(self, model: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return how a model is built, as in its config.json; None where a plan cannot know.

        Raises:
            SettingsError: there is no such model.
        """
        if _is_local(model):  # whose config.json may change
            return parse(Local, model, "model").shape()
        return self._asked("shape", "pipeline.stages.prepare_model", model)

    def fit(self, *asked: Any) -> dict[str, Any]:
        """Return what `pipeline.models.fit.fit` says to `asked`, from the shape on."""
        return self._asked("fit", FIT, *asked)

    def largest(self, *asked: Any) -> dict[str, Any]:
        """Return what `pipeline.models.fit.largest` says to `asked`, from the shape on."""
        return self._asked("largest", FIT, *asked)

    def _asked(self, question: str, module: str, *asked: Any) -> Any:
        """Return a remembered answer of code that is too heavy for every plan; what it refuses is remembered too."""
        text = canonical([question, *asked])
        if text not in self._answers:
            key = digest([text, code_digest(modules([module, *targets(text)]))], 16)
            if key not in self._known:
                self._known[key] = _answer(question, *asked)
            self._answers[text] = self._known[key]
        if refused := self._answers[text].get("refused"):
            raise SettingsError(refused)
        return self._answers[text]["said"]

    def files(self, model: Mapping[str, Any]) -> dict[str, str]:
        """Return the local files that a model is made of, with their SHA-256.

        Raises:
            SettingsError: there is no such folder.
        """
        paths = parse(Local, model, "model").files() if _is_local(model) else self.check(model, "model").paths
        return {str(path): self.sha256(str(path)) for path in paths}

    def present(self, told: str) -> None:
        """Refuse repositories of the hub that are not pinned, or not in this machine's cache; `told` is the sweep."""
        for (where, _), repository in self.repositories.items():
            try:
                repository.present(told)
            except SettingsError as error:
                raise SettingsError(f"{where}: {error}") from None

    def sha256(self, path: str) -> str:
        """Return the SHA-256 of a local file, read once for each size, time of change and inode."""
        try:
            stat = Path(path).stat()
        except OSError as error:
            raise SettingsError(f"{path}: the settings name this file, and it cannot be read ({error}).") from None
        key = f"{Path(path).resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
        if key not in self._known:
            self._known[key] = file_sha256(Path(path))
        return self._known[key]

    def save(self) -> None:
        """Write what was learned, the newest `KEPT` answers."""
        if len(self._known) > self._before:
            newest = dict(list(self._known.items())[-KEPT:])
            write_atomic(self._memory, json.dumps(newest).encode())


@contextmanager
def checks(folder: Path, lock: Mapping[str, hub.Pin] | None = None) -> Iterator[Checks]:
    """Yield Checks that remember in `folder`, also when a setting turns out to be wrong; `lock` is conf/pins.json."""
    found = Checks(folder / "checked-settings.json", hub.read_lock() if lock is None else lock)
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


def _is_local(model: Mapping[str, Any]) -> bool:
    return model[TARGET] == f"{Local.__module__}.{Local.__name__}"


def _answer(question: str, *asked: Any) -> dict[str, Any]:
    try:
        if question == "shape":
            model: Any = build(asked[0], "model")
            return {"said": model.shape()}
        return {"said": getattr(imported(FIT), question)(*asked)}
    except SettingsError as error:
        return {"refused": str(error)}
