"""lm-eval on the same model, tokenizer and local files: prompts, replies, filtered answers, likelihoods of choices and
perplexities are equal.

The model has random weights and a vocabulary that makes it talk of numbers. Its replies do not depend on the answers
of the test rows, so these are chosen afterwards such that strict and flexible scores lie in the middle and disagree on
many rows.
"""

import json
import math
import subprocess
import sys
from itertools import islice
from pathlib import Path

import lm_eval
import pytest
import torch
from omegaconf import OmegaConf
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.core.settings import build
from pipeline.evaluation.answers import Candidates
from pipeline.evaluation.generate import Questions
from pipeline.evaluation.likelihood import Chunks
from pipeline.evaluation.score import scores
from pipeline.tasks import demo_choices, demo_tokenizer
from pipeline.tasks.answer_likelihood import RankClassification
from pipeline.tasks.base import REFERENCES, SHOTS, Task
from pipeline.tasks.demo_problems import problems

pytestmark = pytest.mark.slow
TASKS = Path(lm_eval.__file__).parent / "tasks"
CONF = Path(__file__).parents[2] / "conf" / "task"
CONTEXT, WINDOW, NEW, ROWS = 2048, 48, 32, 60
SAID = [" ####", " 7", " 12", " 18", " 1", " 99", ".", "$", "Question:", "</s>"]
"""The tokens that the model may say."""
HARNESS = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager
folder = sys.argv[1]
found = {}
manager = TaskManager(include_path=folder, include_defaults=False)
for task, length in (("local_gsm8k", %d), ("local_cot", %d), ("local_wiki", %d), ("local_choices", %d)):
    done = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": folder + "/model", "dtype": "float32", "max_length": length},
        tasks=[task], task_manager=manager, device="cpu", batch_size=4, log_samples=True,
        gen_kwargs=None if task in ("local_wiki", "local_choices") else {"max_gen_toks": %d}, bootstrap_iters=0)
    found[task] = {"results": done["results"][task], "samples": done["samples"][task]}
