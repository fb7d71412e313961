"""`python -m pipeline sync RESULTS`: sends W&B every tracked run, finished or not; called again, what is new of it."""

import argparse
import subprocess
import sys
from pathlib import Path

from pipeline.core.records import RecordError
from pipeline.tracking import notes
from pipeline.tracking.journal import FILE, NO_SERVER, ended, started


def main(argv: list[str]) -> int:
    """Upload what the server has not; return 1 where something could not be."""
    given = _parser().parse_args(argv)
    found = sorted(given.results.glob(f"*/*/{FILE}"))
    if not found:
        raise RecordError(f"{given.results}: nothing in it was tracked; a sweep is with overrides='tracker=wandb'.")
    failed = 0
    for path in found:
        name = path.parent.parent.name
        if notes.complete(path):
            print(f"{name}: is there already")
            continue
        code = ended(started("upload", path, stdin=subprocess.DEVNULL), given.patience)
        print(f"{name}: {'uploaded' if code == 0 else 'not uploaded'}", flush=True)
        failed += code != 0
        if code in (None, NO_SERVER):
            print("The server does not answer. Call again when it does: nothing is sent twice.", file=sys.stderr)
            break
    return int(failed > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline sync", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="a results folder")
    parser.add_argument("--patience", type=float, default=120.0, metavar="SECONDS", help="for one run (default 120)")
    return parser
