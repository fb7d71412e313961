"""Perplexities: exp of a mean cross-entropy, over chunks of tokens or over the words or bytes of texts."""

import re
from typing import Any, ClassVar, Literal

from pipeline.tasks.base import Rule


class Perplexity(Rule):
    """An item's number is its mean cross-entropy in nats a token; the score is the exp of their mean.

    GPTQ (Frantar et al. 2022, arXiv:2210.17323), and the loss of transformers' Trainer over blocks of one length.
    """

    reads: ClassVar[str] = "likelihood"
    unit: ClassVar[str] = "ppl"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    aggregate: ClassVar[Literal["mean", "exp-mean"]] = "exp-mean"
    compares: ClassVar[bool] = False

    @property
    def id(self) -> str:
        return "perplexity"

    def value(self, item: dict[str, Any], reference: str) -> float | None:
        return -item["log_likelihood"] / item["tokens"]


class WordPerplexity(Rule):
    """exp of all nats over all words of the pages as they were before detokenizing, as lm-eval counts.

    A word is what stands between white space; what stands before the first and after the last counts too, if empty.
    https://github.com/EleutherAI/lm-evaluation-harness/blob/main/lm_eval/tasks/wikitext/preprocess_wikitext.py
    """

    reads: ClassVar[str] = "text-likelihood"
    unit: ClassVar[str] = "ppl a word"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    aggregate: ClassVar[Literal["mean", "exp-mean"]] = "exp-mean"

    @property
    def id(self) -> str:
        return "word-perplexity"

    def weight(self, item: dict[str, Any], reference: str) -> float:
        return len(re.split(r"\s+", reference))

    def value(self, item: dict[str, Any], reference: str) -> float | None:
        return -item["log_likelihood"] / self.weight(item, reference)


class BytePerplexity(WordPerplexity):
    """exp of all nats over all bytes of the pages in UTF-8."""

    unit: ClassVar[str] = "ppl a byte"

    @property
    def id(self) -> str:
        return "byte-perplexity"

    def weight(self, item: dict[str, Any], reference: str) -> float:
        return max(1, len(reference.encode()))
