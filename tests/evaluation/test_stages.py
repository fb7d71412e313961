"""The stages evaluate and score on real tiny folders: what is kept, what is refused, what is passed on."""

import json
import math
import time
from pathlib import Path

import pytest
import torch

from pipeline.adapters import files
from pipeline.adapters.lora import LoRA
from pipeline.core import records
from pipeline.core.settings import SettingsError, build
from pipeline.models.adapt import adapt
from pipeline.models.load import load_base
from pipeline.models.states import Label, entered
from pipeline.stages import evaluate, prepare_data, score
from pipeline.tasks import rows
from tests.models.conftest import FORMATS, HARDWARE, prepared  # noqa: F401  (prepared is a fixture)

ADAPTER = LoRA(rank=2, alpha=4.0, roles=("q", "v"))
QUESTIONS = [{"id": f"own-{n}", "question": text, "answer": f"#### {n}"} for n, text in enumerate(["ab", "cdef", "g"])]
GREEDY = {
    "_target_": "pipeline.tasks.generation.Greedy", "id": "own-v1", "split": "test", "limit": None, "batch_size": 2,
    "max_new_tokens": 5, "stop": [], "too_long": "refuse",
}  # fmt: skip
LIKELIHOOD = {
    "_target_": "pipeline.tasks.generation.Likelihood", "id": "own-ppl-v1", "split": "test", "limit": None,
    "batch_size": 2, "context": 8, "separator": "z", "start": "bos",
}  # fmt: skip
SCORING = [{"_target_": f"pipeline.tasks.final_number.{name}"} for name in ("Strict", "Flexible")]
WORDS = {"_target_": "pipeline.tasks.gsm8k.GSM8K", "name": "own", "generation": GREEDY, "scoring": SCORING}
TEXTS = {
    "_target_": "pipeline.tasks.language_modeling.LanguageModeling", "name": "own", "generation": LIKELIHOOD,
    "scoring": [{"_target_": "pipeline.tasks.perplexity.Perplexity"}],
}  # fmt: skip


class Place:
    """One base, and perhaps a fine-tune on it, in real files; `evaluate` and `score` run the real stages."""

    def __init__(self, folder: Path, manifest: Path, base: Path, format_: str) -> None:
        self.folder, self.format = folder, format_
        self.inputs = {"model": manifest, "base": base}

    def data(self, found: list[dict]) -> None:
        path = self.folder / "data" / "test.jsonl"
        splits = {"test": {"file": path.name, "rows": len(found), "sha256": rows.write(path, found)}}
        self.record("data", "prepare_data", {"splits": splits})

    def record(self, key, stage, result, settings=None, status="ok") -> None:
        self.inputs[key] = self.folder / key / "record.json"
        records.write(self.inputs[key], stage=stage, settings=settings or {}, result=result, about={}, status=status)

    def tuned(self, value=0.3) -> None:
        base = load_base(self.inputs["model"], self.inputs["base"], device="cpu", dtype="fp32")
        method = adapt(base, ADAPTER, 0, 1)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.fill_(value)
        method.refresh()
        method.eval()
        folder = self.folder / "train" / "adapter"
        files.save(method, folder, base_name="tiny")
        hashes = {path.name: records.file_sha256(path) for path in folder.iterdir()}
        self.record("train", "finetune", {"adapter_files": hashes}, {"seed": 0, "training": {"steps": 1}})
        if math.isfinite(value):
            with entered(base, method, Label("merged-original")) as digest:
                self.record("merge", "merge", {"states": {"merged-original": {"digest": digest}}, "skipped": {}})

    def evaluate(self, task, wanted=("trained", "merged-original"), name="evaluate") -> records.Record:
        settings = {
            "task": {key: value for key, value in task.items() if key != "scoring"},
            "adapter": ADAPTER.node(), "quantization": FORMATS[self.format], "states": list(wanted),
            "evaluation": {"states": list(wanted), "precision": "fp32"}, "hardware": HARDWARE,
        }  # fmt: skip
        self.outputs = {"record": self.folder / name / "own.json", "items": self.folder / name / "own.jsonl"}
        evaluate.run(settings, self.inputs, self.outputs, {"started": time.time()})
        return records.read(self.outputs["record"], "evaluate")

    def items(self) -> list[dict]:
        return [json.loads(line) for line in self.outputs["items"].read_text().splitlines()]

    def score(self, task) -> dict:
        out = self.folder / "score" / "own.json"
        inputs = {"evaluate.own": self.outputs["record"], "data.own": self.inputs["data"]}
        score.run({"tasks": [task]}, inputs, {"record": out}, {"started": time.time()})
        return records.read(out, "score").result["tasks"]["own"]


