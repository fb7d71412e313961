"""ROUGE by `rouge_score` (Lin 2004): F1 x 100 with Porter's stemmer; over items the plain mean.

Where a row has several references, the nearest counts, as in SciTLDR (arXiv:2004.15011). Not `evaluate`'s aggregate,
which is the median of 1000 unseeded bootstrap means. ROUGE-Lsum compares sentence by sentence; a sentence here ends at
a line break, or at . ! ? and white space.
"""

import re
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pipeline.tasks.base import REFERENCES, Rule

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Rouge(Rule):
    """One variant of ROUGE. An empty reply is a failure."""

    reads: ClassVar[str] = "replies"
    unit: ClassVar[str] = "F1 x 100"
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    variant: Literal["1", "2", "L", "Lsum"]

    @property
    def id(self) -> str:
        return f"rouge-{self.variant}"

    def value(self, item: dict[str, Any], reference: str) -> float | None:
        if not item["reply"].strip():
            return None
        name, reply = f"rouge{self.variant}", sentence_lines(item["reply"])
        each = (_scorer(name).score(sentence_lines(one), reply)[name] for one in reference.split(REFERENCES))
        return 100.0 * max(float(score.fmeasure) for score in each)


def sentence_lines(text: str) -> str:
    """Return `text` with one sentence a line. Only Lsum looks at line breaks."""
    return SENTENCE_END.sub("\n", text.strip())


@cache
def _scorer(name: str) -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415  (1.4 s; a plan that names the rule needs none of it)

    return RougeScorer([name], use_stemmer=True)