json.dump(found, open(folder + "/found.json", "w"), default=str)
""" % (CONTEXT, CONTEXT, WINDOW, CONTEXT, NEW)  # noqa: UP031  (braces are Python's here)


CHOICES = """task: local_choices
dataset_path: json
dataset_kwargs: {data_files: %s}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices.index(answer)}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_bytes}]
"""


def test_the_eight_examples_are_lm_eval_s():
    theirs = OmegaConf.load(TASKS / "gsm8k" / "gsm8k-cot.yaml").fewshot_config.samples
    assert our("gsm8k-cot").generation.shots.examples == tuple(OmegaConf.to_container(theirs))


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k-cot"])
def test_every_reply_and_filtered_answer_is_lm_eval_s(compared, name):
    ours, theirs = compared[name]
    rules = {"strict-match": 0, "flexible-extract": 1}
    assert len(theirs["samples"]) == 2 * ROWS
    for sample in theirs["samples"]:
        item, rule = ours["items"][sample["doc_id"]], ours["task"].scoring[rules[sample["filter"]]]
        assert sample["arguments"][0][0] == ours["prompts"][sample["doc_id"]]
        assert sample["resps"][0][0] == item["reply"]
        assert sample["filtered_resps"][0] == (rule.found(item["reply"]) or "[invalid]")
        value = rule.value(item, ours["rows"][sample["doc_id"]]["answer"])
        assert 100.0 * sample["exact_match"] == (value or 0.0)
    scored = [[rule.value(item, row["answer"]) or 0.0 for item, row in zip(ours["items"], ours["rows"], strict=True)]
              for rule in ours["task"].scoring]  # fmt: skip
    if name == "gsm8k":
        assert {item["stop"] for item in ours["items"]} == {"eos", "stop", "length"}, "an end that no reply came to"
        assert 20 * ROWS < sum(scored[0]) < 80 * ROWS
        assert sum(one != other for one, other in zip(*scored, strict=True)) >= 10


@pytest.mark.parametrize("rule", ["word-perplexity", "byte-perplexity"])
def test_perplexities_are_lm_eval_s(compared, rule):
    ours, theirs = compared["wikitext2-words"]
    for item, sample in zip(ours["items"], theirs["samples"], strict=True):
        assert item["log_likelihood"] == pytest.approx(float(sample["resps"][0][0]), rel=1e-5)
    rules = scores(ours["task"].scoring, {"base": ours["items"]}, {row["id"]: row["page"] for row in ours["rows"]})
    got = rules[rule]["states"]["base"]["score"]
    assert got == pytest.approx(theirs["results"][f"{rule.replace('-', '_')},none"], rel=1e-5)
    assert math.isfinite(got)


def test_the_likelihood_of_every_choice_is_lm_eval_s(compared):
    ours, theirs = compared["choices-demo"]
    for item, row, sample in zip(ours["items"], ours["rows"], theirs["samples"], strict=True):
        right = row["choices"].split(REFERENCES).index(row["answer"])
        nats = [float(one[0][0]) for one in sample["resps"]]
        assert [one["log_likelihood"] for one in item["answers"]] == pytest.approx([nats.pop(right), *nats], rel=1e-5)
        rules = {"acc": RankClassification(per="answer"), "acc_bytes": RankClassification(per="byte")}
        assert {name: 100.0 * sample[name] for name in rules} == {
            name: rule.value(item, row["answer"]) for name, rule in rules.items()
        }
    assert {sample["acc_bytes"] for sample in theirs["samples"]} == {0.0, 1.0}
    assert any(sample["acc"] != sample["acc_bytes"] for sample in theirs["samples"]), "lengths that change nothing"


def our(name: str, **generation) -> Task:
    """A task of conf/, with some fields of its generation changed."""
    node = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    del node["data"]
    node["generation"] |= generation
    task = build(node, name)
    assert isinstance(task, Task)
    return task


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """What we and lm-eval find, by the name of our task."""
    folder = tmp_path_factory.mktemp("oracle")
    model, tokenizer = saved(folder / "model")
    train = list(islice(problems("story", "train", 0), 30))
    asked = list(islice(problems("story", "test", 0), ROWS))
    found = {name: replies(name, model, tokenizer, train, asked) for name in ("gsm8k", "gsm8k-cot")}
    for row, answer in zip(asked, answers(found["gsm8k"]), strict=True):
        row["answer"] = answer
    found["wikitext2-words"] = pages(model, tokenizer)
    found["choices-demo"] = choices(model, tokenizer)
    write(
        folder,
        "choices",
        [row | {"choices": row["choices"].split(REFERENCES)} for row in found["choices-demo"]["rows"]],
    )
    write(folder, "train", train)
    write(folder, "test", asked)
    write(folder, "pages", found["wikitext2-words"]["rows"])
    local_tasks(folder)
    done = subprocess.run([sys.executable, "-c", HARNESS, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads((folder / "found.json").read_text())
    names = {
        "gsm8k": "local_gsm8k",
        "gsm8k-cot": "local_cot",
        "wikitext2-words": "local_wiki",
        "choices-demo": "local_choices",
    }
    return {name: (found[name], theirs[task]) for name, task in names.items()}


def saved(folder: Path):
    """Save a random Llama that says the tokens of `SAID` alone; its config asks for sampling, which changes nothing."""
    built = demo_tokenizer.build()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=built, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=built.get_vocab_size(), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                    num_attention_heads=4, max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=2,
                    pad_token_id=0)
    ).eval()  # fmt: skip
    said = torch.tensor([built.encode(text, add_special_tokens=False).ids[0] for text in SAID])
    with torch.no_grad():
        for parameter in model.parameters():  # far from uniform logits, so that no reply hangs on a rounding error
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
        quiet = torch.ones(built.get_vocab_size(), dtype=torch.bool)
        quiet[said] = False
        model.lm_head.weight[quiet] *= 0.05
        model.lm_head.weight[said[0]] *= 2.0  # or strict finds too little
    model.generation_config.update(do_sample=True, temperature=1.7, top_k=5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def replies(name, model, tokenizer, train, asked):
    """Our replies, with lm-eval's number of new tokens cut down for speed on both sides."""
    task = our(name, max_new_tokens=NEW, batch_size=7)
    before = task.generation.shots.texts(task, train)
    rows = [row | {"id": str(index), SHOTS: next(before)} for index, row in enumerate(asked)]
    items = Questions(task, rows, tokenizer, CONTEXT).items(model)
    return {"task": task, "rows": asked, "items": items, "prompts": [task.question(row) for row in rows]}


