"""A csv of one's own through the stages prepare_data and finetune: what is cut is counted, what cannot be is named."""

import time

import pandas
import pytest

from pipeline.core import records
from pipeline.core.settings import SettingsError
from pipeline.stages import finetune, prepare_data
from pipeline.sweeps.compose import composed, tasks
from tests.models.conftest import FORMATS, HARDWARE, prepared  # noqa: F401  (prepared is a fixture)

TWELVE = [{"Frage": f"wie heißt fräulein {letter}", "Antwort": f"名 {letter}"} for letter in "abcdefghijkl"]


@pytest.fixture
def tune(tmp_path, prepared):  # noqa: F811
    """Return a function: rows of a csv -> the record of a fine-tune on them."""
    model, base = prepared()[1:]

    def run(found, **changed):
        pandas.DataFrame(found).to_csv(tmp_path / "own.csv", index=False)
        task = tasks(["own"])["own"]
        data = task["data"] | {
            "files": {"train": str(tmp_path / "own.csv")}, "columns": {"question": "Frage", "answer": "Antwort"},
            "carve": {"dev": 0.3},
        }  # fmt: skip
        manifest, record = tmp_path / "data/manifest.json", tmp_path / "run/train.json"
        prepare_data.run({"name": "own", "data": data}, {}, {"record": manifest}, {"started": time.time()})
        parts = composed(())
        short = {"task": "own", "steps": 2, "batch_size": 2, "micro_batch_size": 2, "max_length": 60}
        settings = {
            "adapter": parts["adapter"] | {"rank": 2}, "optimizer": parts["optimizer"], "seed": 0,
            "training": parts["training"] | short | {"schedule": parts["training"]["schedule"] | {"warmup_steps": 1}},
            "task": {key: task[key] for key in ("_target_", "wording")} | {"name": "own"} | changed,
            "quantization": FORMATS["none"], "hardware": HARDWARE,
        }  # fmt: skip
        inputs = {"model": model, "base": base, "data": manifest}
        finetune.run(settings, inputs, {"record": record}, {"started": time.time()})
        return records.read(record, "finetune")

    return run


def test_a_very_long_answer_is_cut_and_counted(tune):
    long = [{"Frage": "lang", "Antwort": "x" * 30_000}, TWELVE[0] | {"Antwort": "y" * 61}]
    assert tune([*TWELVE[1:], *long]).result["truncated_rows"] == 2


def test_a_prompt_that_leaves_no_answer_is_named(tune):
    with pytest.raises(SettingsError, match=r"row 'train-00012' has no labelled token: its prompt has \d{5} tokens"):
        tune([*TWELVE[:11], {"Frage": "x" * 30_000, "Antwort": "y"}])


def test_training_asks_through_the_chat_too(tune):
    with pytest.raises(SettingsError, match="the model's tokenizer has no chat template"):
        tune(TWELVE, chat={"system": "Be brief."})
