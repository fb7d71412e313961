"""Asks a base in every wanted state, and checks that each merged state is the one that `merge` reported."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.adapters.base import Method
from pipeline.core.records import Record, RecordError
from pipeline.evaluation.answers import Candidates
from pipeline.evaluation.cost import watched, weight_bytes
from pipeline.evaluation.generate import Questions
from pipeline.evaluation.likelihood import Chunks
from pipeline.models.load import Base
from pipeline.models.states import Label, entered
from pipeline.tasks.base import Row, Task
from pipeline.tasks.generation import Answers, Replies

Items = list[dict[str, Any]]


@dataclass(frozen=True)
class Subject:
    """A base, alone or with the method that was trained on it, and the states to ask it in."""

    base: Base
    wanted: Sequence[Label]
    method: Method[Any, Any] | None = None
    skipped: dict[str, str] = field(default_factory=dict)


def evaluate(
    subject: Subject, task: Task, rows: list[Row], merge: Record | None
) -> tuple[dict[str, Items], dict[str, Any]]:
    """Return the items of every wanted state, and what the record says of them.

    `failed` are the states without numbers; `costs` is for the record's about.

    Raises:
        RecordError: a merged state is not the one that was reported.
    """
    base = subject.base
    questions = exam(task, rows, base)
    items, states, failed, costs = {}, {}, {}, {}
    for label in subject.wanted:
        with entered(base, subject.method, label) as digest:
            if digest is not None:
                _check(str(label), digest, merge)
            try:
                with watched(base.device) as costs[str(label)]:
                    found = questions.items(base.model)
            except FloatingPointError as error:  # the other states may well compute some
                failed[str(label)] = str(error)
                continue
            beside = subject.method.export(label.at) if subject.method and label.state == "trained" else {}
            held = weight_bytes(base, beside)
        items[str(label)] = found
        truncated = sum(item.get("stop") == "length" for item in found)
        states[str(label)] = {"digest": digest, "truncated": truncated, "weight_bytes": held}
    assert task.generation is not None
    arithmetic = {"dtype": str(base.dtype).removeprefix("torch."), "attention": base.model.config._attn_implementation}
    return items, {
        "kind": task.generation.kind,
        "generation": task.generation.node() | questions.decoding() | arithmetic,
        "n": len(questions),
        "states": states,
        "skipped": subject.skipped,
        "failed": failed,
        "costs": costs,
    } | questions.facts()


def exam(task: Task, rows: list[Row], base: Base) -> Questions | Candidates | Chunks:
    """Return what is asked in every state: prompts, prompts with their answers, or texts in chunks."""
    kinds = ((Replies, Questions), (Answers, Candidates))
    kind = next((exam for asked, exam in kinds if isinstance(task.generation, asked)), Chunks)
    return kind(task, rows, base.tokenizer, base.model.config.max_position_embeddings)


def _check(label: str, digest: str, merge: Record | None) -> None:
    assert merge is not None, "a merged state is evaluated against a merge report"
    reported = merge.result["states"].get(label, {"digest": "none"})["digest"]
    if digest != reported:
        raise RecordError(
            f"{merge.path}: the weights of {label} have digest {digest[:16]}…, reported is {reported[:16]}…: the "
            "adapter or the base has changed since. Delete the report and run the workflow again."
        )
