"""Data sources: your own files work, or say which row and column does not; overlap is found and refused."""

import json
import random
from pathlib import Path

import pandas
import pytest

from pipeline.core import records
from pipeline.core.settings import SettingsError, build, parse
from pipeline.stages import prepare_data
from pipeline.tasks import rows
from pipeline.tasks.generated import Generated
from pipeline.tasks.gsm8k import GSM8K
from pipeline.tasks.local import Local
from pipeline.tasks.overlap import NEAR, overlaps, shingles

ROWS = [
    {"Frage": f"Wie viele Äpfel hat {name}?", "Antwort": f"#### {n}"}
    for n, name in enumerate(["Ännchen", "Bø", "日本"])
]
NODE = {
    "_target_": "pipeline.tasks.local.Local",
    "license": "CC0-1.0",
    "columns": {"question": "Frage", "answer": "Antwort"},
    "key": "question",
    "carve": {},
}


def local(files, **changed) -> Local:
    return parse(Local, NODE | {"files": {split: str(path) for split, path in files.items()}} | changed, "data")


def written(path: Path, found: list[dict]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(found))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
    elif path.suffix == ".csv":
        pandas.DataFrame(found).to_csv(path, index=False)
    else:
        pandas.DataFrame(found).to_parquet(path)
    return path


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    found = local({"test": written(tmp_path / f"own{ending}", ROWS)}).rows("test")
    assert found == [
        {"id": f"test-{n:05}", "question": row["Frage"], "answer": row["Antwort"]} for n, row in enumerate(ROWS, 1)
    ]


def test_a_csv_value_is_the_text_that_stands_there(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text('Frage,Antwort\nWho?,007\nNA,NA\n"a, ""b""\nc",1.0\n')
    found = local({"train": path}).rows("train")
    assert [(row["question"], row["answer"]) for row in found] == [("Who?", "007"), ("NA", "NA"), ('a, "b"\nc', "1.0")]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"Frage,Antwort\nWho?,Ann,\nWhy?,Bo,\n", "row 1 has 3 values, the header names 2 columns"),
        ("a.csv", b"Frage,Antwort\nWho?,Ann\nWhy?\n", "row 2 has 1 values, the header names 2 columns"),
        ("a.csv", b"Frage,Antwort,Frage\na,b,c\n", "the column 'Frage' twice"),
        ("a.csv", b'Frage,Antwort\n"Who?,Ann\n', "cannot be read as csv: unexpected end of data"),
        ("a.csv", "Frage,Antwort\nä,b\n".encode("latin-1"), "cannot be read as csv: 'utf-8' codec"),
        ("a.csv", b"Frage;Antwort\nWho?;Ann\n", "row 1 has no column 'Frage'. It has: Frage;Antwort"),
        ("a.csv", b"Frage,Antwort\nWho?, \n", "row 1, column 'Antwort': is empty"),
        ("a.csv", b"Frage,Antwort\n", "holds no rows"),
        ("a.csv", b"", "holds no rows"),
        ("a.jsonl", b"", "holds no rows"),
        ("a.json", b"[]", "cannot be read as json: .* no data"),
        ("a.parquet", b"no", "cannot be read as parquet"),
    ],
)
def test_what_a_file_must_not_be(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SettingsError, match=message) as caught:
        local({"train": tmp_path / name}).rows("train")
    assert str(tmp_path / name) in str(caught.value)


def test_a_byte_order_mark_and_windows_lines_are_no_text(tmp_path):
    (tmp_path / "a.csv").write_bytes("\ufeffFrage,Antwort\r\nWho?,Ann\r\n\r\nWhy?,Bo\r\n".encode())
    found = local({"train": tmp_path / "a.csv"}).rows("train")
    assert [(row["question"], row["answer"]) for row in found] == [("Who?", "Ann"), ("Why?", "Bo")]


def test_a_very_long_row_works(tmp_path):
    found = local({"train": written(tmp_path / "own.csv", [*ROWS, {"Frage": "ü" * 300_000, "Antwort": "#### 1"}])})
    assert len(found.rows("train")[3]["question"]) == 300_000


def test_whole_numbers_become_text(tmp_path):
    found = local({"test": written(tmp_path / "own.jsonl", [{"Frage": "How many?", "Antwort": 18}])}).rows("test")
    assert found[0]["answer"] == "18"


