"""`make matrix`: every adapter on every format on every architecture; writes the record, and the page made from it.

    python -m tests.matrix.run [--jobs 2] [--adapter lora ...] [--format nf4 ...] [--architecture gpt2 ...]

With a choice nothing is written: the cells are printed.
"""

import argparse
import itertools
import multiprocessing
import os
import sys
import time
import warnings
from typing import Any

from pipeline.core import provenance, records
from tests.adapters import tiny
from tests.matrix import page
from tests.matrix.bases import ARCHITECTURES
from tests.matrix.cell import DEFECT, Outcomes, tried

ADAPTERS = {path.stem: path for path in tiny.ADAPTERS}
FORMATS = {path.stem: path for path in sorted((tiny.ROOT / "conf" / "quantization").glob("*.yaml"))}
RECORD = tiny.ROOT / "docs" / "results" / "matrix.json"
PAGE = tiny.ROOT / "docs" / "methods.md"
Cell = tuple[str, str, str]


def one(cell: Cell) -> tuple[Cell, Outcomes]:
    adapter, format_, architecture = cell
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cell, tried(ADAPTERS[adapter], FORMATS[format_], architecture)


def result_of(found: dict[Cell, Outcomes]) -> dict[str, Any]:
    """Return the record's result: outcomes once each, and for each cell which of them it has."""
    kinds: list[Outcomes] = []
    cells: dict[str, dict[str, dict[str, int]]] = {}
    for (adapter, format_, architecture), outcomes in sorted(found.items()):
        if outcomes not in kinds:
            kinds.append(outcomes)
        cells.setdefault(adapter, {}).setdefault(format_, {})[architecture] = kinds.index(outcomes)
    return {"outcomes": kinds, "cells": cells}


def main(argv: list[str]) -> int:
    """Try the cells; return 0 if none has a defect."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix.run", description=__doc__)
    axes = {"adapter": ADAPTERS, "format": FORMATS, "architecture": ARCHITECTURES}
    for name, allowed in axes.items():
        parser.add_argument(f"--{name}", nargs="+", choices=allowed)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    given, started = parser.parse_args(argv), time.time()
    provenance.commit()  # of the code that starts here; it is kept
    chosen = [getattr(given, name) for name in axes]
    cells = list(itertools.product(*(names or allowed for names, allowed in zip(chosen, axes.values(), strict=True))))
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        found = dict(pool.imap_unordered(one, cells, chunksize=8))
    defects = {cell: [one for one in outcomes.values() if one.startswith(DEFECT)] for cell, outcomes in found.items()}
    for cell, said in sorted(defects.items()):
        for defect in said:
            print(*cell, defect)
    if any(chosen):
        for cell, outcomes in sorted(found.items()):
            print(*cell, outcomes)
    else:
        about = provenance.about(started, device=provenance.device_name("cpu"))
        records.write(RECORD, stage="matrix", settings={}, result=result_of(found), about=about)
        PAGE.write_text(page.page(records.read(RECORD, "matrix")), encoding="utf-8")
    bad = sum(bool(said) for said in defects.values())
    print(f"{len(found)} cells, {bad} with a defect, {time.time() - started:.0f} s.")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
