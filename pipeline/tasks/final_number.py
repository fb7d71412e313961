"""Scoring of word problems as lm-eval's `gsm8k` and `gsm8k_cot` (version 3) do.

Strict takes the number after `#### ` or `The answer is `, flexible the last number.

Both sides lose commas, dollar signs, everything up to `#### ` and one final period, ignoring case; then they must be
equal as text, so that 3.50 is not 3.5. Two known faults are kept, for a number's meaning is its protocol: strict takes
the first match, which punishes a model that goes on to further questions, and flexible can match a lone `...`.
https://github.com/EleutherAI/lm-evaluation-harness/tree/main/lm_eval/tasks/gsm8k
"""

import re
from typing import Any, ClassVar, Literal

from pipeline.tasks.base import Rule

STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
ANSWER_IS = re.compile(r"The answer is (\-?[0-9\.\,]+).")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
IGNORED = [re.compile(pattern) for pattern in (r",", r"\$", r"(?s).*#### ", r"\.$")]


class _FinalNumber(Rule):
    reads: ClassVar[str] = "replies"
    unit: ClassVar[str] = "%"
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    def found(self, reply: str) -> str | None:
        """Return the number that the reply gives as its answer, or None."""
        raise NotImplementedError  # each rule has its own

    def value(self, item: dict[str, Any], reference: str) -> float | None:
        found = self.found(item["reply"])
        return None if found is None else 100.0 * (normalized(found) == normalized(reference))


class Strict(_FinalNumber):
    """The first number after `#### `."""

    @property
    def id(self) -> str:
        return "gsm8k-strict"

    def found(self, reply: str) -> str | None:
        match = STRICT.search(reply)
        return match and match[1].strip()


class AnswerIs(_FinalNumber):
    """The first number after `The answer is `, of which lm-eval leaves the last character out if nothing follows."""

    @property
    def id(self) -> str:
        return "gsm8k-cot-strict"

    def found(self, reply: str) -> str | None:
        match = ANSWER_IS.search(reply)
        return match and match[1].strip()


class Flexible(_FinalNumber):
    """The last thing that looks like a number."""

    @property
    def id(self) -> str:
        return "gsm8k-flexible"

    def found(self, reply: str) -> str | None:
        matches = FLEXIBLE.findall(reply)
        return next(group for group in matches[-1] if group).strip() if matches else None


def normalized(text: str) -> str:
    """Return `text` without what the protocol ignores."""
    for pattern in IGNORED:
        text = pattern.sub("", text)
    return text.lower()
