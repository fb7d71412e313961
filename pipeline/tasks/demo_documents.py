"""The demo's documents with reference summaries: who did what, for the two people that the first line is about.

A summary copies two of three facts, in the order of the first line and without their last two words. Copying by name
is what two attention layers learn soonest, so a base of half a million parameters summarizes well before fine-tuning.
Rows are held out by a hash of the whole document.
"""

import random
from collections.abc import Iterator

from pipeline.core.seeds import number
from pipeline.tasks.demo_problems import NAMES, OBJECTS, Row, split_of

VERBS = "found sold lost bought made packed".split()
PLACES = "home school work noon night sea".split()


def documents(split: str, seed: int) -> Iterator[Row]:
    """Yield rows {document, summary} of `split` (train, dev or test) without end."""
    draw = random.Random(number(seed, f"demo documents {split}"))  # noqa: S311  (not for secrets)
    while True:
        people = draw.sample(NAMES, 3)
        facts = {name: f"{name} {draw.choice(VERBS)} {draw.randint(2, 20)} {draw.choice(OBJECTS)}" for name in people}
        first, second = draw.sample(people, 2)
        body = " ".join(f"{fact} at {draw.choice(PLACES)}." for fact in facts.values())
        document = f"About {first} and {second}. {body}"
        if split_of(document) == split:
            yield {"document": document, "summary": f"{facts[first]}. {facts[second]}."}
