"""The demo's texts: sums are right, splits do not leak, every word is one token, seeds matter."""

import json
import re
from itertools import islice

import pytest
from tokenizers import pre_tokenizers

from pipeline.tasks import demo_corpus, demo_problems, demo_tokenizer
from pipeline.tasks.demo_documents import documents
from pipeline.tasks.demo_problems import TEMPLATES, problems
from pipeline.tasks.final_number import Strict
from pipeline.tasks.prompts import question_answer

SEEDS = (0, 1, 2)
STEP = re.compile(r"(\d+) ([+*-]) (\d+) = (\d+)")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", TEMPLATES)
def test_every_step_of_every_answer_is_right(kind, seed):
    for row in islice(problems(kind, "test", seed), 200):
        steps, final = row["answer"].split(" #### ")
        found = STEP.findall(steps)
        assert len(found) == 2
        for a, operator, b, result in found:
            assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[operator] == int(result)
        assert found[0][3] == found[1][0]
        assert found[1][3] == final
        assert Strict().value({"reply": f" {row['answer']}"}, row["answer"]) == 100.0


def _triples(kind, split, seed):
    """The numbers of each story, with its text's shape."""
    rows = islice(problems(kind, split, seed), 1500)
    return {(re.sub(r"\b([A-Z]\w+|\d+|" + "|".join(demo_problems.OBJECTS) + r")\b", "_", row["question"]),
             *re.findall(r"\d+", row["question"])) for row in rows}  # fmt: skip


@pytest.mark.parametrize("kind", TEMPLATES)
def test_no_triple_of_one_split_is_in_another_whatever_the_seed(kind):
    train = _triples(kind, "train", 0) | _triples(kind, "train", 1)
    dev, test = _triples(kind, "dev", 2), _triples(kind, "test", 3)
    assert len(test) > 50
    assert not train & (dev | test)
    assert not dev & test


def test_the_base_never_reads_a_shifted_story():
    text = "\n".join(prompt for prompt, _ in demo_corpus.texts(0, 5000))
    assert "bags with" not in text
    assert "rows of" not in text
    assert "each day" not in text.lower()


def test_held_out_rows_are_not_in_the_pretraining_text():
    read = {prompt for prompt, _ in demo_corpus.texts(0, 20000)}
    asked = [question_answer(row["question"]) for row in islice(problems("story", "test", 0), 500)]
    assert not read & set(asked)
    assert not read & {f"Document: {row['document']}\nSummary:" for row in islice(documents("test", 0), 200)}


def test_a_seed_repeats_and_two_seeds_differ():
    assert demo_corpus.texts(0, 50) == demo_corpus.texts(0, 50)
    assert demo_corpus.texts(0, 50) != demo_corpus.texts(1, 50)
    assert demo_corpus.texts(0, 80)[:50] == demo_corpus.texts(0, 50)


def test_the_mix_has_its_shares():
    prompts = [prompt for prompt, _ in demo_corpus.texts(0, 4000)]
    shares = {
        "document": sum(prompt.startswith("Document:") for prompt in prompts) / 4000,
        "plain": sum("What is" in prompt for prompt in prompts) / 4000,
    }
    assert shares == {kind: pytest.approx(demo_corpus.SHARES[kind], abs=0.03) for kind in shares}


def test_every_word_and_number_of_the_demo_is_one_token():
    tokenizer = demo_tokenizer.build()
    alphabet = {tokenizer.token_to_id(one) for one in set(pre_tokenizers.ByteLevel.alphabet()) - set(".,?")}
    texts = [prompt + completion for prompt, completion in demo_corpus.texts(7, 2000)]
    texts += [
        f"{question_answer(row['question'])} {row['answer']}" for row in islice(problems("shift", "test", 7), 500)
    ]
    assert not {index for text in texts for index in tokenizer.encode(text).ids} & alphabet
    assert [tokenizer.token_to_id(name) for name in (demo_tokenizer.PAD, demo_tokenizer.BOS, demo_tokenizer.EOS)] == [
        0,
        1,
        2,
    ]
    assert all(len(tokenizer.encode(f" {number}", add_special_tokens=False).ids) == 1 for number in range(100))
    assert len(tokenizer.encode(" 100", add_special_tokens=False).ids) > 1


@pytest.mark.parametrize("text", ["héllo wörld", "日本\n\n 1,000 $18.", "Tom\u2028has\t7", ""])
def test_any_text_survives_the_tokenizer(text):
    tokenizer = demo_tokenizer.build()
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def test_two_tokenizers_are_equal():
    first, second = demo_tokenizer.build(), demo_tokenizer.build()
    assert json.loads(first.to_str()) == json.loads(second.to_str())


def test_rows_fit_the_cost_that_pretraining_was_planned_for():
    tokenizer = demo_tokenizer.build()
    lengths = [len(tokenizer.encode(prompt + completion).ids) + 1 for prompt, completion in demo_corpus.texts(0, 2000)]
    assert max(lengths) <= 48
    assert sum(lengths) / len(lengths) < 38
