"""Scoring of word problems as PEFT's method comparison does (method_comparison/MetaMathQA/utils.py).

The answer is what follows the first of five phrases that the reply has, at its last place. It is compared as a number,
a fraction such as 20/14 included, or else as text. Commas are not taken out: "1,000" is no number here, and so is not
equal to 1000. Kept, for that is what the published figures mean.
"""

from decimal import Decimal, DecimalException
from typing import Any, ClassVar, Literal

from pipeline.core.settings import SettingsError
from pipeline.tasks.base import Rule

PHRASES = ("The answer is: ", "The answer is ", "The final answer is: ", "The final answer is ", "#### ")


class DecimalAnswer(Rule):
    """Equal as a number, or as text where either is none."""

    reads: ClassVar[str] = "replies"
    unit: ClassVar[str] = "%"
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    @property
    def id(self) -> str:
        return "peft-decimal"

    def value(self, item: dict[str, Any], reference: str) -> float | None:
        found, wanted = said(item["reply"]), said(reference)
        if wanted is None:
            raise SettingsError(f"a reference must say its answer after one of {PHRASES}, got {reference!r}.")
        return None if found is None else 100.0 * (number(found) == number(wanted))


def said(text: str) -> str | None:
    """Return what the text gives as its answer, or None."""
    text = text.strip().rstrip(".!?")
    phrase = next((one for one in PHRASES if one in text), None)
    if phrase is None:
        return None
    return text.rpartition(phrase)[-1].strip().split("\n", 1)[0].strip(" .!?$%")


def number(text: str) -> float | str:
    """Return a decimal or a fraction as a number, and any other text as it is."""
    parts = text.split("/")
    try:
        if len(parts) == 1:
            return float(Decimal(text.strip()))
        above, below = map(Decimal, map(str.strip, parts))
        return float(above / below)
    except (DecimalException, ValueError):
        return text
