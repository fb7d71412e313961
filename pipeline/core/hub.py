"""Files of the Hugging Face hub at one commit, locked by hash. Jobs read this machine's cache and never ask the hub.

`revision` in conf/ says what is wanted: a branch, a tag or a commit. `python -m pipeline pin` looks it up once and
writes the commit, with the SHA-256 of every file, to conf/pins.json; a plan puts both into the settings. `prefetch`
fetches the files. Nothing here needs a network.
"""

import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.core.records import file_sha256
from pipeline.core.settings import Settings, SettingsError, parse, target_class

LOCK = Path(__file__).resolve().parents[2] / "conf" / "pins.json"


class Pin(Settings):
    """What the lock holds of one repository."""

    revision: str = Field(pattern=r"^[0-9a-f]{40}$", description="the commit that was read")
    sha256: dict[str, str] = Field(min_length=1, description="path in the repository -> hash of the file")


class Repository(Settings):
    """Names a repository; whatever has its files from the hub derives from it."""

    kind: ClassVar[Literal["dataset", "model"]]

    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(default="main", pattern=r"^[\w./-]+$", description="a plan replaces it by the locked commit")
    sha256: dict[str, str] = Field(default={}, description="path in the repository -> hash; the plan's, from the lock")

    @abstractmethod
    def wanted(self) -> tuple[str, ...]:
        """Return the names of the files that are read; none where the settings do without the hub.

        A name with * in it is a pattern, which may match nothing; every other file must be there.
        """

    @property
    def entry(self) -> str:
        """The name of what `revision` says in the lock."""
        return f"{self.kind}s/{self.repository}@{self.revision}"

    @property
    def instead(self) -> str:
        """How to do without the hub, for the message of what is not pinned."""
        return ""

    @property
    def page(self) -> str:
        """The repository's page."""
        return f"https://huggingface.co/{'datasets/' if self.kind == 'dataset' else ''}{self.repository}"

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Return those of `names` that are wanted."""
        return [name for name in names if any(_fits(name, pattern) for pattern in self.wanted())]

    def unlocked(self) -> list[str]:
        """Return the wanted files whose hash is not known; all of them before `pin`."""
        return [name for name in self.wanted() if name not in self.sha256 and ("*" not in name or not self.sha256)]

    def present(self, told: str = "") -> None:
        """Refuse what is not pinned, or not whole in this machine's cache. `told` is the sweep, for the command.

        Raises:
            SettingsError: names what is missing and the command that gets it.
        """
        if unknown := self.unlocked():
            raise SettingsError(
                f"{self.repository} is not pinned: no commit and hash of {unknown[0]} stands in conf/pins.json, so it "
                f"could change. Where there is a network: python -m pipeline pin{told}{self.instead}"
            )
        for name in self.chosen(self.sha256):
            self.cached(name, told)

    def cached(self, name: str, told: str = "") -> Path:
        """Return where this machine's cache has a file.

        Raises:
            SettingsError: it has not; names the file and the command that fetches it.
        """
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  (a plan of local data needs none of it)

        found = try_to_load_from_cache(self.repository, name, revision=self.revision, repo_type=self.kind)
        if isinstance(found, str):
            return Path(found)
        raise SettingsError(
            f"the hub's cache on this machine lacks {name} of {self.repository} at {self.revision[:8]}, and jobs do not "
            f"ask the hub. Where there is a network: python -m pipeline prefetch{told}"
        )

    def verified(self, name: str) -> Path:
        """Return where this machine's cache has a file whose contents are the locked ones.

        Raises:
            SettingsError: it is not pinned, missing or another file.
        """
        if name not in self.sha256:
            self.present()
        path = self.cached(name)
        if (got := file_sha256(path)) != self.sha256[name]:
            raise SettingsError(
                f"{path}: is not {name} of {self.repository} at {self.revision[:8]}: SHA-256 {got[:16]}…, locked "
                f"{self.sha256[name][:16]}…. Fetch it again: python -m pipeline prefetch"
            )
        return path


def _fits(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and (name == pattern or fnmatchcase(name, pattern))


def read_lock(path: Path = LOCK) -> dict[str, Pin]:
    """Return the pins by their keys; none where nothing was pinned yet.

    Raises:
        SettingsError: the file is damaged.
    """
    try:
        return {key: parse(Pin, node, f"{path}: {key}") for key, node in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise SettingsError(f"{path}: is no lock ({error}). Get it back, or delete it and pin again.") from None


def pinned(node: Any, lock: Mapping[str, Pin], where: str, found: dict[str, Repository]) -> Any:
    """Return a node with commit and hashes of the lock in every repository that it names.

    `found` gets the repositories as they then are, by their places.
    """
    if not isinstance(node, Mapping):
        return node
    node = {key: pinned(value, lock, f"{where}.{key}", found) for key, value in node.items()}
    if "repository" not in node or not issubclass(cls := target_class(node, where), Repository):
        return node
    asked = parse(cls, node, where)
    if asked.wanted():
        if pin := lock.get(asked.entry):
            node |= {"revision": pin.revision, "sha256": {name: pin.sha256[name] for name in asked.chosen(pin.sha256)}}
        found[where] = parse(cls, node, where)
    return node