def answers(found):
    """An answer for every row: what strict finds, else what flexible finds; for every fourth, something else."""
    strict, flexible = found["task"].scoring
    for index, item in enumerate(found["items"]):
        right = strict.found(item["reply"]) or flexible.found(item["reply"])
        yield f"So it is.\n#### {4 if index % 4 == 3 else right or 5}"


def pages(model, tokenizer):
    """Pages shorter than a window, as long as some, and of many."""
    text = ' = Tom = \n \n Tom \'s box ( of 12 @,@ 000 pens ) was " full " ; Ann had 7 . \n'
    rows = [{"id": f"page-{count}", "page": text * count} for count in (1, 2, 3, 9)]
    task = our("wikitext2-words", context=WINDOW, batch_size=3)
    return {"task": task, "rows": rows, "items": Chunks(task, rows, tokenizer, CONTEXT).items(model)}


def choices(model, tokenizer):
    """Demo rows whose choices are cut at different lengths, so that what is counted by matters."""
    rows = []
    for index, row in enumerate(islice(demo_choices.choices("test", 0), ROWS)):
        offered = [
            " ".join(one.split()[: 3 + (index + n) % 4]) for n, one in enumerate(row["choices"].split(REFERENCES))
        ]
        if len(set(offered)) == len(offered):
            texts = {"choices": REFERENCES.join(offered), "answer": offered[index % len(offered)]}
            rows.append(row | texts | {"id": str(index)})
    task = our("choices-demo", batch_size=7)
    return {"task": task, "rows": rows, "items": Candidates(task, rows, tokenizer, CONTEXT).items(model)}


def write(folder: Path, name: str, rows: list[dict]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def local_tasks(folder: Path) -> None:
    """Copy lm-eval's own task files, with nothing but the place of the data and the name changed."""
    for file, old, new, repository, files in (
        ("gsm8k/gsm8k.yaml", "gsm8k", "local_gsm8k", "openai/gsm8k", ("train", "test")),
        ("gsm8k/gsm8k-cot.yaml", "gsm8k_cot", "local_cot", "openai/gsm8k", ("train", "test")),
        ("wikitext/wikitext.yaml", "wikitext", "local_wiki", "EleutherAI/wikitext_document_level", ("pages",)),
    ):
        text = (TASKS / file).read_text()
        split = {name: str(folder / f"{name}.jsonl") for name in files}
        split = {"test": split["pages"]} if "pages" in split else split
        kept = [line for line in text.splitlines() if not line.startswith(("dataset_", "task:"))]
        kept = [line for line in kept if "pages" not in files or not line.startswith(("training_", "validation_"))]
        assert f"task: {old}" in text
        assert f"dataset_path: {repository}" in text
        kept += [f"task: {new}", "dataset_path: json", f"dataset_kwargs: {{data_files: {json.dumps(split)}}}"]
        (folder / f"{new}.yaml").write_text("\n".join(kept) + "\n")
    (folder / "local_choices.yaml").write_text(CHOICES % json.dumps({"test": str(folder / "choices.jsonl")}))
    helper = "preprocess_wikitext.py"
    (folder / helper).write_text((TASKS / "wikitext" / helper).read_text())