@pytest.fixture
def place(tmp_path, prepared):  # noqa: F811
    _, manifest, base = prepared("llama", True, "none")
    made = Place(tmp_path, manifest, base, "none")
    made.data(QUESTIONS)
    return made


def test_a_base_alone_is_asked_in_one_state(place):
    record = place.evaluate(WORDS)
    assert list(record.result["states"]) == ["base"]
    assert [item["item"] for item in place.items()] == ["own-0", "own-1", "own-2"]
    assert set(place.items()[0]) == {"state", "item", "prompt_tokens", "reply", "tokens", "stop"}
    assert record.result["n"] == 3
    asked = record.result["generation"]
    assert asked["do_sample"] is False
    assert (asked["max_new_tokens"], asked["dtype"], asked["attention"]) == (5, "float32", "sdpa")


def test_a_fine_tune_is_asked_in_every_state_and_its_merge_is_checked(place):
    place.tuned()
    record = place.evaluate(WORDS, ("trained", "merged-original", "requantized-original"))
    assert set(record.result["states"]) == {"trained", "merged-original"}
    assert record.result["skipped"] == {"requantized-original": "the base is not quantized"}
    assert record.result["states"]["merged-original"]["digest"]
    trained, merged = ([{**item, "state": ""} for item in place.items() if item["state"] == state]
                       for state in record.result["states"])  # fmt: skip
    assert trained == merged
    del place.inputs["train"], place.inputs["merge"]
    place.evaluate(WORDS)
    assert [item["reply"] for item in place.items()] != [item["reply"] for item in trained], (
        "an adapter that does nothing"
    )


def test_another_merge_than_the_reported_one_is_refused(place):
    place.tuned()
    place.record("merge", "merge", {"states": {"merged-original": {"digest": "0" * 64}}, "skipped": {}})
    with pytest.raises(records.RecordError, match=r"merge/record.json: the weights of merged-original have digest"):
        place.evaluate(WORDS)
    place.record("merge", "merge", {"states": {}, "skipped": {}})
    with pytest.raises(records.RecordError, match="reported is none"):
        place.evaluate(WORDS)


def test_a_damaged_adapter_is_named(place):
    place.tuned()
    path = place.folder / "train" / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(records.RecordError, match=r"adapter_model.safetensors: the file is damaged"):
        place.evaluate(WORDS)


def test_the_adapter_of_another_run_is_refused(place):
    place.tuned(value=0.2)
    train = place.inputs["train"].read_bytes()
    place.tuned(value=0.3)
    place.inputs["train"].write_bytes(train)
    with pytest.raises(records.RecordError, match=r"adapter_model.safetensors: the file is damaged"):
        place.evaluate(WORDS, ("trained",))


@pytest.mark.parametrize("status", ["diverged", "oom"])
def test_a_failed_run_is_passed_on_to_the_score(place, status):
    place.record("train", "finetune", {"reason": "it went wrong"}, status=status)
    place.record("merge", "merge", {"reason": "it went wrong"}, status=status)
    record = place.evaluate(WORDS)
    assert (record.status, record.result["reason"], place.items()) == (status, "it went wrong", [])
    scored = place.score(WORDS)
    assert (scored["status"], scored["reason"], scored["generation_id"]) == (status, "it went wrong", "own-v1")
    assert scored["items"] == []


