"""Likelihoods of answers: equal to a forward of each alone, whatever the batch; too long, empty or alone is said."""

import json
import math

import pytest
import torch

from pipeline.core.settings import SettingsError, build
from pipeline.evaluation import likelihood
from pipeline.evaluation.score import scores
from pipeline.models.load import load_base
from pipeline.tasks.answer_likelihood import GoldLogprob, GoldLogprobByte, RankClassification
from pipeline.tasks.base import REFERENCES
from pipeline.tasks.choices import Choices
from tests.evaluation.test_stages import Place
from tests.models.conftest import prepared  # noqa: F401  (a fixture)

ANSWERS = {
    "_target_": "pipeline.tasks.generation.Answers", "id": "own-answers-v1", "split": "test", "limit": None,
    "batch_size": 3, "too_long": "refuse",
}  # fmt: skip
GOLD = [{"_target_": f"pipeline.tasks.answer_likelihood.{name}"} for name in ("GoldLogprob", "GoldLogprobByte")]
RANK = {"_target_": "pipeline.tasks.answer_likelihood.RankClassification", "per": "token"}
CHOICES = {"_target_": "pipeline.tasks.choices.Choices", "name": "own", "generation": ANSWERS, "scoring": [*GOLD, RANK]}
WORDS = {"_target_": "pipeline.tasks.gsm8k.GSM8K", "name": "own", "generation": ANSWERS, "scoring": GOLD}
ROWS = [
    {"id": f"own-{n}", "question": "abcdefgh"[: 2 * n + 1], "choices": REFERENCES.join(offered), "answer": offered[n]}
    for n, offered in enumerate([["ab", "c"], ["é", "fgh", "d"], ["a", "bcdef", "hg", "ef"]])
]


@pytest.fixture
def place(tmp_path, prepared):  # noqa: F811
    _, manifest, base = prepared("llama", True, "none")
    made = Place(tmp_path, manifest, base, "none")
    made.data(ROWS)
    return made


@pytest.fixture
def loaded(place):
    return load_base(place.inputs["model"], place.inputs["base"], device="cpu", dtype="fp32")


def alone(base, prompt: str, answer: str) -> float:
    """The log-likelihood of an answer, token by token, from whole logits."""
    before = [base.tokenizer.bos_token_id, *base.tokenizer.encode(prompt, add_special_tokens=False)]
    targets = base.tokenizer.encode(answer, add_special_tokens=False)
    with torch.no_grad():
        logits_TV = base.model(torch.tensor([before + targets])).logits[0].log_softmax(-1)
    return sum(logits_TV[len(before) - 1 + n, token].item() for n, token in enumerate(targets))


def test_every_choice_is_scored_as_if_it_were_alone(place, loaded):
    record = place.evaluate(CHOICES)
    assert (record.result["n"], record.result["kind"], record.result["cut"]) == (3, "answers", [])
    for row, item in zip(ROWS, place.items(), strict=True):
        task = Choices()
        texts = task.choices(row)
        assert texts[0] == f" {row['answer']}"
        assert [one["bytes"] for one in item["answers"]] == [len(text.encode()) - 1 for text in texts]
        expected = [alone(loaded, task.prompt(row), text) for text in texts]
        assert [one["log_likelihood"] for one in item["answers"]] == pytest.approx(expected, rel=1e-5)


def test_a_task_without_choices_has_its_answer(place, loaded):
    place.evaluate(WORDS)
    for row, item in zip(ROWS, place.items(), strict=True):
        (one,) = item["answers"]
        expected = alone(loaded, f"Question: {row['question']}\nAnswer:", f" {row['answer']}")
        assert one["log_likelihood"] == pytest.approx(expected, rel=1e-5)
    rules = place.score(WORDS)["rules"]
    answers = [item["answers"][0] for item in place.items()]
    nats = sum(one["log_likelihood"] for one in answers)
    got = {name: rule["states"]["base"]["score"] for name, rule in rules.items()}
    assert got["gold-logprob"] == pytest.approx(nats / sum(one["tokens"] for one in answers))
    assert got["gold-logprob-byte"] == pytest.approx(nats / sum(one["bytes"] for one in answers))
    assert {rule["unit"] for rule in rules.values()} == {"nats a token", "nats a byte"}


def test_batches_and_slices_of_logits_change_nothing(place, monkeypatch):
    kept = []
    for size, logits in ((1, likelihood.LOGITS), (2, likelihood.LOGITS), (9, likelihood.LOGITS), (9, 1)):
        monkeypatch.setattr(likelihood, "LOGITS", logits)
        place.evaluate(CHOICES | {"generation": ANSWERS | {"batch_size": size}}, name=f"evaluate{size}")
        kept.append([one["log_likelihood"] for item in place.items() for one in item["answers"]])
    for other in kept[1:]:
        assert other == pytest.approx(kept[0], rel=1e-6)