@pytest.mark.parametrize(
    ("ending", "row", "message"),
    [
        (".csv", {"Frage": "Why?", "Antwort": ""}, "row 4, column 'Antwort': is empty"),
        (".jsonl", {"Frage": "Why?", "Antwort": ""}, "row 4, column 'Antwort': is empty"),
        (".jsonl", {"Frage": None, "Antwort": "#### 1"}, "row 4, column 'Frage': is empty"),
    ],
)
def test_an_empty_value_names_file_row_and_column(tmp_path, ending, row, message):
    path = written(tmp_path / f"own{ending}", [*ROWS, row])
    with pytest.raises(SettingsError, match=message) as caught:
        local({"train": path}).rows("train")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [3.5, True, ["a"], {"a": "b"}])
def test_another_type_is_named(tmp_path, value):
    path = written(tmp_path / "own.jsonl", [{"Frage": "Why?", "Antwort": value}])
    with pytest.raises(SettingsError, match="row 1, column 'Antwort': must be text or a whole number, got"):
        local({"train": path}).rows("train")


def test_a_missing_column_names_those_that_are_there(tmp_path):
    path = written(tmp_path / "own.csv", [{"Frage": "Why?", "antwort": "#### 1"}])
    with pytest.raises(SettingsError, match=r"no column 'Antwort'. It has: Frage, antwort"):
        local({"train": path}).rows("train")


def test_a_missing_and_a_broken_file_are_named(tmp_path):
    with pytest.raises(SettingsError, match="there is no file"):
        local({"train": tmp_path / "none.csv"}).rows("train")
    (tmp_path / "own.jsonl").write_text('{"Frage": "Why?", "Antwort": "#### 1"}\n{"Frage": ')
    with pytest.raises(SettingsError, match=r"own.jsonl: cannot be read as json"):
        local({"train": tmp_path / "own.jsonl"}).rows("train")


def test_carving_is_a_function_of_the_row_alone(tmp_path):
    many = [{"Frage": f"question {n % 400}", "Antwort": str(n)} for n in range(500)]
    whole = local({"train": written(tmp_path / "a.jsonl", many)}, carve={"dev": 0.1, "test": 0.3})
    parts = {split: whole.rows(split) for split in ("train", "dev", "test")}
    assert sum(len(found) for found in parts.values()) == 500
    assert 100 < len(parts["test"]) < 200
    assert 20 < len(parts["dev"]) < 85
    questions = [{row["question"] for row in found} for found in parts.values()]
    assert not questions[0] & (questions[1] | questions[2])
    assert not questions[1] & questions[2]
    turned = local({"train": written(tmp_path / "b.jsonl", many[::-1])}, carve={"dev": 0.1, "test": 0.3})
    assert {row["question"] for row in turned.rows("test")} == questions[2]


def test_a_split_that_carving_leaves_empty_is_named(tmp_path):
    source = local({"train": written(tmp_path / "own.csv", ROWS)}, carve={"dev": 1e-9})
    with pytest.raises(SettingsError, match=r"data.carve: the 3 rows of train leave dev without any"):
        source.rows("dev")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"key": "Frage"}, "key must be one of columns"),
        ({"carve": {"test": 0.1}}, "has a file of its own"),
        ({"carve": {"dev": 1.0}}, "less than 1"),
        ({"files": {"train": "rows.xml"}}, "must end in"),
        ({"files": {"tests": "rows.csv"}}, "tests"),
    ],
)
def test_wrong_settings_are_said(changed, message):
    with pytest.raises(SettingsError, match=message):
        parse(Local, NODE | {"files": {"train": "a.csv", "test": "b.csv"}} | changed, "data")


def test_a_task_refuses_data_without_its_columns():
    node = NODE | {"files": {"test": "a.csv"}, "columns": {"question": "q"}}
    with pytest.raises(SettingsError, match="must give the column 'answer'"):
        build({"_target_": "pipeline.tasks.gsm8k.GSM8K", "data": node}, "task")
    assert isinstance(build({"_target_": "pipeline.tasks.gsm8k.GSM8K"}, "task"), GSM8K)


def test_more_rows_than_there_are_is_an_error():
    node = {"license": "CC0-1.0", "kind": "shift", "seed": 0, "train": 0, "dev": 10**9, "test": 0}
    source = parse(Generated, node | {"dev": 0})
    assert source.rows("dev") == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.tasks.generated.PATIENCE", 3)
        with pytest.raises(SettingsError, match=r"data.dev: there are only \d+ distinct rows, got 1000000000"):
            parse(Generated, node).rows("dev")


STORY = "Tom has 4 bags with 5 pens in each bag and 3 more pens. How many pens does Tom have in total?"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (STORY, "equal"),
        (STORY.upper().replace(".", " !"), "equal"),
        (STORY + " Think of it now.", "near"),  # 16 of 20 runs of words are shared: 0.8
        (STORY + " Think of it right now.", None),
        ("Now " + STORY, "near"),
        (STORY.replace("4", "6"), None),
        (STORY.replace("Tom", "Ann"), None),
        ("Tom has", None),
        ("What is 2 * 3 + 4?", None),
    ],
)
def test_overlap_is_found(text, found):
    train = ["What is 2 * 3 + 5?", "a b c", STORY, "Ann went home.", STORY]
    got = overlaps(train, ["something else entirely", text])
    assert got == {"equal": {}, "near": {}} | ({found: {1: 2}} if found else {})


