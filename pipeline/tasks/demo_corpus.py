"""The text that the demo's base is pre-trained on: own story problems, bare sums and short documents, mixed.

It holds nothing of the shifted stories, and of every template only what is not held out for dev and test.
"""

import random
from collections.abc import Iterator

from pipeline.core.seeds import number
from pipeline.tasks.demo_documents import documents
from pipeline.tasks.demo_problems import Row, problems

SHARES = {"story": 0.54, "plain": 0.36, "document": 0.10}


def problem_prompt(row: Row) -> str:
    """Return the prompt of a word problem, as GSM8K's usual one."""
    return f"Question: {row['question']}\nAnswer:"


def document_prompt(row: Row) -> str:
    """Return the prompt of a document to summarize."""
    return f"Document: {row['document']}\nSummary:"


def texts(seed: int, n: int, split: str = "train") -> list[tuple[str, str]]:
    """Return `n` pairs (prompt, completion) of the mix, drawn from `split`; a completion starts with a space."""
    draw = random.Random(number(seed, f"demo corpus {split}"))  # noqa: S311  (not for secrets)
    streams: dict[str, Iterator[tuple[str, str]]] = {
        "story": ((problem_prompt(row), f" {row['answer']}") for row in problems("story", split, seed)),
        "plain": ((problem_prompt(row), f" {row['answer']}") for row in problems("plain", split, seed)),
        "document": ((document_prompt(row), f" {row['summary']}") for row in documents(split, seed)),
    }
    kinds = draw.choices(list(SHARES), weights=list(SHARES.values()), k=n)
    return [next(streams[kind]) for kind in kinds]
