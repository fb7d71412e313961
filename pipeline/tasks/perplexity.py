"""Perplexity over chunks: exp of the mean, over chunks, of a chunk's mean cross-entropy (GPTQ, arXiv:2210.17323)."""

from typing import Any, ClassVar, Literal

from pipeline.tasks.base import Rule


class Perplexity(Rule):
    """An item's number is its mean cross-entropy in nats a token; the score is the exp of their mean."""

    reads: ClassVar[str] = "likelihood"
    unit: ClassVar[str] = "ppl"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    aggregate: ClassVar[Literal["mean", "exp-mean"]] = "exp-mean"

    @property
    def id(self) -> str:
        return "perplexity"

    def value(self, item: dict[str, Any], reference: str) -> float | None:
        return -item["log_likelihood"] / item["tokens"]
