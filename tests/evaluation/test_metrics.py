"""The metrics of `evaluate` need no network and give what the scoring rules give, and rouge_score's plain mean."""

import math
import socket

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from pipeline.core.settings import SettingsError
from pipeline.evaluation.metrics import GSM8K, ChunkPerplexity, PagePerplexity, Rouge
from pipeline.evaluation.score import scores
from pipeline.tasks.demo_documents import documents

REPLIES = ["1,000", "$18.", "-3.50", "#### 12 #### 13", "", "The answer is 7.", "The final answer is: 5 of 9"]
ANSWERS = [f"So.\n#### {number}" for number in ("1000", "18", "-3.50", "12", "5", "7", "5")]
EXPECTED = {
    "lme-gsm8k-v3": {"gsm8k-strict": 1, "gsm8k-flexible": 4},
    "lme-gsm8k_cot-v3": {"gsm8k-cot-strict": 1, "gsm8k-flexible": 4},
    "peft-mc": {"peft-decimal": 1},
    "loftq-gsm8k": {"loftq-float": 5},
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    def refuse(*_):
        raise AssertionError("a metric asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return {"cache_dir": str(tmp_path)}


def pairs(n=40):
    """Documents' summaries, against those of documents that differ in a part of their facts."""
    rows = [row["summary"] for row, _ in zip(documents("test", 0), range(2 * n), strict=False)]
    return rows[:n], rows[n:]


def test_rouge_is_the_plain_mean_of_rouge_score(no_network):
    predictions, references = pairs()
    got = Rouge(**no_network).compute(predictions=predictions, references=references)
    names = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-L": "rougeL", "rouge-Lsum": "rougeLsum"}
    scorer = RougeScorer(list(names.values()), use_stemmer=True)
    lines = [(text.replace(". ", ".\n") for text in pair) for pair in zip(references, predictions, strict=True)]
    each = [scorer.score(*pair) for pair in lines]
    assert got == {ours: pytest.approx(100 * np.mean([one[theirs].fmeasure for one in each]))
                   for ours, theirs in names.items()}  # fmt: skip
    assert len({round(value, 6) for value in got.values()}) >= 3, "variants that agree show nothing"


def test_of_several_references_the_nearest_counts(no_network):
    one = Rouge(**no_network).compute(predictions=["two dogs ran"], references=[["a cat sat", "two dogs ran"]])
    assert set(one.values()) == {100.0}


@pytest.mark.parametrize("protocol", GSM8K.rules)
def test_every_protocol_of_gsm8k_counts_as_its_rules_do(no_network, protocol):
    metric = GSM8K(protocol, **no_network)
    for reply, answer in zip(REPLIES[:3], ANSWERS, strict=False):
        metric.add(prediction=reply, reference=answer)
    metric.add_batch(predictions=REPLIES[3:], references=ANSWERS[3:])
    got = metric.compute()
    items = {"all": [{"item": str(n), "reply": reply} for n, reply in enumerate(REPLIES)]}
    rules = scores(GSM8K.rules[protocol], items, dict(zip(map(str, range(7)), ANSWERS, strict=True)))
    assert got == {rule: entry["states"]["all"]["score"] for rule, entry in rules.items()}
    assert got == {rule: pytest.approx(100 * right / 7) for rule, right in EXPECTED[protocol].items()}


@pytest.mark.parametrize("protocol", ["gptq-2048", "hf-clm-1024"])
def test_perplexity_of_chunks(no_network, protocol):
    got = ChunkPerplexity(protocol, **no_network).compute(predictions=[-2.0, -9.0], references=[4, 6])
    assert got == {"perplexity": pytest.approx(math.exp((2 / 4 + 9 / 6) / 2))}


def test_perplexity_of_pages(no_network):
    got = PagePerplexity(**no_network).compute(predictions=[-2.0, -9.0], references=["one two", "three é five"])
    assert got["word-perplexity"] == pytest.approx(math.exp(11 / 5))
    assert got["byte-perplexity"] == pytest.approx(math.exp(11 / (7 + 13)))


def test_what_cannot_be_scored_is_said(no_network):
    with pytest.raises(ValueError, match=r"GSM8K: must be one of lme-gsm8k-v3, .*got 'gsm8k'"):
        GSM8K("gsm8k")
    with pytest.raises(TypeError, match="use_stemmer"):
        Rouge(**no_network).compute(predictions=["a"], references=["a"], use_stemmer=False)
    with pytest.raises(SettingsError, match="item '1' has no reference"):
        GSM8K(**no_network).compute(predictions=["#### 1", ""], references=["#### 1", ""])
