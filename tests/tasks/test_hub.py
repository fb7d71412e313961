"""Datasets of the hub: read from a cache laid out as the hub's, with no network; what is missing is named."""

import json
import os
from pathlib import Path

import pandas
import pytest
from huggingface_hub import constants
from omegaconf import OmegaConf

from pipeline.core.records import file_sha256
from pipeline.core.settings import SettingsError, build, parse
from pipeline.tasks.base import REFERENCES, SPLITS, Task
from pipeline.tasks.hub import Hub
from pipeline.tasks.math500 import boxed

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("DATA_ROOT", ROOT.parent / "shared" / "data"))
"""Real data, laid out as `local` of conf/task says."""
REVISION = "0123456789abcdef" * 2 + "01234567"
NODE = {
    "license": "MIT", "repository": "some-body/sums", "revision": REVISION, "root": None, "carve": {"dev": 0.3},
    "files": {"train": ["main/train-0.parquet", "main/train-1.parquet"], "test": ["main/test.jsonl"]},
    "local": {"train": ["sums/train.jsonl"]}, "columns": {"question": "q", "answer": "a"}, "key": "question",
}  # fmt: skip


def hub(**changed) -> Hub:
    return parse(Hub, NODE | changed, "data")


def pinned(cache: Path, **changed) -> Hub:
    """The source with the hashes of what lies in the cache."""
    return hub(**{"sha256": {f"main/{file.name}": file_sha256(file) for file in cache.iterdir()}} | changed)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of one commit, where `hf download` puts the files of a dataset."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asks the network"))
    snapshot = tmp_path / "datasets--some-body--sums" / "snapshots" / REVISION / "main"
    snapshot.mkdir(parents=True)
    for part in (0, 1):
        numbers = range(10 * part, 10 * part + 10)
        pandas.DataFrame({"q": [f"{n} + 1?" for n in numbers], "a": [f"#### {n + 1}" for n in numbers]}).to_parquet(
            snapshot / f"train-{part}.parquet"
        )
    (snapshot / "test.jsonl").write_text(json.dumps({"q": "7 * 8?", "a": "#### 56"}) + "\n")
    return snapshot


def test_a_complete_cache_is_read_without_a_network(cache):
    source = pinned(cache)
    source.present()
    assert source.paths() == [], "hashes pin the files; their place on this machine is no setting"
    assert source.rows("test") == [{"id": "test-00001", "question": "7 * 8?", "answer": "#### 56"}]
    train, dev = source.rows("train"), source.rows("dev")
    assert 1 <= len(dev) <= 12
    ids = sorted(row["id"] for row in train + dev)
    assert ids == [f"train-{n:05}" for n in range(1, 21)]
    assert {row["question"] for row in train + dev} == {f"{n} + 1?" for n in range(20)}
    assert source.source == f"some-body/sums@{REVISION}"


def test_a_missing_file_is_named_with_the_command_that_fetches_it(cache):
    source = pinned(cache)
    (cache / "train-1.parquet").unlink()
    for read in (source.present, lambda: source.rows("train")):
        with pytest.raises(SettingsError, match=r"lacks main/train-1.parquet of some-body/sums.*pipeline prefetch"):
            read()
    assert len(source.rows("test")) == 1


def test_another_file_is_not_taken_for_the_locked_one(cache):
    source = pinned(cache)
    (cache / "test.jsonl").write_text("{}")
    with pytest.raises(SettingsError, match=r"test.jsonl: is not main/test.jsonl of some-body/sums at 01234567: SHA-2"):
        source.rows("test")


def test_another_commit_is_not_taken_for_this_one(cache):
    with pytest.raises(SettingsError, match=r"lacks main/train-..parquet of some-body/sums at ffffffff"):
        pinned(cache, revision="f" * 40).present()


@pytest.mark.parametrize("sha256", [{}, {"main/train-0.parquet": "0" * 64}], ids=["never pinned", "for other files"])
def test_what_is_not_pinned_says_what_to_do(cache, sha256):
    for read in (hub(sha256=sha256).present, lambda: hub(sha256=sha256).rows("test")):
        with pytest.raises(SettingsError, match=r"is not pinned.*python -m pipeline pin\nOr set data_root to a folder"):
            read()


