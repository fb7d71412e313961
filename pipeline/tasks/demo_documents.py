"""The demo's documents with reference summaries: who did what, without the scenery.

A summary takes two facts out of three sentences. Each kind of document says them at its own places, as the word
problems do, so that a base of half a million parameters learns to summarize beside learning its sums.
Rows are held out by a hash of the whole document.
"""

import random
from collections.abc import Iterator

from pipeline.core.seeds import number
from pipeline.tasks.demo_problems import NAMES, OBJECTS, Row, split_of

SCENES = {
    "p": ["market", "school", "river", "station", "park", "lake"],
    "t": ["noon", "night", "dawn", "seven", "nine", "ten"],
    "w": ["cold", "warm", "long", "quiet", "busy", "rainy"],
}
KINDS = (
    (
        "{n} went to the {p} at {t}. It was a {w} day. {n} found {a} {o} and {m} lost {b} {q}.",
        "{n} found {a} {o}. {m} lost {b} {q}.",
    ),
    (
        "{n} and {m} met at the {p} on a {w} day. {n} sold {a} {o} to {m}. At {t} {m} bought {b} {q}.",
        "{n} sold {a} {o}. {m} bought {b} {q}.",
    ),
    (
        "At {t} the {p} was closed. {n} made {a} {o} at home. {m} stayed too and packed {b} {q} that {w} day.",
        "{n} made {a} {o}. {m} packed {b} {q}.",
    ),
    (
        "The {p} was {w}. At {t} {n} came and took {a} {o}. Nobody but {m} saw it, and {m} hid {b} {q}.",
        "{n} took {a} {o}. {m} hid {b} {q}.",
    ),
)
NUMBERS = (2, 20)


def documents(split: str, seed: int) -> Iterator[Row]:
    """Yield rows {document, summary} of `split` (train, dev or test) without end."""
    draw = random.Random(number(seed, f"demo documents {split}"))  # noqa: S311  (not for secrets)
    while True:
        document, summary = draw.choice(KINDS)
        facts = {name: draw.choice(words) for name, words in SCENES.items()}
        facts |= dict(zip("nm", draw.sample(NAMES, 2), strict=True))
        facts |= dict(zip("oq", draw.sample(OBJECTS, 2), strict=True))
        facts |= {name: str(draw.randint(*NUMBERS)) for name in "ab"}
        row = {"document": document.format(**facts), "summary": summary.format(**facts)}
        if split_of(row["document"]) == split:
            yield row
