"""Instruction models are trained and asked through one chat template, and only the answer carries a loss."""

import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.core.settings import SettingsError, build
from pipeline.evaluation.answers import Candidates
from pipeline.evaluation.generate import Questions
from pipeline.steps.tokens import answer_ids, ended_ids, prompt_ids, stop_ids
from pipeline.sweeps.compose import tasks
from pipeline.tasks import demo_tokenizer
from pipeline.tasks.base import Chat
from pipeline.training import batches

CHATML = """{% if messages[0].role != 'system' %}<|start|>system
Be kind.<|end|>
{% endif %}{% for m in messages %}<|start|>{{ m.role }}
{{ m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|start|>assistant
{% endif %}"""
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }} {{ eos_token }}"
    "{% else %}{{ raise_exception('System role not supported') }}{% endif %}{% endfor %}"
)
THINKING = CHATML.replace("<|start|>assistant\n", "<|start|>assistant\n<think>")
BARE = """{% for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""
ASKED = "<|start|>system\n{}<|end|>\n<|start|>user\nWho?<|end|>\n<|start|>assistant\n"
CHAT = Chat()


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_object=demo_tokenizer.build(), bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens=["<|start|>", "<|end|>"],
    )  # fmt: skip
    made.chat_template = template
    return made


def text(made, ids) -> str:
    return made.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    ("template", "chat", "prompt", "answer"),
    [
        (CHATML, CHAT, ASKED.format("Be kind."), "Ann<|end|>"),
        (CHATML, Chat(system="Be brief."), ASKED.format("Be brief."), "Ann<|end|>"),
        (INST, CHAT, "<s>[INST] Who? [/INST]", " Ann </s>"),
        (BARE, CHAT, "user: Who?\nassistant:", " Ann</s>"),
    ],
    ids=["chatml", "system", "inst", "no special tokens"],
)  # fmt: skip
def test_both_sides_are_the_template_s(template, chat, prompt, answer):
    made = tokenizer(template)
    head, tail = prompt_ids(made, "Who?", chat), ended_ids(made, " Ann", chat)
    assert text(made, head) == prompt, "the template alone says whether BOS stands first"
    assert text(made, tail) == answer
    assert tail[: len(answer_ids(made, " Ann", chat))] == answer_ids(made, " Ann", chat)
    assert tail[-1] in stop_ids(made, chat), "what a model is taught to end with ends its replies"
    assert made.eos_token_id in stop_ids(made, chat)
    if template is not BARE:
        turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann"}]
        turns = [{"role": "system", "content": chat.system}, *turns] if chat.system else turns
        assert made.apply_chat_template(turns, tokenize=False).rstrip() == prompt + answer


def test_without_a_chat_nothing_changes():
    made = tokenizer(CHATML)
    assert text(made, prompt_ids(made, "Who?")) == "<s>Who?"
    assert text(made, ended_ids(made, " Ann")) == " Ann</s>"
    assert stop_ids(made) == {made.eos_token_id}


@pytest.mark.parametrize(
    ("template", "chat", "message"),
    [
        (None, CHAT, "the model's tokenizer has no chat template. Take an instruction model, or set chat=null"),
        (INST, Chat(system="Be kind."), "refuses the chat: System role not supported"),
        (THINKING, CHAT, "trained on another opening than they are asked with"),
    ],
)
def test_what_cannot_be_is_said(template, chat, message):
    with pytest.raises(SettingsError, match=message):
        batches.encode(tokenizer(template), [("row-1", "Who?", (" Ann",))], max_length=64, loss_on="answer", chat=chat)


def test_labels_are_the_answer_alone_and_questions_are_asked_as_trained():
    made = tokenizer(CHATML)
    task = build(tasks(["gsm8k-demo"])["gsm8k-demo"] | {"chat": {"system": "Be brief."}, "name": "t"}, "task.t")
    row = {"id": "test-1"} | task.example
    trained = batches.encode(
        made, [("a", task.prompt(row), (task.answer(row),))], max_length=999, loss_on="answer", chat=task.chat
    )
    [example] = trained.rows
    assert text(made, example.ids[example.start :]) == f"{task.example['answer']}<|end|>"
    questions = Questions(task, [row], made, context=999)
    assert questions.prompts == [example.ids[: example.start]]
    said = questions.decoding()
    assert said["bos"] is None
    assert len(said["chat_template"]) == 64
    assert made.convert_tokens_to_ids("<|end|>") in said["stop_ids"]


@pytest.mark.parametrize(
    ("template", "answers"),
    [(CHATML, ["inkwell", "blotter"]), (INST, [" inkwell", " blotter"])],
    ids=["chatml", "inst"],
)
def test_choices_are_asked_as_trained_and_their_likelihood_is_that_of_the_answer_alone(template, answers):
    made = tokenizer(template)
    task = build(tasks(["choices-demo"])["choices-demo"] | {"chat": {}, "name": "t"}, "task.t")
    row = {"id": "test-1", "question": "What holds ink?", "choices": "blotter\x1einkwell", "answer": "inkwell"}
    candidates = Candidates(task, [row], made, context=999)
    for window, answer in zip(candidates.windows, answers, strict=True):
        head = window.ids[: window.first + 1]
        assert head == prompt_ids(made, task.prompt(row), task.chat)
        assert text(made, window.targets) == answer
        [trained] = batches.encode(
            made, [("a", task.prompt(row), (answer,))], max_length=999, loss_on="answer", chat=task.chat
        ).rows
        assert trained.ids[: len(head) + len(window.targets)] == head + window.targets
    assert len(candidates.decoding()["chat_template"]) == 64


def test_a_chat_is_another_protocol():
    node = tasks(["gsm8k-demo"])["gsm8k-demo"]
    named = {None: node["generation"]["id"]}
    for system in ("Be brief.", "Be kind."):
        task = build(node | {"chat": {"system": system}}, "task.t")
        assert build(task.node(), "task.t") == task, "the id is not changed twice"
        named[system] = task.generation.id
    named["no system"] = build(node | {"chat": {}}, "task.t").generation.id
    assert named["no system"] == f"{named[None]}-chat"
    assert len(set(named.values())) == 4
    choices = tasks(["choices-demo"])["choices-demo"]
    assert build(choices | {"chat": {}}, "task.t").generation.id == f"{choices['generation']['id']}-chat"
    with pytest.raises(SettingsError, match="chat: must be null"):
        build(tasks(["ppl-demo"])["ppl-demo"] | {"chat": {}}, "task.t")