def test_local_files_need_neither_commit_nor_cache(tmp_path):
    source = hub(root=str(tmp_path), carve={})
    assert source.wanted() == ()
    with pytest.raises(SettingsError, match=r"data.root: there is no file .*sums/train.jsonl"):
        source.rows("train")
    (tmp_path / "sums").mkdir()
    (tmp_path / "sums" / "train.jsonl").write_text('{"q": "1 + 1?", "a": 2}\n')
    assert source.paths() == [tmp_path / "sums" / "train.jsonl"]
    assert source.rows("train")[0]["answer"] == "2"
    assert source.rows("test") == []
    assert source.source == "sums/train.jsonl"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"revision": "a b"}, "revision"),
        ({"files": {"train": ["a.xml"]}}, "files: 'a.xml' must end in"),
        ({"lists": {"q": "sentences"}}, "lists must be one of columns"),
        ({"carve": {"test": 0.1}}, "has a file of its own"),
    ],
)
def test_wrong_settings_are_said(changed, message):
    with pytest.raises(SettingsError, match=message):
        hub(**changed)


def test_lists_and_several_columns(tmp_path):
    (tmp_path / "sums").mkdir()
    lines = [{"q": ["One.", "Two."], "a": "x", "a2": "y"}, {"q": ["One."], "a": "z"}]
    path = tmp_path / "sums" / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    lists = {"columns": {"question": "q", "answer": ["a", "a2"]}, "lists": {"question": "sentences"}}
    source = hub(root=str(tmp_path), carve={}, **lists)
    with pytest.raises(SettingsError, match="row 2, column 'a2': is empty"):  # a column of the file, if not of the row
        source.rows("train")
    path.write_text(json.dumps(lines[0]))
    assert source.rows("train")[0] == {"id": "train-00001", "question": "One. Two.", "answer": f"x{REFERENCES}y"}
    path.write_text(json.dumps(lines[0] | {"q": ["One.", "  ", "Two."]}))  # as a row of SciTLDR is
    assert source.rows("train")[0]["question"] == "One. Two."
    path.write_text(json.dumps(lines[0] | {"q": [" "]}))
    with pytest.raises(SettingsError, match="row 1, column 'q': is empty"):
        source.rows("train")
    path.write_text(json.dumps(lines[0] | {"a": f"x{REFERENCES}"}))
    with pytest.raises(SettingsError, match=r"U\+001E"):
        source.rows("train")


def _real(name: str) -> Task:
    """A task of conf/ on the real data beside the repository."""
    if not DATA.is_dir():
        pytest.skip(f"the real data is not here: no folder {DATA.parent.name}/{DATA.name}; DATA_ROOT names another")
    node = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "task" / f"{name}.yaml"))
    node["data"]["root"] = str(DATA)
    task = build(node, name)
    assert isinstance(task, Task)
    return task


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("gsm8k", (7473, 0, 1319)),
        ("scitldr", (1992, 619, 618)),
        ("dialogsum", (12460, 500, 500)),
        ("math500", (0, 0, 500)),
        ("wikitext2", (0, 0, 4358)),
        ("wikitext2-words", (163, 0, 62)),
    ],
)
def test_real_data_is_whole(name, counts):
    task = _real(name)
    assert task.data is not None
    found = {split: task.data.rows(split) for split in SPLITS}
    whole = dict(zip(SPLITS, counts, strict=True))
    if name == "gsm8k":  # dev is carved from train
        assert 300 < len(found["dev"]) < 450
        whole |= {"train": 7473 - len(found["dev"]), "dev": len(found["dev"])}
    assert {split: len(rows) for split, rows in found.items()} == whole
    if task.generation and task.generation.kind == "replies":
        for row in found["test"][:50]:
            for rule in task.scoring:  # the first reference is a perfect reply, except for the wording of a task
                assert rule.value({"reply": task.answer(row)}, task.reference(row)) == pytest.approx(100.0)


@pytest.mark.slow
def test_the_boxed_answer_of_every_solution_is_the_answer_of_math500():
    task = _real("math500")
    assert task.data is not None
    answers = [json.loads(line)["answer"] for line in (DATA / "math500" / "test.jsonl").read_text().splitlines()]
    got = [boxed(task.reference(row)) for row in task.data.rows("test")]
    assert sum(one == other for one, other in zip(got, answers, strict=True)) >= 495
