"""A file that was cut short or changed is named, and never read for good."""

import signal

import pytest

from pipeline.core import records
from tests.e2e.jobs import after

HARM = {
    "cut short": lambda data: data[: len(data) // 2],
    "one bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
}


@pytest.fixture(params=HARM)
def harm(request):
    return lambda path: path.write_bytes(HARM[request.param](path.read_bytes()))


def upstream(one, name):
    """The path that the job's command calls `name` among its inputs."""
    return dict(word.split("=", 1) for word in after("--input", one.command))[name]


@pytest.mark.parametrize(
    ("stage", "name", "pattern"),
    [
        ("finetune", "data", "train.jsonl"),
        ("finetune", "data", "manifest.json"),
        ("finetune", "model", "model/*.safetensors"),
        ("finetune", "base", "base/*.safetensors"),
        ("merge", "train", "adapter/adapter_model.safetensors"),
        ("merge", "train", "train.json"),
        ("evaluate", "train", "adapter/adapter_model.safetensors"),
        ("evaluate", "merge", "merge.json"),
        ("evaluate", "data", "test.jsonl"),
    ],
)
def test_damaged_input_is_named(stage, name, pattern, harm, copy, job, lab):
    one = job(stage, "nf4-double", *(["train="] if stage == "evaluate" else []))
    (path, *_) = (copy / upstream(one, name)).parent.glob(pattern)
    one.clear(copy)
    harm(path)
    done = lab.run(one.command, copy)
    assert done.code == 1, done.output
    assert path.name in done.output
    assert "Traceback" not in done.output
    assert not (copy / one.outputs["record"]).exists()


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_damaged_replies_are_named(suffix, harm, copy, job, lab):
    one = job("score")
    path = (copy / upstream(one, "evaluate.gsm8k-demo")).with_suffix(suffix)
    one.clear(copy)
    harm(path)
    done = lab.run(one.command, copy)
    assert done.code == 1, done.output
    assert path.name in done.output


def killed_with_two_checkpoints(one, copy, lab):
    """Kill the fine-tune after its last step; return the records of its checkpoints, older first."""
    one.clear(copy)
    assert lab.run(one.command, copy, touching=".adapter.").code == -signal.SIGKILL
    found = sorted((copy / one.outputs["record"].parent / "checkpoints").glob("step-*.json"))
    assert len(found) == 2
    return found


def test_damaged_checkpoint_gives_way_to_the_older_one(harm, sweep, copy, job, lab):
    one = job("finetune", "lora.LoRA")
    older, newer = killed_with_two_checkpoints(one, copy, lab)
    step = records.read(older).result["step"]
    harm(newer.with_suffix(".safetensors"))
    done = lab.run(one.command, copy)
    assert done.code == 0, done.output
    assert newer.with_suffix(".safetensors").name in done.output
    record = records.read(copy / one.outputs["record"])
    assert record.about["resumed_at"] == step
    adapter = one.outputs["record"].parent / "adapter/adapter_model.safetensors"
    assert (copy / adapter).read_bytes() == (sweep / adapter).read_bytes()


def test_no_whole_checkpoint_is_an_error(harm, copy, job, lab):
    one = job("finetune", "lora.LoRA")
    for record in killed_with_two_checkpoints(one, copy, lab):
        harm(record.with_suffix(".safetensors"))
    done = lab.run(one.command, copy)
    assert done.code == 1, done.output
    assert "step-" in done.output
    assert not (copy / one.outputs["record"]).exists()