def test_near_is_what_comparing_all_with_all_finds():
    for seed in range(3):
        draw = random.Random(seed)  # noqa: S311
        base = [" ".join(draw.choice("abcdefgh") for _ in range(30)) for _ in range(40)]
        changed = [text[: 2 * draw.randint(0, 12)] + "x" + text[2 * draw.randint(0, 3) :] for text in base]
        near = overlaps(base, changed)["near"]
        plain = {}
        for index, text in enumerate(changed):
            for like, one in enumerate(base):
                if len(shingles(text) & shingles(one)) >= NEAR * len(shingles(text) | shingles(one)):
                    plain.setdefault(index, like)
        assert near == plain
        assert 0 < len(near) < 40


def prepared(tmp_path, **changed):
    path = tmp_path / "train.jsonl"
    leak = [*ROWS, {"Frage": "Who left?", "Antwort": "#### 9"}]
    files = {"train": str(written(path, leak)), "test": str(written(tmp_path / "test.jsonl", ROWS))}
    prepare_data.run(
        {"name": "own", "data": NODE | {"files": files} | changed},
        {},
        {"record": tmp_path / "out/manifest.json"},
        {"started": 0.0},
    )
    return tmp_path / "out/manifest.json"


def test_overlap_of_test_with_train_is_refused_or_recorded(tmp_path, capsys):
    with pytest.raises(SettingsError, match=r"3 of 3 test rows .* test-00001 is train-00001.*overlap=record"):
        prepared(tmp_path)
    assert not (tmp_path / "out").exists()
    manifest = prepared(tmp_path, overlap="record")
    overlap = records.read(manifest, "prepare_data").result["overlap"]
    assert overlap["test"]["equal"] == {f"test-0000{n}": f"train-0000{n}" for n in (1, 2, 3)}
    assert "3 of 3 test rows are in train as well (3 equal, 0 nearly so)" in capsys.readouterr().out


def test_a_manifest_says_what_was_made_and_repeats(tmp_path):
    node = {"_target_": "pipeline.tasks.generated.Generated", "license": "CC0-1.0", "kind": "story", "seed": 0}
    made = []
    for name in ("a", "b"):
        path = tmp_path / name / "manifest.json"
        prepare_data.run(
            {"name": "demo", "data": node | {"train": 30, "dev": 4, "test": 5}}, {}, {"record": path}, {"started": 0.0}
        )
        made.append(records.read(path, "prepare_data").result)
    assert made[0] == made[1]
    assert {split: kept["rows"] for split, kept in made[0]["splits"].items()} == {"train": 30, "dev": 4, "test": 5}
    assert made[0]["overlap"] == {split: {"equal": {}, "near": {}} for split in ("dev", "test")}
    assert len(rows.split(tmp_path / "a/manifest.json", "dev")) == 4


def test_a_file_that_changed_since_the_plan_is_refused(tmp_path):
    path = written(tmp_path / "own.jsonl", ROWS)
    settings = {"name": "own", "data": NODE | {"files": {"test": str(path)}}}
    settings["files"] = {str(path): records.file_sha256(path)}
    prepare_data.run(settings, {}, {"record": tmp_path / "a/manifest.json"}, {"started": 0.0})
    written(path, ROWS[:2])
    with pytest.raises(SettingsError, match=r"own.jsonl: has changed since the plan: SHA-256"):
        prepare_data.run(settings, {}, {"record": tmp_path / "b/manifest.json"}, {"started": 0.0})
    assert not (tmp_path / "b").exists()


def test_rows_survive_line_separators_inside_of_texts(tmp_path):
    kept = [{"id": "1", "text": "a\u2028b\u0085c\nd\x0b"}]
    sha256 = rows.write(tmp_path / "rows.jsonl", kept)
    assert rows.read(tmp_path / "rows.jsonl", sha256) == kept


def test_a_damaged_row_file_is_named(tmp_path):
    sha256 = rows.write(tmp_path / "rows.jsonl", [{"id": "1", "text": "abc"}])
    (tmp_path / "rows.jsonl").write_text('{"id": "1", "text": "abd"}\n')
    with pytest.raises(records.RecordError, match=r"rows.jsonl: the file is damaged"):
        rows.read(tmp_path / "rows.jsonl", sha256)
