"""Rows of two splits that say the same: a test row that was trained on measures memory.

Equal is: the same after lower-casing and dropping all but letters and digits. Near is: the sets of five consecutive
words have a Jaccard similarity of at least 0.8.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator

WORD = re.compile(r"\w+")
SHINGLE = 5
NEAR = 0.8

Shingles = frozenset[tuple[str, ...]]


def overlaps(train: list[str], test: list[str]) -> dict[str, dict[int, int]]:
    """Return the test texts that are in train, each with the first that it is like: index in test -> index in train.

    They are told apart as `equal`, and `near` among the others.
    """
    known: dict[tuple[str, ...], int] = {}
    for index, text in enumerate(train):
        known.setdefault(tuple(words(text)), index)
    equal = {index: known[found] for index, text in enumerate(test) if (found := tuple(words(text))) in known}
    rest = [index for index in range(len(test)) if index not in equal]
    near = _near([shingles(text) for text in train], [shingles(test[index]) for index in rest])
    return {"equal": equal, "near": {rest[index]: like for index, like in near}}


def words(text: str) -> list[str]:
    """Return the words and numbers of a text, lower-case."""
    return WORD.findall(text.lower())


def shingles(text: str) -> Shingles:
    """Return all runs of five words; a shorter text is one run."""
    found = words(text)
    return frozenset(tuple(found[i : i + SHINGLE]) for i in range(max(1, len(found) - SHINGLE + 1)))


def _near(train: list[Shingles], test: list[Shingles]) -> Iterator[tuple[int, int]]:
    """Yield the indices of test sets that resemble a train set, and of the first such, without comparing all with all.

    A set that resembles one of n runs shares at least 0.8 n of them, so at least one of its n - 0.8 n + 1 rarest: only
    the train sets that hold one of those are compared.
    """
    holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, runs in enumerate(train):
        for run in runs:
            holders[run].append(index)
    for index, runs in enumerate(test):
        rarest = sorted(runs, key=lambda run: (len(holders.get(run, ())), run))
        probes = rarest[: len(runs) - math.ceil(NEAR * len(runs)) + 1]
        candidates = sorted({holder for run in probes for holder in holders.get(run, ())})
        like = next((one for one in candidates if len(runs & train[one]) >= NEAR * len(runs | train[one])), None)
        if like is not None:
            yield index, like
