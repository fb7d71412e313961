"""The scoring rules as metrics of Hugging Face's `evaluate`, for who scores elsewhere; nothing is fetched.

Each gives the plain mean that a table here would show, over items of which none may lack a reference:
`Rouge().compute(predictions=replies, references=summaries)` -> {"rouge-1": ..., "rouge-Lsum": ...}.
`evaluate`'s own rouge gives the median of 1000 unseeded bootstrap means, its perplexity a mean over lines.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import datasets
import evaluate

from pipeline.evaluation.score import Item, scores
from pipeline.tasks.base import REFERENCES, Rule
from pipeline.tasks.decimal_answer import DecimalAnswer
from pipeline.tasks.final_number import AnswerIs, Flexible, Strict
from pipeline.tasks.float_answer import FloatAnswer
from pipeline.tasks.perplexity import BytePerplexity, Perplexity, WordPerplexity
from pipeline.tasks.rouge import Rouge as RougeRule

TEXT, NUMBER, COUNT = datasets.Value("string"), datasets.Value("float64"), datasets.Value("int64")


class RuleMetric(evaluate.Metric):
    """Scoring rules over pairs of a prediction and a reference. `config_name` is the id of a protocol."""

    rules: ClassVar[dict[str, tuple[Rule, ...]]]
    inputs: ClassVar[str]

    def __init__(self, config_name: str | None = None, *, cache_dir: str | None = None) -> None:
        chosen = next(iter(self.rules)) if config_name is None else config_name
        if chosen not in self.rules:
            raise ValueError(f"{type(self).__name__}: must be one of {', '.join(self.rules)}, got {chosen!r}.")
        super().__init__(config_name=chosen, cache_dir=cache_dir, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        shapes = [datasets.Features(predictions=one, references=other) for one, other in self.shapes()]
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "", citation="", inputs_description=self.inputs, features=shapes
        )

    def shapes(self) -> list[tuple[Any, Any]]:
        """Return the kinds of a prediction and of a reference, in pairs."""
        return [(TEXT, TEXT)]

    def _compute(self, *, predictions: list[Any], references: list[Any]) -> dict[str, float]:  # type: ignore[override]
        pairs = list(zip(map(str, range(len(predictions))), predictions, references, strict=True))
        items = [{"item": name} | self.item(prediction, reference) for name, prediction, reference in pairs]
        against = {name: self.reference(reference) for name, _, reference in pairs}
        found = scores(self.rules[self.config_name], {"all": items}, against)
        return {rule: entry["states"]["all"]["score"] for rule, entry in found.items()}

    def item(self, prediction: Any, reference: Any) -> Item:
        """Return the pair as an evaluation keeps it."""
        return {"reply": prediction}

    def reference(self, reference: Any) -> str:
        """Return what the rules compare with."""
        return reference


class Rouge(RuleMetric):
    """ROUGE-1, 2, L and Lsum by `rouge_score`: F1 x 100 with its stemmer, the nearest of several references."""

    rules: ClassVar = {"rouge": tuple(RougeRule(variant=variant) for variant in ("1", "2", "L", "Lsum"))}
    inputs: ClassVar = "predictions: summaries. references: a summary each, or a list of summaries each."

    def shapes(self) -> list[tuple[Any, Any]]:
        return [(TEXT, datasets.Sequence(TEXT)), (TEXT, TEXT)]

    def reference(self, reference: str | Iterable[str]) -> str:
        return reference if isinstance(reference, str) else REFERENCES.join(reference)


class GSM8K(RuleMetric):
    """Accuracy in percent on GSM8K, as the protocol of `config_name` reads replies."""

    rules: ClassVar = {
        "lme-gsm8k-v3": (Strict(), Flexible()),
        "lme-gsm8k_cot-v3": (AnswerIs(), Flexible()),
        "peft-mc": (DecimalAnswer(),),
        "loftq-gsm8k": (FloatAnswer(),),
    }
    inputs: ClassVar = "predictions: replies. references: GSM8K's own answers, with `#### ` before the number."


class ChunkPerplexity(RuleMetric):
    """exp of the mean over chunks of their mean cross-entropy."""

    rules: ClassVar = {"gptq-2048": (Perplexity(),), "hf-clm-1024": (Perplexity(),)}
    inputs: ClassVar = "predictions: the log-likelihood of each chunk in nats. references: its number of targets."

    def shapes(self) -> list[tuple[Any, Any]]:
        return [(NUMBER, COUNT)]

    def item(self, prediction: float, reference: int) -> Item:
        return {"log_likelihood": prediction, "tokens": reference}

    def reference(self, reference: int) -> str:
        return ""


class PagePerplexity(RuleMetric):
    """exp of all nats over all words, and over all bytes, of the pages as they were before detokenizing."""

    rules: ClassVar = {"lme-wikitext-v2": (WordPerplexity(), BytePerplexity())}
    inputs: ClassVar = "predictions: the log-likelihood of each page in nats. references: the pages."

    def shapes(self) -> list[tuple[Any, Any]]:
        return [(NUMBER, TEXT)]

    def item(self, prediction: float, reference: str) -> Item:
        return {"log_likelihood": prediction}
