"""Scoring of word problems as LoftQ does (Li et al. 2023, arXiv:2310.08659; test_gsm8k.py of its repository).

Commas are taken out of the reply. The answer is the first number after the first `The final answer is: `, up to the
next one, else the last number of all; equal as floats. A number is digits with perhaps a sign before them and a point
after them, so in "3-2" it reads 3 and -2.
"""

import re
from typing import Any, ClassVar, Literal

from pipeline.tasks.base import Rule

NUMBER = re.compile(r"-?\d+\.?\d*")
PHRASE = "The final answer is: "


class FloatAnswer(Rule):
    """Equal as a float to the reference's number after ####."""

    reads: ClassVar[str] = "replies"
    unit: ClassVar[str] = "%"
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    @property
    def id(self) -> str:
        return "loftq-float"

    def value(self, item: dict[str, Any], reference: str) -> float | None:
        reply = item["reply"].replace(",", "")
        if not (numbers := NUMBER.findall(reply)):
            return None
        after = reply.split(PHRASE)[1:2]
        found = [number for part in after for number in NUMBER.findall(part)][:1] or numbers[-1:]
        return 100.0 * (float(found[0]) == float(reference.rpartition("####")[2].replace(",", "")))
