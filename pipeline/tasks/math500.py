r"""MATH-500: competition problems with worked solutions that end in \boxed{answer}. Hendrycks et al., arXiv:2103.03874.

The rule compares text after small changes of spelling; it knows no algebra, so 1/2 is not 0.5. It is this project's
own: figures of graders that do algebra are higher and stand in no column with it.
"""

import re
from typing import Any, ClassVar, Literal

from pipeline.core.settings import SettingsError
from pipeline.tasks.base import Row, Rule, Task

BOXED = "\\boxed{"
SPELLED = (("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), ("\\left", ""), ("\\right", ""), ("\\!", ""), ("$", ""))


class MATH500(Task):
    """Problems, asked without examples."""

    example: ClassVar[Row] = {
        "problem": "How many vertical asymptotes does the graph of $y=\\frac{2}{x^2+x-6}$ have?",
        "solution": "The denominator factors into $(x-2)(x+3)$, so it is zero at $x = 2$ and $x = -3$. "
        "The graph has $\\boxed{2}$ vertical asymptotes.",
    }
    hidden: ClassVar[str | None] = "solution"

    def prompt(self, row: Row) -> str:
        return f"Problem: {row['problem']}\nPut the final answer in \\boxed{{}}.\nSolution:"

    def answer(self, row: Row) -> str:
        return f" {row['solution']}"

    def reference(self, row: Row) -> str:
        return row["solution"]


class Boxed(Rule):
    r"""The contents of the last \boxed{} that is closed."""

    reads: ClassVar[str] = "replies"
    unit: ClassVar[str] = "%"
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    @property
    def id(self) -> str:
        return "math500-boxed"

    def value(self, item: dict[str, Any], reference: str) -> float | None:
        found, wanted = boxed(item["reply"]), boxed(reference)
        if wanted is None:
            raise SettingsError(f"a solution must put its answer in {BOXED}}}, got {reference!r}. Mend the data.")
        return None if found is None else 100.0 * (spelled(found) == spelled(wanted))


def boxed(text: str) -> str | None:
    r"""Return what the last closed \boxed{} of a text holds, or None."""
    for start in reversed([match.end() for match in re.finditer(re.escape(BOXED), text)]):
        depth = 1
        for index, letter in enumerate(text[start:], start):
            depth += {"{": 1, "}": -1}.get(letter, 0)
            if depth == 0:
                return text[start:index]
    return None


def spelled(text: str) -> str:
    """Return an answer without what is only typography: spaces, a final period, kinds of brackets and fractions."""
    for old, new in SPELLED:
        text = text.replace(old, new)
    return re.sub(r"\s", "", text).removesuffix(".")
