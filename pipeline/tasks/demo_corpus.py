"""The text that the demo's base is pre-trained on: own story problems, bare sums and short documents, mixed.

It holds nothing of the shifted stories, and of every template only what is not held out for dev and test.
"""

import random
from collections.abc import Iterator
from itertools import islice

from pipeline.core.seeds import number
from pipeline.tasks.demo_documents import documents
from pipeline.tasks.demo_problems import Row, problems
from pipeline.tasks.prompts import document_summary, question_answer

SHARES = {"story": 0.54, "plain": 0.36, "document": 0.10}


def pairs(split: str, seed: int) -> Iterator[tuple[str, str]]:
    """Yield (prompt, completion) of the mix without end; a completion starts with a space."""
    draw = random.Random(number(seed, f"demo corpus {split}"))  # noqa: S311  (not for secrets)
    streams = {kind: problems(kind, split, seed) for kind in ("story", "plain")} | {"document": documents(split, seed)}
    while True:
        (kind,) = draw.choices(list(SHARES), weights=list(SHARES.values()))
        row = next(streams[kind])
        if kind == "document":
            yield document_summary(row["document"]), f" {row['summary']}"
        else:
            yield question_answer(row["question"]), f" {row['answer']}"


def texts(seed: int, n: int) -> list[tuple[str, str]]:
    """Return `n` pairs (prompt, completion) to pre-train on."""
    return list(islice(pairs("train", seed), n))


def lines(split: str, seed: int) -> Iterator[Row]:
    """Yield rows {text} of the mix without end, prompt and completion in one."""
    return ({"text": prompt + completion} for prompt, completion in pairs(split, seed))
