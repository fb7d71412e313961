"""`make mutants`: every defect of this folder, put into a copy of the tree, must turn its tests red.

A patch says in its first line what it breaks, and in `Test:` lines (a file or test each, as pytest takes it) who must
see it. One that no longer applies is an error, like one that nobody sees: mend it with the code it is about.
"""

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATCHES = sorted(Path(__file__).parent.glob("*.patch"))
NEEDED = ("conf", "pipeline", "tests", "pyproject.toml")
HIDDEN = shutil.ignore_patterns("__pycache__", ".*")
SOME_FAILED = 1
"""Exit status of pytest where tests ran and some failed; others mean that it could not run them."""
FAILED = re.compile(r"^FAILED (\S+)", re.MULTILINE)
SHOWN = 3


class MutantError(Exception):
    """A patch proves nothing: it does not apply, or its tests could not run, or they saw nothing."""


def tests_of(patch: Path) -> list[str]:
    """The tests that must see a defect; never none."""
    found = re.findall(r"^Test: (.+)$", patch.read_text(), re.MULTILINE)
    if not found:
        raise MutantError(f"{patch.name}: names no test. Add a line 'Test: tests/...' above the diff.")
    return found


def copy_into(folder: Path) -> Path:
    """Copy what tests need, and return the folder."""
    for name in NEEDED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=HIDDEN)
        else:
            shutil.copy(source, folder)
    return folder


def apply(patch: Path, folder: Path, *options: str) -> None:
    """Raise a MutantError if a patch does not fit."""
    # Outside of any repository, or git would skip what is not in its index.
    ceiling = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(
        ["git", "apply", *options, str(patch)], check=False, cwd=folder, env=ceiling, capture_output=True, text=True
    )
    if done.returncode:
        raise MutantError(f"{patch.name}: no longer applies ({done.stderr.strip()}). Put its defect into today's code.")


def pytest(folder: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    """Run tests of a copy without what is slow, and without bytecode: a mutant is as old as what it replaces."""
    own = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    options = ["-q", "--tb=no", "--no-showlocals", "-p", "no:cacheprovider", "-m", "not slow and not e2e"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    return subprocess.run(command, check=False, cwd=folder, env=os.environ | own, capture_output=True, text=True)


def seen_by(patch: Path) -> list[str]:
    """Return the tests that fail with a patch applied.

    Raises:
        MutantError: there is none, or the patch or its tests are no longer what they were.
    """
    with tempfile.TemporaryDirectory(prefix="mutant-") as made:
        folder = copy_into(Path(made))
        apply(patch, folder)
        done = pytest(folder, tests_of(patch))
    if done.returncode == 0:
        raise MutantError(f"{patch.name}: survives. {patch.read_text().splitlines()[0]} Nobody sees it: add a test.")
    if done.returncode != SOME_FAILED:
        raise MutantError(f"{patch.name}: its tests could not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return FAILED.findall(done.stdout)


def green_without(patches: list[Path]) -> None:
    """Raise a MutantError unless the same tests pass on the tree as it is: red would mean nothing."""
    tests = sorted({test for patch in patches for test in tests_of(patch)})
    with tempfile.TemporaryDirectory(prefix="unmutated-") as made:
        done = pytest(copy_into(Path(made)), tests)
    if done.returncode:
        raise MutantError(f"the tests are not green without any patch:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def verdict(patch: Path) -> tuple[bool, str]:
    """Return whether a defect was seen, and by whom."""
    try:
        seen = seen_by(patch)
    except MutantError as error:
        return False, str(error)
    more = f" and {len(seen) - SHOWN} more" if len(seen) > SHOWN else ""
    return True, f"{patch.stem}: seen by {', '.join(seen[:SHOWN])}{more}"


def main(argv: list[str]) -> int:
    """Run all patches, or those whose names begin with what is given; return 0 if every one was seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of names (default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    given = parser.parse_args(argv)
    chosen = [patch for patch in PATCHES if not given.names or patch.name.startswith(tuple(given.names))]
    if not chosen:
        parser.error(f"no patch begins with {' or '.join(given.names)}")
    try:
        green_without(chosen)
    except MutantError as error:
        print(error)
        return 1
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        verdicts = []
        for seen, said in pool.map(verdict, chosen):
            print(said, flush=True)
            verdicts.append(seen)
    print(f"{sum(verdicts)} of {len(verdicts)} defects were seen.")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
