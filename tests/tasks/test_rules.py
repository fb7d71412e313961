"""Scoring rules against the published behavior of their protocols and against rouge_score itself."""

import math

import pytest
from rouge_score.rouge_scorer import RougeScorer

from pipeline.core.settings import SettingsError, parse
from pipeline.tasks.final_number import Flexible, Strict, normalized
from pipeline.tasks.perplexity import Perplexity
from pipeline.tasks.rouge import Rouge, sentence_lines

STRICT, FLEXIBLE = Strict(), Flexible()


@pytest.mark.parametrize(
    ("reply", "reference", "strict", "flexible"),
    [
        ("#### 12", "#### 12", 100.0, 100.0),
        ("1,000", "#### 1000", None, 100.0),
        ("#### 1,000", "so\n#### 1000", 100.0, 100.0),
        ("$18.", "#### 18", None, 100.0),
        ("#### $18", "#### 18", None, 100.0),
        ("-3.50", "#### -3.5", None, 0.0),
        ("#### -3.50", "#### -3.50", 100.0, 100.0),
        ("#### 12 #### 13", "#### 12", 100.0, 0.0),
        ("#### 12 #### 13", "#### 13", 0.0, 100.0),
        ("", "#### 5", None, None),
        ("no number here", "#### 5", None, None),
        ("5 apples", "#### 5", None, 100.0),
        ("#### 5.", "#### 5", 100.0, 100.0),
        ("it is 5, or so ...", "#### 5", None, 0.0),  # a known fault of the protocol: `...` looks like a number
    ],
)
def test_final_numbers_as_lm_eval_reads_them(reply, reference, strict, flexible):
    assert STRICT.value({"reply": reply}, reference) == strict
    assert FLEXIBLE.value({"reply": reply}, reference) == flexible


def test_what_is_ignored_on_both_sides():
    assert normalized("She has 3 #### $1,234.") == "1234"
    assert normalized("12.50") == "12.50"


def test_rules_have_distinct_ids():
    assert STRICT.id == "gsm8k-strict"
    assert FLEXIBLE.id == "gsm8k-flexible"


REFERENCE = "Tom found 5 shells. Ann was selling books at the sea."
REPLY = "Ann sells books. Tom found five shells and 5 coins."


@pytest.mark.parametrize("variant", ["1", "2", "L"])
def test_rouge_is_rouge_score_with_stemmer(variant):
    name = f"rouge{variant}"
    expected = RougeScorer([name], use_stemmer=True).score(REFERENCE, REPLY)[name].fmeasure
    got = Rouge(variant=variant).value({"reply": REPLY}, REFERENCE)
    assert got == pytest.approx(100 * expected, abs=0)
    assert Rouge(variant=variant).value({"reply": "He walked home"}, "he walks home") == 100.0, "without stemmer"


def test_lsum_compares_sentence_by_sentence():
    lsum = Rouge(variant="Lsum").value({"reply": REPLY}, REFERENCE)
    lines = RougeScorer(["rougeLsum"], use_stemmer=True).score(
        "Tom found 5 shells.\nAnn was selling books at the sea.", "Ann sells books.\nTom found five shells and 5 coins."
    )
    assert lsum == pytest.approx(100 * lines["rougeLsum"].fmeasure, abs=0)
    longest = Rouge(variant="L").value({"reply": REPLY}, REFERENCE)
    assert longest is not None
    assert lsum > longest + 10  # swapped sentences cost L and not Lsum


def test_sentences():
    assert sentence_lines(" One. Two!  Three? 4.5 kg\nfive ") == "One.\nTwo!\nThree?\n4.5 kg\nfive"


def test_an_unknown_variant_is_named():
    with pytest.raises(SettingsError, match="variant"):
        parse(Rouge, {"variant": "3"}, "scoring")


def test_perplexity_is_the_mean_cross_entropy_of_a_chunk():
    value = Perplexity().value({"log_likelihood": -255 * math.log(7), "tokens": 255}, "")
    assert value == pytest.approx(math.log(7))
