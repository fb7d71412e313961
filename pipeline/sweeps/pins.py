"""The two commands that ask the Hugging Face hub, for what a sweep has from it. Every job runs without the hub.

`pin` looks commits and hashes up and locks them in conf/pins.json; `prefetch` fetches the locked files.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core import hub
from pipeline.core.hub import WILD, Pin, Repository, read_lock
from pipeline.core.records import file_sha256, write_atomic
from pipeline.core.settings import SettingsError
from pipeline.sweeps.checks import checks
from pipeline.sweeps.compose import asked
from pipeline.sweeps.grid import expand
from pipeline.sweeps.plan import MEMORY

if TYPE_CHECKING:
    from huggingface_hub import HfApi

NAMED = 20
"""Files of a repository that a message names."""


def pin(argv: list[str]) -> int:
    """Look up the commit of all that a sweep has from the hub, and lock it with the hashes of its files."""
    parser = _parser("pin", pin)
    parser.add_argument("--update", action="store_true", help="look up anew what is pinned already")
    given = parser.parse_args(argv)
    api, lock = _api(given.endpoint), read_lock()
    for entry, repository in _repositories(given, {}).items():
        pinned = lock.get(entry)
        if given.update or pinned is None or set(repository.chosen(pinned.sha256)) != set(pinned.sha256):
            with _answering(repository, api):
                pinned = lock[entry] = _looked_up(repository, api)
            nodes = {key: value.model_dump() for key, value in sorted(lock.items())}
            write_atomic(hub.LOCK, (json.dumps(nodes, indent=1) + "\n").encode())
        print(f"{pinned.revision}  {len(pinned.sha256)} files  {entry}", flush=True)
    return 0


def prefetch(argv: list[str]) -> int:
    """Fetch the locked files of all that a sweep has from the hub into this machine's cache, and check their hashes."""
    given = _parser("prefetch", prefetch).parse_args(argv)
    api = _api(given.endpoint)
    for repository in _repositories(given, read_lock()).values():
        for name in repository.names():
            with _answering(repository, api):
                _fetch(repository, name, api)
            print(f"{repository.sha256[name][:16]}  {repository.repository}  {name}", flush=True)
    return 0


def _parser(name: str, function: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m pipeline {name}", description=function.__doc__)
    parser.add_argument(
        "--config", nargs="*", default=[], metavar="KEY=VALUE", help="as for snakemake: sweep, overrides"
    )
    parser.add_argument("--endpoint", help="the hub's address; by default HF_ENDPOINT, else https://huggingface.co")
    return parser


def _repositories(given: argparse.Namespace, lock: Mapping[str, Pin]) -> dict[str, Repository]:
    """Return what the sweep has from the hub, each once, by entry."""
    request = asked(dict(word.partition("=")[::2] for word in given.config))
    with checks(MEMORY, lock) as checked:
        expand(request, checked)
    if not checked.repositories:
        print("The sweep has nothing from the hub.")
    return {entry: repository for (_, entry), repository in checked.repositories.items()}


def _api(endpoint: str | None) -> "HfApi":
    from huggingface_hub import HfApi  # noqa: PLC0415  (half a second, and plans import this room)

    return HfApi(endpoint=endpoint)


def _looked_up(repository: Repository, api: "HfApi") -> Pin:
    """Return the commit that `revision` means now, and the hash of each wanted file."""
    ask = {"dataset": api.dataset_info, "model": api.model_info}[repository.kind]
    info = ask(repository.repository, revision=repository.revision, files_metadata=True)
    there = {file.rfilename: file for file in info.siblings or ()}
    absent = [name for name in repository.wanted() if WILD not in name and name not in there]
    if absent or info.sha is None:
        raise SettingsError(
            f"{repository.entry}: the hub has no file {', '.join(absent)}. It has: {', '.join(sorted(there)[:NAMED])}"
            f"{', …' if len(there) > NAMED else ''}. Mend the names in conf/, or `revision`."
        )
    commit = repository.model_copy(update={"revision": info.sha})
    hashes = {}
    for name in repository.chosen(there):
        stored = there[name].lfs  # the hub knows the SHA-256 of large files; small ones are fetched
        hashes[name] = stored.sha256 if stored else file_sha256(_download(commit, name, api))
    return Pin(revision=info.sha, sha256=hashes)


def _fetch(repository: Repository, name: str, api: "HfApi") -> None:
    """Have one file in the cache, as it was locked."""
    try:
        repository.verified(name)
    except SettingsError:  # it is missing, or damaged
        path = _download(repository, name, api, again=True)
        if (got := file_sha256(path)) != repository.sha256[name]:
            raise SettingsError(
                f"{name} of {repository.repository} at {repository.revision[:8]}: the hub gave a file of SHA-256 "
                f"{got[:16]}…, locked {repository.sha256[name][:16]}…. Do not use it; if you trust the hub more than "
                f"conf/pins.json: python -m pipeline pin --update"
            ) from None


def _download(repository: Repository, name: str, api: "HfApi", again: bool = False) -> Path:
    revision, kind = repository.revision, repository.kind
    return Path(
        api.hf_hub_download(repository.repository, name, revision=revision, repo_type=kind, force_download=again)
    )


@contextmanager
def _answering(repository: Repository, api: "HfApi") -> Iterator[None]:
    """Say in the user's terms why the hub did not give what it was asked for."""
    from huggingface_hub import errors  # noqa: PLC0415

    try:
        yield
    except errors.GatedRepoError:
        raise SettingsError(
            f"{repository.repository} is gated: accept its license at {repository.page}, then run `hf auth login` (or "
            "set HF_TOKEN to a token that may read it) and repeat this command."
        ) from None
    except errors.RepositoryNotFoundError:
        raise SettingsError(
            f"{repository.repository}: {api.endpoint} has no such {repository.kind}, or shows it to nobody without a "
            "token. Mend `repository`, or run `hf auth login` first."
        ) from None
    except errors.RevisionNotFoundError:
        raise SettingsError(
            f"{repository.entry}: the hub has no such branch, tag or commit. Mend `revision`."
        ) from None
    except errors.OfflineModeIsEnabled:
        raise SettingsError("HF_HUB_OFFLINE is set, and this command must ask the hub. Unset it.") from None
    except (errors.HTTPError, OSError) as error:  # pyright: ignore[reportPrivateImportUsage]
        said = str(error.__cause__ or error).splitlines() or [type(error).__name__]
        raise SettingsError(f"{repository.repository}: {api.endpoint} does not answer: {said[0]}") from None
