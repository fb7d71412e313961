"""docs/methods.md, made from the record of the matrix and from what each method says of itself."""

import inspect
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any

from pipeline.adapters.base import AdapterSettings
from pipeline.core.records import Record
from pipeline.models.states import STATES
from tests.adapters import tiny
from tests.matrix.cell import DEFECT, OK, REFUSED, STEPS, Outcomes

HEAD = """# Methods

Made by `make matrix` from `docs/results/matrix.json` and from the methods' own files; edit those. Every method was put
on every format on a tiny model of every architecture, trained until its loss fell, saved, loaded, merged into every
state, and loaded into PEFT where there is a file for it: {cells} cells on {device}, {time}, commit `{commit}`, torch
{torch}, transformers {transformers}, peft {peft}, bitsandbytes {bitsandbytes}.

Formats: {formats}. Architectures: {architectures}; -whole has fused projections adapted as one place, the others by
their slices.

**Merge** says whether the update can be written as weights, in every merged state. **Ships as trained** says on which
formats the base's own codes take the update, so that what ships computes what was trained; elsewhere it is quantized
anew. **PEFT** says whether PEFT computes the same from our file, wherever it has adapters on such modules.

"""
COLUMNS = ("method", "paper", "equation", "options", "formats", "architectures", "merge", "ships as trained", "PEFT")
Found = list[tuple[str, str, str, Outcomes]]


def page(record: Record) -> str:
    """Return the page."""
    found = list(cells(record))
    formats, architectures = (list(dict.fromkeys(cell[axis] for cell in found)) for axis in (1, 2))
    facts = record.about["versions"] | {key: record.about[key] for key in ("device", "time", "commit")}
    named = {"formats": ", ".join(formats), "architectures": ", ".join(architectures), "cells": len(found)}
    rows = [_row(path.stem, tiny.settings(path), [cell for cell in found if cell[0] == path.stem])
            for path in tiny.ADAPTERS]  # fmt: skip
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS)), *map(_line, rows)]
    return HEAD.format(**facts | named) + "\n".join(lines) + "\n" + _refusals(found)


def cells(record: Record) -> Iterator[tuple[str, str, str, Outcomes]]:
    """Yield adapter, format, architecture and outcomes of every cell."""
    outcomes = record.result["outcomes"]
    for adapter, by_format in record.result["cells"].items():
        for format_, by_architecture in by_format.items():
            for architecture, index in by_architecture.items():
                yield adapter, format_, architecture, outcomes[index]


def _row(name: str, settings: Any, found: Found) -> list[str]:
    trains = [cell for cell in found if cell[3]["train"] == OK]
    merges = [outcome for *_, told in trains for step, outcome in told.items() if step in STATES]
    exact = {format_ for _, format_, _, told in trains if told.get("absorb") == OK}
    refused = {format_ for _, format_, _, told in trains if "absorb" in told and told["absorb"] != OK}
    some = [f"{format_} (some)" if format_ in refused else format_ for format_ in sorted(exact)]
    peft = {told["peft"] for *_, told in trains if "peft" in told}
    return [
        f"{settings.label} (`{name}`)",
        paper(settings),
        f"`{type(settings).__module__.replace('.', '/')}.py`",
        ", ".join(key for key in settings.node() if key not in ("_target_", "roles")) or "-",
        _all_or({cell[1] for cell in trains}, {cell[1] for cell in found}),
        _all_or({cell[2] for cell in trains}, {cell[2] for cell in found}),
        "yes" if merges and set(merges) == {OK} else "no",
        ", ".join(some) or "-",
        {True: "yes", False: "no"}[OK in peft] + (", but not everywhere" if OK in peft and len(peft) > 1 else ""),
    ]


def paper(settings: AdapterSettings) -> str:
    """Return the arXiv number that the method's module names for it, behind its label or first of all."""
    told = inspect.getdoc(inspect.getmodule(type(settings))) or ""
    own = re.search(rf"\b{re.escape(settings.label)}: .*?arXiv:([\d.]+\d)", told, re.DOTALL)
    found = own or re.search(r"arXiv:([\d.]+\d)", told)
    return f"[{found[1]}](https://arxiv.org/abs/{found[1]})" if found else "-"


def _refusals(found: Found) -> str:
    """Return the refusals by their reasons, and defects if there are any."""
    where: dict[tuple[str, str], list[tuple[str, ...]]] = defaultdict(list)
    for *cell, told in found:
        for step, outcome in told.items():
            if outcome != OK:
                kind = "merge" if step in STATES else step
                for why in outcome.split("; ") if step == "absorb" else [outcome]:  # there several may come together
                    where[_prefixed(why, outcome), kind].append(tuple(cell))
    parts = []
    for title, prefix, steps in (
        ("Refused", REFUSED, ("train", "merge")),
        ("Quantized anew", REFUSED, ("absorb",)),
        ("Not in PEFT's format", REFUSED, ("peft",)),
        ("Defects", DEFECT, (*STEPS, "merge")),
    ):
        rows = [
            _line([step, why.removeprefix(prefix), *_axes(hit, found)])
            for (why, step), hit in sorted(where.items(), key=lambda item: (item[0][1], item[0][0]))
            if step in steps and why.startswith(prefix)
        ]
        if rows:
            head = ("step", "why", "methods", "formats", "architectures")
            parts += [f"\n## {title}\n", _line(head), _line(["---"] * len(head)), *rows]
    return "\n".join(parts) + "\n"


def _prefixed(why: str, outcome: str) -> str:
    """Return one of the reasons of an outcome, with the word that all of them begin with."""
    return why if why.startswith((REFUSED, DEFECT)) else f"{outcome.partition(': ')[0]}: {why}"


def _axes(hit: list[tuple[str, ...]], found: Found) -> list[str]:
    return [_all_or({cell[axis] for cell in hit}, {cell[axis] for cell in found}) for axis in range(3)]


def _all_or(some: Collection[str], every: Collection[str]) -> str:
    if set(some) == set(every):
        return "all"
    left = sorted(set(every) - set(some))
    return f"all but {', '.join(left)}" if 0 < len(left) < len(every) / 4 else ", ".join(sorted(some)) or "none"


def _line(texts: Collection[str]) -> str:
    return f"| {' | '.join(texts)} |"