def test_a_large_vocabulary_makes_few_logits_at_once():
    made = []

    class Head(torch.nn.Linear):
        def forward(self, x):
            made.append(x.shape[0] * self.out_features)
            return super().forward(x)

    head, rows = Head(2, 131_072, bias=False), max(1, likelihood.LOGITS // 131_072)
    got = likelihood._sum(head, torch.zeros(600, 2), [5] * 600, rows)
    assert got == pytest.approx(-600 * math.log(131_072), rel=1e-6)
    assert len(made) == 3
    assert max(made) <= likelihood.LOGITS


def test_what_does_not_fit_is_said_or_cut_and_counted(place, loaded):
    place.data([*ROWS, {"id": "long-1", "question": "a" * 80, "choices": f"ab{REFERENCES}c", "answer": "ab"}])
    with pytest.raises(SettingsError, match=r"own: row 'long-1' is too long: its prompt has \d+ tokens, an answer 3"):
        place.evaluate(CHOICES)
    record = place.evaluate(CHOICES | {"generation": ANSWERS | {"too_long": "cut"}})
    assert record.result["cut"] == ["long-1"]
    assert place.items()[3]["answers"][0]["tokens"] == 3
    place.data([{"id": "long-2", "question": "a", "choices": f"{'b' * 80}{REFERENCES}c", "answer": "c"}])
    with pytest.raises(SettingsError, match="row 'long-2' is too long"):
        place.evaluate(CHOICES | {"generation": ANSWERS | {"too_long": "cut"}})


@pytest.mark.parametrize(
    ("choices", "answer", "answers", "message"),
    [
        ("a\x1eb", "c", "text", "an answer that is one of them"),
        ("a\x1ea", "a", "text", "each once"),
        ("a", "a", "text", "two or more choices"),
        ("a\x1eb", "2", "place", "the place of one of 2 choices, counted from 0, got '2'"),
        ("a\x1eb", "b", "place", "got 'b'"),
    ],
)
def test_choices_that_cannot_be_are_named(choices, answer, answers, message):
    row = {"id": "own-7", "question": "q", "choices": choices, "answer": answer}
    with pytest.raises(SettingsError, match=r"row 'own-7'") as caught:
        Choices(answers=answers).choices(row)
    assert message in str(caught.value)


def test_an_answer_may_be_a_place():
    row = {"id": "own-7", "question": "q", "choices": "a\x1eb\x1ec", "answer": "1"}
    assert Choices(answers="place").choices(row) == (" b", " a", " c")


def item(*sizes_and_nats):
    return {
        "item": "own-0",
        "answers": [{"log_likelihood": nats, "tokens": size, "bytes": 2 * size} for size, nats in sizes_and_nats],
    }


def test_length_decides_where_it_is_asked_to():
    long_and_right = item((4, -2.0), (1, -1.0))
    assert RankClassification(per="answer").value(long_and_right, "x") == 0.0
    assert RankClassification(per="token").value(long_and_right, "x") == 100.0
    assert RankClassification(per="byte").value(long_and_right, "x") == 100.0
    assert RankClassification(per="answer").value(item((1, -1.0), (2, -1.0)), "x") == 0.0, "a draw is no answer"
    with pytest.raises(SettingsError, match="item 'own-0' has one answer only"):
        RankClassification(per="answer").value(item((1, -1.0)), "x")


def test_long_answers_count_by_their_length():
    got = scores([GoldLogprob(), GoldLogprobByte()], {"base": [item((1, -1.0)), item((3, -9.0))]}, {"own-0": "x"})
    assert got["gold-logprob"]["states"]["base"]["score"] == pytest.approx(-10 / 4)
    assert got["gold-logprob"]["states"]["base"]["per_item"] == pytest.approx([-0.5, -4.5])
    assert got["gold-logprob-byte"]["states"]["base"]["score"] == pytest.approx(-10 / 8)


@pytest.mark.parametrize(("answers", "answer"), [("text", "yes, a lot"), ("place", 1)])
def test_rows_of_your_own_from_a_file(place, tmp_path, answers, answer):
    """A jsonl with a list of choices is trained on and scored without code."""
    row = {"q": "is ice cold", "options": ["no", "yes, a lot"], "label": answer}
    (tmp_path / "own.jsonl").write_text(json.dumps(row) + "\n")
    data = {
        "_target_": "pipeline.tasks.local.Local", "license": "CC0-1.0", "files": {"test": str(tmp_path / "own.jsonl")},
        "columns": {"question": "q", "choices": "options", "answer": "label"}, "lists": {"choices": "references"},
        "key": "question", "carve": {},
    }  # fmt: skip
    task = build(CHOICES | {"answers": answers, "data": data})
    (found,) = task.data.rows("test")
    assert task.choices(found) == (" yes, a lot", " no")
    place.data([found])
    place.evaluate(CHOICES | {"answers": answers})
    rules = place.score(CHOICES | {"answers": answers})["rules"]
    assert set(rules) == {"gold-logprob", "gold-logprob-byte", "rank-token"}
    assert rules["rank-token"]["states"]["base"]["score"] in (0.0, 100.0)
