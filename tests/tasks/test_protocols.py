"""Published protocols: what each asks, and what each makes of the same replies."""

import json
import random
from itertools import islice
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pipeline.core import records
from pipeline.core.settings import SettingsError, build, parse
from pipeline.tasks import rows
from pipeline.tasks.base import REFERENCES, Task
from pipeline.tasks.decimal_answer import DecimalAnswer
from pipeline.tasks.final_number import AnswerIs, Flexible, Strict
from pipeline.tasks.float_answer import FloatAnswer
from pipeline.tasks.generation import Greedy
from pipeline.tasks.gsm8k import GSM8K
from pipeline.tasks.math500 import Boxed
from pipeline.tasks.perplexity import BytePerplexity, WordPerplexity
from pipeline.tasks.rouge import Rouge
from pipeline.tasks.shots import Drawn
from pipeline.tasks.summarization import Summarization
from pipeline.tasks.wikitext import articles, detokenized

CONF = Path(__file__).parents[2] / "conf" / "task"
RULES = {"strict": Strict(), "cot": AnswerIs(), "flexible": Flexible(), "peft": DecimalAnswer(), "loftq": FloatAnswer()}
R, W, N = 100.0, 0.0, None
"""Right, wrong, nothing found."""


@pytest.mark.parametrize(
    ("reply", "reference", "strict", "cot", "flexible", "peft", "loftq"),
    [
        ("1,000", "1000", N, N, R, N, R),
        ("#### 1,000", "1000", R, N, R, W, R),  # commas are left in by PEFT: 1,000 is text
        ("#### 1,000", "1,000", R, N, R, R, R),  # ... and equal as such
        ("The answer is 1,000.", "1000", N, R, R, W, R),
        ("$18.", "18", N, N, R, N, R),
        ("#### $18.", "18", N, N, R, R, R),
        ("The answer is $18.", "18", N, N, R, R, R),
        ("-3.50", "-3.5", N, N, W, N, R),  # lm-eval compares text
        ("#### -3.50", "-3.5", W, N, W, R, R),
        ("The answer is -3.50.", "-3.50", N, R, R, R, R),
        ("#### 12 #### 13", "12", R, N, W, W, W),
        ("#### 12 #### 13", "13", W, N, R, R, R),
        ("The answer is 12. The answer is 13.", "12", N, R, W, W, W),
        ("The final answer is: 12 apples. The final answer is: 13", "12", N, N, W, W, R),
        ("The final answer is: many, of 7 in all", "7", N, N, R, W, R),
        ("7 apples. The final answer is: many", "7", N, N, R, W, R),  # LoftQ falls back to the last number of all
        ("The answer is 18", "18", N, W, R, R, R),  # nothing follows, and lm-eval's pattern leaves the 8 out
        ("#### 20/14", "10/7", W, N, W, R, W),
        ("#### 50%", "50", R, N, R, R, R),
        ("#### 5\nAnd more", "5", R, N, R, R, R),
        ("", "5", N, N, N, N, N),
        ("no number", "5", N, N, N, N, N),
    ],
)
def test_each_protocol_reads_a_reply_as_published(reply, reference, strict, cot, flexible, peft, loftq):
    expected = {"strict": strict, "cot": cot, "flexible": flexible, "peft": peft, "loftq": loftq}
    full = f"so\n#### {reference}"
    got = {
        name: rule.value({"reply": reply}, full) for name, rule in RULES.items() if name != "loftq" or "/" not in full
    }
    assert got == {name: value for name, value in expected.items() if name in got}


def test_a_reference_without_an_answer_is_said():
    with pytest.raises(SettingsError, match="a reference must say its answer"):
        DecimalAnswer().value({"reply": "#### 5"}, "5")
    with pytest.raises(SettingsError, match="a solution must put its answer"):
        Boxed().value({"reply": "5"}, "5")


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        (r"so \boxed{\frac{1}{2}}", R),
        (r"\boxed{3} no, \boxed{ \dfrac{1}{2}. }.", R),
        (r"\boxed{\frac12}", W),
        (r"\boxed{0.5}", W),
        (r"\boxed{\frac{1}{2}} and \boxed{never closed", R),
        (r"\frac{1}{2}", N),
    ],
)
def test_boxed_answers(reply, value):
    assert Boxed().value({"reply": reply}, r"Half: $\boxed{\frac{1}{2}}$.") == value


def task(name: str) -> Task:
    """A task of conf/ without its data."""
    node = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    made = build({key: value for key, value in node.items() if key != "data"}, name)
    assert isinstance(made, Task)
    return made


ROW = {"question": "How many?", "answer": "Two\nand <<1+1=2>>two.\n#### 4"}


