"""A record is whole or an error, and a file is whole or not there."""

import errno
import json

import pytest

from pipeline.core import records


def write(path, result=None):
    records.write(path, stage="finetune", settings={"rank": 2}, result=result or {"loss": 0.5}, about={"host": "a"})


def test_comes_back_as_it_was_written(tmp_path):
    write(tmp_path / "r.json", {"loss": 0.1 + 0.2, "curve": [1, None]})
    record = records.read(tmp_path / "r.json", "finetune")
    assert record.result == {"loss": 0.1 + 0.2, "curve": [1, None]}
    assert (record.status, record.settings, record.about) == ("ok", {"rank": 2}, {"host": "a"})


def test_every_bit_flip_and_every_truncation_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "train.json"
    write(path)
    whole = path.read_bytes()
    damaged = [whole[:n] for n in range(0, len(whole) - 2, 7)]
    damaged += [whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :] for n in range(len(whole) - 1)]
    unnoticed = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            records.read(path)
        except records.RecordError as error:
            assert str(path) in str(error)  # noqa: PT017  (hundreds of cases in one test)
        else:
            unnoticed += json.loads(data) != json.loads(whole)
    assert unnoticed == 0


def test_refuses_another_stage_another_version_and_no_file(tmp_path):
    write(tmp_path / "r.json")
    with pytest.raises(records.RecordError, match="must be a record of stage 'merge', got 'finetune'"):
        records.read(tmp_path / "r.json", "merge")
    (tmp_path / "v.json").write_text('{"version": 99}')
    with pytest.raises(records.RecordError, match="record version must be 1, got 99"):
        records.read(tmp_path / "v.json")
    with pytest.raises(records.RecordError, match="no such record"):
        records.read(tmp_path / "none.json")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failed_write_leaves_the_old_one_and_nothing_else(tmp_path, kind):
    path = tmp_path / "thing"
    for text in ("old", "new"):
        try:
            with records.writing(path) as unfinished:
                target = unfinished
                if kind == "folder":
                    unfinished.mkdir()
                    target = unfinished / "inside"
                target.write_text(text)
                if text == "new":
                    raise OSError(errno.ENOSPC, "full")
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017
            assert str(path) in str(error)  # noqa: PT017
    assert [p.name for p in tmp_path.iterdir()] == ["thing"]
    assert (path / "inside" if kind == "folder" else path).read_text() == "old"


def test_a_changed_file_does_not_fit_its_recorded_hash(tmp_path):
    file = tmp_path / "adapter.safetensors"
    file.write_bytes(b"weights")
    expected = records.file_sha256(file)
    records.check_sha256(file, expected)
    file.write_bytes(b"weightz")
    with pytest.raises(records.RecordError, match=r"adapter\.safetensors: the file is damaged"):
        records.check_sha256(file, expected)