def test_an_adapter_that_computes_no_numbers_ends_as_diverged(place):
    place.tuned(value=math.nan)
    for task in (WORDS, TEXTS):
        place.data([row | {"text": "abcdefghij"} for row in QUESTIONS])
        record = place.evaluate(task, ("trained",))
        assert record.status == "diverged"
        assert record.result["reason"].startswith("trained: the model's lo")


def test_a_state_that_computes_no_numbers_leaves_the_others_their_scores(place, monkeypatch):
    place.tuned()
    asked = iter([[{"item": "own-0", "reply": "#### 0", "tokens": 5, "stop": "eos"}]])

    def items(self, model):
        if (found := next(asked, None)) is None:
            raise FloatingPointError("the model's logits are not finite")
        return found

    monkeypatch.setattr("pipeline.evaluation.generate.Questions.items", items)
    record = place.evaluate(WORDS)
    assert record.status == "diverged"
    assert record.result["reason"] == "merged-original: the model's logits are not finite"
    assert list(record.result["states"]) == ["trained"]
    scored = place.score(WORDS)
    assert (scored["status"], scored["reason"]) == ("diverged", record.result["reason"])
    assert {label: of["score"] for label, of in scored["rules"]["gsm8k-strict"]["states"].items()} == {"trained": 100.0}


def test_scores_come_from_what_was_kept(place):
    place.evaluate(WORDS)
    replies = zip(QUESTIONS, ["#### 0", "1 or 7", ""], ["eos", "length", "eos"], strict=True)
    kept = [
        {"state": "base", "item": row["id"], "reply": reply, "tokens": 5, "stop": stop} for row, reply, stop in replies
    ]
    rows.write(place.outputs["items"], kept)
    with pytest.raises(records.RecordError, match=r"own.jsonl: the file is damaged"):
        place.score(WORDS)
    record = records.read(place.outputs["record"])
    result = record.result | {"items_sha256": records.file_sha256(place.outputs["items"])}
    records.write(record.path, stage="evaluate", settings={}, result=result, about={})
    rules = place.score(WORDS)["rules"]
    assert list(rules) == ["gsm8k-flexible", "gsm8k-strict"]
    strict, flexible = rules["gsm8k-strict"]["states"]["base"], rules["gsm8k-flexible"]["states"]["base"]
    assert (strict["per_item"], strict["failures"], strict["truncated"], strict["n"]) == ([100.0, 0.0, 0.0], 2, 1, 3)
    assert (flexible["per_item"], flexible["failures"]) == ([100.0, 0.0, 0.0], 1)
    assert strict["score"] == pytest.approx(100 / 3)
    assert place.score(WORDS)["items"] == ["own-0", "own-1", "own-2"]


def test_rules_change_without_asking_again(place):
    place.evaluate(WORDS)
    one = place.score(WORDS | {"scoring": SCORING[:1]})["rules"]
    assert list(one) == ["gsm8k-strict"]