@pytest.mark.parametrize(
    ("name", "prompt", "answer"),
    [
        ("gsm8k", "Question: How many?\nAnswer:", f" {ROW['answer']}"),
        ("gsm8k-cot", "Q: How many?\nA:", " Two and <<1+1=2>>two. The answer is 4."),
        ("gsm8k-peft", "Question: How many? Think step by step.\nAnswer:", f" {ROW['answer']}"),
        (
            "gsm8k-loftq",
            "How many?\nAnswer the above question. First think step by step and then answer the final number.\n",
            "Two\nand <<1+1=2>>two.\nThe final answer is: 4",
        ),
    ],
)
def test_wording(name, prompt, answer):
    assert (task(name).prompt(ROW), task(name).answer(ROW)) == (prompt, answer)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gsm8k", {"id": "lme-gsm8k-v3", "max_new_tokens": 256, "stop": ("Question:", "</s>", "<|im_end|>")}),
        ("gsm8k-cot", {"id": "lme-gsm8k_cot-v3", "max_new_tokens": 256, "stop": ("Q:", "</s>", "<|im_end|>")}),
        ("gsm8k-peft", {"id": "peft-mc", "max_new_tokens": 300, "stop": (), "shots": None}),
        ("gsm8k-loftq", {"id": "loftq-gsm8k", "temperature": 0.1, "top_k": 40, "top_p": 0.95, "seed": 42}),
        ("wikitext2", {"id": "gptq-2048", "start": "tokenizer", "context": 2048, "separator": "\n\n", "split": "test"}),
        ("wikitext2-words", {"id": "lme-wikitext-v2", "context": 2048, "split": "test"}),
        ("wikitext2-clm", {"id": "hf-clm-1024", "context": 1024, "lines": 1000, "split": "dev"}),
    ],
)
def test_a_published_id_means_its_fields(name, fields):
    asked = task(name).generation
    assert {field: getattr(asked, field) for field in fields} == fields


TRAIN = [{"id": f"train-{n:05}", "question": f"q{n}", "answer": f"a{n}\n#### {n}"} for n in range(1, 31)]


def test_shots_are_drawn_row_after_row_by_one_generator():
    made = list(islice(task("gsm8k").generation.shots.texts(task("gsm8k"), TRAIN), 4))
    draw = random.Random(1234)  # noqa: S311  (not for secrets)
    for text in made:
        drawn = draw.sample(TRAIN, 5)
        assert text == "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in drawn)
    assert len(set(made)) == 4
    other = Drawn(count=5, seed=0, between="\n\n").texts(task("gsm8k"), TRAIN)
    assert next(other) != made[0], "a seed that does nothing"
    with pytest.raises(SettingsError, match="got 5, the train split has 4 rows"):
        next(task("gsm8k").generation.shots.texts(task("gsm8k"), TRAIN[:4]))


def test_the_examples_of_chain_of_thought_are_the_same_eight():
    made = list(islice(task("gsm8k-cot").generation.shots.texts(task("gsm8k-cot"), []), 2))
    assert made[0] == made[1]
    assert made[0].count("Q: ") == made[0].count("\nA: ") == made[0].count(" The answer is ") == 8
    assert made[0].startswith("Q: There are 15 trees in the grove.")
    assert made[0].endswith(" 23 - 15 is 8. The answer is 8.\n\n")


def test_the_pool_of_examples_is_the_whole_train_file_in_order(tmp_path):
    parts = {"train": TRAIN[::2], "dev": TRAIN[1::2], "test": [{"id": "test-00001", "question": "q", "answer": "a"}]}
    splits = {
        name: {"file": f"{name}.jsonl", "rows": len(found), "sha256": rows.write(tmp_path / f"{name}.jsonl", found)}
        for name, found in parts.items()
    }
    manifest = tmp_path / "manifest.json"
    records.write(manifest, stage="prepare_data", settings={}, result={"splits": splits}, about={})
    assert rows.train_file(manifest) == TRAIN


def test_shots_travel_as_settings():
    asked = task("gsm8k").generation
    again = parse(Greedy, json.loads(json.dumps(asked.node())))
    assert again == asked
    assert GSM8K().question(ROW | {"shots": "before "}) == "before Question: How many?\nAnswer:"


def test_of_several_references_the_nearest_counts_and_the_first_is_trained_on():
    row = {"document": "d", "summary": f"a cat sat{REFERENCES}two dogs ran"}
    rule = Rouge(variant="1")
    assert rule.value({"reply": "two dogs ran"}, Summarization().reference(row)) == 100.0
    assert rule.value({"reply": "two cats"}, row["summary"]) == pytest.approx(100 * 0.4)
    assert Summarization().answer(row) == " a cat sat"


PAGE = " = Tom = \n \n Tom 's box ( 12 @,@ 000 pens ) . \n"


def test_articles_begin_at_headings_of_the_first_level():
    text = PAGE + " = = Life = = \n x \n" + PAGE
    assert articles("\n" + text) == [PAGE + " = = Life = = \n x ", PAGE]
    assert detokenized(PAGE) == " = Tom =\n\nTom's box (12,000 pens).\n"


def test_words_are_counted_on_the_page_as_it_was():
    item = {"log_likelihood": -30.0, "tokens": 9}
    assert WordPerplexity().weight(item, "one two\n three ") == 4
    assert WordPerplexity().value(item, "one two\n three ") == 7.5
    assert BytePerplexity().value(item, "é") == 15.0
