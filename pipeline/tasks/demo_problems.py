"""The demo's word problems in GSM8K's row format: two steps with whole numbers, worked, then `#### n`.

`STORY` are the templates that the demo's base is pre-trained on, `PLAIN` are bare sums (the only place where the base
meets `*`), and `SHIFT` are stories that need `*`, which the base never saw: the task to fine-tune on.
Rows are held out by a hash of (template, a, b, c), so that no triple of a test row was ever trained on under its story.
"""

import hashlib
import random
from collections.abc import Iterator

from pipeline.core.seeds import number

Row = dict[str, str]
Template = tuple[str, str]
"""A text, and its two operators."""

NAMES = ["Tom", "Ann", "Sam", "Mia", "Leo", "Eva", "Max", "Zoe", "Ben", "Amy"]
OBJECTS = ["apples", "pens", "cards", "books", "coins", "shells", "eggs", "stamps", "cups", "balls"]

STORY: tuple[Template, ...] = (
    ("{n} has {a} {o}. {n} buys {b} more and then finds {c} more. How many {o} does {n} have now?", "++"),
    ("{n} has {a} {o}. {m} gives {n} {b} {o} and {n} loses {c}. How many {o} does {n} have now?", "+-"),
    ("{n} had {a} {o} and gave {b} to {m}. Then {n} bought {c} {o}. How many {o} does {n} have now?", "-+"),
    ("There are {a} {o} in a box. {n} takes {b} and {m} takes {c}. How many {o} are left?", "--"),
    ("{n} picked {a} {o} and {m} picked {b} {o}. They sold {c} of them. How many {o} are left?", "+-"),
    ("A shop has {a} {o}. It sells {b} {o} and then gets {c} more. How many {o} are there now?", "-+"),
)
PLAIN: tuple[Template, ...] = (
    ("What is {a} + {b} + {c}?", "++"),
    ("What is {a} + {b} - {c}?", "+-"),
    ("What is {a} - {b} + {c}?", "-+"),
    ("What is {a} - {b} - {c}?", "--"),
    ("What is {a} * {b} + {c}?", "*+"),
    ("What is {a} * {b} - {c}?", "*-"),
    ("What is ( {a} + {b} ) * {c}?", "+*"),
)
SHIFT: tuple[Template, ...] = (
    ("{n} has {a} bags with {b} {o} in each bag and {c} more {o}. How many {o} does {n} have in total?", "*+"),
    ("There are {a} rows of {b} {o}. {m} removes {c} {o}. How many {o} remain?", "*-"),
    ("{n} makes {a} {o} each day for {b} days and sells {c} {o}. How many {o} remain?", "*-"),
    ("Each day {n} makes {a} {o} and {m} makes {b} {o}. How many {o} do they make in {c} days?", "+*"),
)
TEMPLATES = {"story": STORY, "plain": PLAIN, "shift": SHIFT}

LARGEST = 99
"""Every number is 0 to 99, so that each can be one token."""
RANGES = {
    "*+": ((2, 5), (2, 9), (1, 9)),
    "*-": ((2, 5), (2, 9), (1, 9)),
    "+*": ((1, 9), (1, 9), (2, 5)),
}
ADDITIVE = ((2, 20), (1, 20), (1, 20))
HELD_OUT = {0: "test", 1: "test", 2: "dev"}
"""Of eight parts of all triples, two are for test and one for dev."""


def problems(kind: str, split: str, seed: int) -> Iterator[Row]:
    """Yield rows without end, drawn from the templates of `kind` with triples of `split`.

    Args:
        kind: story, plain or shift.
        split: train, dev or test.
        seed: of the draw; the split of a triple does not depend on it.
    """
    draw = random.Random(number(seed, f"demo problems {kind} {split}"))  # noqa: S311  (not for secrets)
    while True:
        template, operators = draw.choice(TEMPLATES[kind])
        a, b, c = (draw.randint(*bounds) for bounds in RANGES.get(operators, ADDITIVE))
        answer = worked(a, b, c, operators)
        n, m = draw.sample(NAMES, 2)
        o = draw.choice(OBJECTS)
        if answer is not None and split_of((template, a, b, c)) == split:
            yield {"question": template.format(n=n, m=m, o=o, a=a, b=b, c=c), "answer": answer}


def worked(a: int, b: int, c: int, operators: str) -> str | None:
    """Return both steps and the result, or None where a number is not within 0 and `LARGEST`."""
    first = _apply(a, operators[0], b)
    last = _apply(first, operators[1], c)
    if not (0 <= first <= LARGEST and 0 <= last <= LARGEST):
        return None
    return f"{a} {operators[0]} {b} = {first} . {first} {operators[1]} {c} = {last} #### {last}"


def split_of(key: object) -> str:
    """Return the split that `key` belongs to, for ever: a function of its text alone."""
    part = int(hashlib.sha256(repr(key).encode()).hexdigest(), 16) % 8
    return HELD_OUT.get(part, "train")


def _apply(x: int, operator: str, y: int) -> int:
    return {"+": x + y, "-": x - y, "*": x * y}[operator]
