"""Scores that read the log-likelihood of answers: how probable the right one is, and whether it is preferred.

Of a model that is too small to answer rightly, an accuracy says nothing; how probable it holds the right answer does.
"""

from typing import Any, ClassVar, Literal

from pipeline.core.settings import SettingsError
from pipeline.tasks.base import Rule


class GoldLogprob(Rule):
    """All nats of the right answers over all their tokens."""

    reads: ClassVar[str] = "answers"
    unit: ClassVar[str] = "nats a token"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    part: ClassVar[str] = "tokens"

    @property
    def id(self) -> str:
        return "gold-logprob"

    def weight(self, item: dict[str, Any], reference: str) -> float:
        return item["answers"][0][self.part]

    def value(self, item: dict[str, Any], reference: str) -> float | None:
        return item["answers"][0]["log_likelihood"] / self.weight(item, reference)


class GoldLogprobByte(GoldLogprob):
    """All nats of the right answers over all their bytes in UTF-8, which are the same for every tokenizer."""

    unit: ClassVar[str] = "nats a byte"
    part: ClassVar[str] = "bytes"

    @property
    def id(self) -> str:
        return "gold-logprob-byte"


class RankClassification(Rule):
    """The right answer is the most probable one, alone: rank classification (Brown et al. 2020, arXiv:2005.14165).

    With `per` it is the most probable one a token, as in T-Few (Liu et al. 2022, arXiv:2205.05638), or a byte.
    """

    reads: ClassVar[str] = "answers"
    unit: ClassVar[str] = "%"
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    per: Literal["answer", "token", "byte"]

    @property
    def id(self) -> str:
        return f"rank-{self.per}"

    def value(self, item: dict[str, Any], reference: str) -> float | None:
        sizes = [1 if self.per == "answer" else answer[f"{self.per}s"] for answer in item["answers"]]
        right, *wrong = (answer["log_likelihood"] / size for answer, size in zip(item["answers"], sizes, strict=True))
        if not wrong:
            raise SettingsError(f"{self.id}: item {item['item']!r} has one answer only, so there is nothing to choose.")
        return 100.0 * (right > max(wrong))
