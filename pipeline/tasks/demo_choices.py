"""The demo's choices: stories that the base was never told, and worked answers, of which one fits its story."""

import random
from collections.abc import Iterator

from pipeline.core.seeds import number
from pipeline.tasks.base import REFERENCES, Row
from pipeline.tasks.demo_problems import problems, worked

WAYS = ("++", "+-", "-+", "--", "*+", "*-", "+*")
OFFERED = 4


def choices(split: str, seed: int) -> Iterator[Row]:
    """Yield rows {question, choices, answer} of `split` (train, dev or test) without end."""
    draw = random.Random(number(seed, f"demo choices {split}"))  # noqa: S311  (not for secrets)
    for row in problems("shift", split, seed):
        a, _, b, _, _, _, _, _, c, *_ = row["answer"].split()
        others = [text for way in WAYS if (text := worked(int(a), int(b), int(c), way)) not in (None, row["answer"])]
        if len(others) >= OFFERED - 1:
            offered = [row["answer"], *draw.sample(others, OFFERED - 1)]
            draw.shuffle(offered)
            yield {"question": row["question"], "choices": REFERENCES.join(offered), "answer": row["answer"]}
