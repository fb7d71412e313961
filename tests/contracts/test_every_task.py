"""Every file in conf/task is a task that keeps the task contract, shown on its own example row and its own data."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pipeline.core.settings import build
from pipeline.tasks.base import REFERENCES, SPLITS, DataSource, Task
from pipeline.tasks.generated import Generated

FILES = sorted((Path(__file__).parents[2] / "conf" / "task").glob("*.yaml"))
PUBLISHED = ("lme-", "peft-mc", "loftq-", "gptq-", "hf-clm")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def file(request) -> Path:
    return request.param


@pytest.fixture
def task(file: Path) -> Task:
    task = build(OmegaConf.to_container(OmegaConf.load(file)), f"task.{file.stem}")
    assert isinstance(task, Task)
    return task


def test_the_folder_holds_at_least_the_demos():
    assert len(FILES) >= 4


def test_a_file_says_all_that_is_needed(task: Task):
    assert task.data is not None
    assert task.generation is not None
    assert task.scoring


def test_training_reads_prompt_and_answer_alone(file: Path):
    node = OmegaConf.to_container(OmegaConf.load(file))
    kept = {key: value for key, value in node.items() if key not in ("data", "generation", "scoring", "role")}
    task = build(kept | {"name": file.stem})
    assert isinstance(task, Task)
    assert task.prompt(task.example) + task.answer(task.example)


def test_the_prompt_does_not_depend_on_what_it_must_not_show(task: Task):
    if task.hidden is None:
        assert task.prompt(task.example) == "", "a task that hides nothing must ask nothing"
        return
    other = task.example | {task.hidden: "something else 123"}
    assert task.prompt(task.example) == task.prompt(other)
    assert task.answer(task.example) != task.answer(other)
    assert task.example[task.hidden] not in task.prompt(task.example)


def test_every_column_of_the_example_is_used(task: Task):
    for column in task.example:
        row = task.example | {column: "something else 123"}
        if column == "choices":  # shown to nobody, chosen among
            row[column] += REFERENCES + task.example[column]
            assert task.choices(row) != task.choices(task.example)
        else:
            assert (task.prompt(row), task.answer(row)) != (task.prompt(task.example), task.answer(task.example))


def test_the_right_answer_is_the_first_choice(task: Task):
    assert task.choices(task.example)[0] == task.answer(task.example)
    assert len(set(task.choices(task.example))) == len(task.choices(task.example))


def test_every_rule_prefers_the_right_answer(task: Task):
    assert task.generation is not None
    for rule in task.scoring:
        if task.generation.kind == "replies":
            right, wrong = {"reply": task.answer(task.example)}, {"reply": " none of that 7"}
        elif task.generation.kind == "answers":
            likely, unlikely = ({"log_likelihood": one, "tokens": 9, "bytes": 20} for one in (-1.0, -2.0))
            right, wrong = {"answers": [likely, unlikely]}, {"answers": [unlikely, likely]}
        else:
            right, wrong = ({"log_likelihood": one, "tokens": 9} for one in (-1.0, -2.0))
        reference = task.reference(task.example)
        good, bad = rule.value(right, reference), rule.value(wrong, reference) or 0.0
        assert good is not None
        assert good > bad if rule.better == "higher" else good < bad
        if rule.aggregate == "mean" and not rule.unit.startswith("nats"):
            assert good == pytest.approx(100.0)


def test_an_empty_reply_is_a_failure_for_every_rule(task: Task):
    assert task.generation is not None
    if task.generation.kind == "replies":
        assert [rule.value({"reply": ""}, task.reference(task.example)) for rule in task.scoring] == [None] * len(
            task.scoring
        )


def test_a_demo_is_never_named_as_a_published_protocol(task: Task):
    assert task.generation is not None
    if isinstance(task.data, Generated):
        assert "demo" in task.generation.id
        assert not task.generation.id.startswith(PUBLISHED)


def test_generation_ids_are_unique():
    ids = [OmegaConf.to_container(OmegaConf.load(file))["generation"]["id"] for file in FILES]
    assert len(set(ids)) == len(ids)


def test_generated_rows_repeat_and_are_distinct(task: Task):
    if not isinstance(task.data, Generated):
        pytest.skip("only generated rows are at hand without files")
    source: DataSource = task.data
    splits = {split: source.rows(split) for split in SPLITS}
    assert splits == {split: source.rows(split) for split in SPLITS}
    texts = [row[source.compared] for rows in splits.values() for row in rows]
    assert len(set(texts)) == len(texts)
    assert all(set(row) == {"id", *task.example} for rows in splits.values() for row in rows)
    assert all(value.strip() for rows in splits.values() for row in rows for value in row.values())