def test_perplexity_is_transformers_loss(place, prepared):  # noqa: F811
    model = prepared("llama", True, "none")[0]
    place.data([{"id": "a", "text": "abcdefghij"}, {"id": "b", "text": "klmnopqrstuv"}])
    record = place.evaluate(TEXTS)
    tokenizer = load_base(place.inputs["model"], place.inputs["base"], device="cpu", dtype="fp32").tokenizer
    ids = torch.tensor([1, *tokenizer.encode("abcdefghijzklmnopqrstuv", add_special_tokens=False)])
    assert (len(place.items()), record.result["dropped_tokens"]) == (len(ids) // 8, len(ids) % 8)
    losses = [model(chunk[None], labels=chunk[None]).loss.item() for chunk in ids[: len(ids) // 8 * 8].view(-1, 8)]
    got = place.score(TEXTS)["rules"]["perplexity"]
    assert got["states"]["base"]["score"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert got["aggregate"] == "exp-mean"
    assert place.items()[0]["tokens"] == 7


def test_batches_do_not_change_what_is_kept(place):
    place.data([{"id": str(n), "question": "abcdefgh"[: n + 1], "answer": "1"} for n in range(8)])
    kept = []
    for size in (1, 3, 8):
        place.evaluate(WORDS | {"generation": GREEDY | {"batch_size": size}}, name=f"evaluate{size}")
        kept.append(place.items())
    assert kept[0] == kept[1] == kept[2]


def test_a_stop_string_ends_a_reply_and_is_cut(place):
    place.evaluate(WORDS)
    whole = {item["item"]: item["reply"] for item in place.items()}
    stop = whole["own-2"][-2:]
    place.evaluate(WORDS | {"generation": GREEDY | {"stop": [stop, "zzz"]}})
    cut = {item["item"]: item for item in place.items()}
    assert cut["own-2"]["stop"] == "stop"
    for name, text in whole.items():
        assert cut[name]["reply"] == text.split(stop)[0]


def test_a_prompt_that_does_not_fit_is_said_by_name_or_counted(place):
    place.data([*QUESTIONS, {"id": "long-1", "question": "a" * 80, "answer": "1"}])
    with pytest.raises(SettingsError, match=r"own: 1 of 4 prompts are too long, the first is row 'long-1'.*allowed 59"):
        place.evaluate(WORDS)
    record = place.evaluate(WORDS | {"generation": GREEDY | {"too_long": "count"}})
    assert record.result["too_long"] == ["long-1"]
    last = place.items()[3]
    assert last["prompt_tokens"] > 59
    assert {key: last[key] for key in ("item", "reply", "tokens", "stop")} == {
        "item": "long-1", "reply": "", "tokens": 0, "stop": "too-long",
    }  # fmt: skip
    entry = place.score(WORDS)["rules"]["gsm8k-strict"]["states"]["base"]
    assert (entry["n"], entry["too_long"]) == (4, 1)


@pytest.mark.parametrize(("context", "message"), [(65, "the model allows 64"), (60, "all texts together have")])
def test_chunks_that_do_not_fit_are_said(place, context, message):
    place.data([{"id": "a", "text": "abcdefghij"}])
    with pytest.raises(SettingsError, match=message):
        place.evaluate(TEXTS | {"generation": LIKELIHOOD | {"context": context}})


def test_limit_and_no_rows(place):
    record = place.evaluate(WORDS | {"generation": GREEDY | {"limit": 2}})
    assert record.result["n"] == 2
    place.data([])
    with pytest.raises(SettingsError, match="the test split has no rows"):
        place.evaluate(WORDS)


def test_a_rule_that_reads_other_items_is_refused():
    with pytest.raises(SettingsError, match="perplexity reads the items of a likelihood generation, got a replies one"):
        build(WORDS | {"scoring": [{"_target_": "pipeline.tasks.perplexity.Perplexity"}]}, "task.own")
    with pytest.raises(SettingsError, match="may be named once"):
        build(WORDS | {"scoring": SCORING[:1] * 2}, "task.own")


def test_prepared_rows_go_in_as_they_are(place):
    node = {"_target_": "pipeline.tasks.generated.Generated", "license": "CC0-1.0", "kind": "line", "seed": 0}
    settings = {"name": "own", "data": node | {"train": 3, "dev": 2, "test": 4}}
    place.inputs["data"] = place.folder / "lines" / "manifest.json"
    prepare_data.run(settings, {}, {"record": place.inputs["data"]}, {"started": time.time()})
    record = place.evaluate(TEXTS | {"generation": LIKELIHOOD | {"split": "dev"}})
    assert record.result["n"] > 2
