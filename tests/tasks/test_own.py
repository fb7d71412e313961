"""A table of your own is a task without code: what stands in the settings is what is asked and compared."""

import pandas
import pytest

from pipeline.core.settings import SettingsError, build
from pipeline.stages import prepare_data
from pipeline.sweeps.compose import tasks
from pipeline.tasks import rows
from pipeline.tasks.base import REFERENCES, SPLITS
from pipeline.tasks.own import Exact, Own

WORDING = {"prompt": "Q: {question}\nA:", "answer": " {answer}", "reference": "{answer}"}
TWELVE = [{"Frage": f"Wie heißt Fräulein {n}? ✓", "Antwort": f"名前 {n}"} for n in range(11)]
LONG = {"Frage": "λ" * 30_000, "Antwort": "long"}


def own(**wording) -> Own:
    task = build({"_target_": "pipeline.tasks.own.Own", "name": "own", "wording": WORDING | wording}, "task.own")
    assert isinstance(task, Own)
    return task


def test_wording():
    task = own(prompt="{{{question}}} {title}\n", answer=" {answer}.")
    row = {"question": "Who?", "title": "{x}", "answer": f"Ann{REFERENCES}Bob"}
    assert task.prompt(row) == "{Who?} {x}\n"
    assert task.answer(row) == " Ann."
    assert task.reference(row) == f"Ann{REFERENCES}Bob"
    assert task.columns == ("answer", "question", "title")


@pytest.mark.parametrize(
    ("wording", "message"),
    [
        ({"prompt": "{question} {answer}"}, r"the prompt must not show \{answer\}"),
        ({"prompt": "{question"}, "wording.prompt: "),
        ({"prompt": "{}"}, r"must name a column"),
        ({"prompt": "{question.upper}"}, r"\{question.upper\} must name a column"),
    ],
)
def test_wrong_wordings_are_said(wording, message):
    with pytest.raises(SettingsError, match=message):
        own(**wording)


def test_a_column_that_the_data_lack_is_named():
    node = tasks(["own"])["own"] | {"wording": WORDING | {"prompt": "{passage} {question}"}}
    with pytest.raises(SettingsError, match="must give the column 'passage', it gives question, answer"):
        build(node, "task.own")


@pytest.mark.parametrize(
    ("reply", "value"), [(" Ann\n", 100.0), ("Bob", 100.0), ("ann", 0.0), ("Ann Bob", 0.0), (" ", None)]
)
def test_exact_match(reply, value):
    assert Exact().value({"reply": reply}, f"Ann{REFERENCES} Bob") == value


def prepared(tmp_path, found):
    """The manifest of the task `own` with a csv of rows `found`."""
    pandas.DataFrame(found).to_csv(tmp_path / "own.csv", index=False)
    data = tasks(["own"])["own"]["data"] | {
        "files": {"train": str(tmp_path / "own.csv")},
        "columns": {"question": "Frage", "answer": "Antwort"},
        "carve": {"dev": 0.2, "test": 0.3},
    }
    manifest = tmp_path / "data/manifest.json"
    prepare_data.run({"name": "own", "data": data}, {}, {"record": manifest}, {"started": 0.0})
    return manifest


def test_twelve_rows_with_unicode_and_one_of_30_000_characters(tmp_path):
    manifest = prepared(tmp_path, [*TWELVE, LONG])
    found = [row for split in SPLITS for row in rows.split(manifest, split)]
    assert sorted(row["question"] for row in found) == sorted(row["Frage"] for row in [*TWELVE, LONG])
    assert own().prompt(found[0]).startswith("Q: ")


def test_an_empty_answer_is_named_by_row_and_column(tmp_path):
    with pytest.raises(SettingsError, match=r"own.csv: row 12, column 'Antwort': is empty"):
        prepared(tmp_path, [*TWELVE, LONG | {"Antwort": ""}])
