"""Unusual question files: each is read correctly, or refused in one sentence."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pydantic
import pytest

from cluster.errors import InputError
from evaluation.question import Question
from evaluation.reading import files
from evaluation.reading.files import reading
from evaluation.reading.rows import resolve
from evaluation.reading.table_rows import arrow_rows
from pipelines.questions.loading import (
    DatasetSettings,
    QuestionSet,
    QuestionSettings,
    load_questions,
)


def packed(data: bytes) -> bytes:
    """As gzip, without the time: it would be part of a test's name."""
    return gzip.compress(data, mtime=0)


ROW = {"id": "1", "question": "How many?", "answer": 1}


def line(**changes: Any) -> str:
    return json.dumps(ROW | changes)


ONE, TWO = line(), line(id="2", question="How many more?")


def load(folder: Path, test: Any, **source: Any) -> QuestionSet:
    own = {"kind": "files", "test": test, "answer_type": "number"} | source
    datasets = {"mine": {"source": own, "domain": "out_of_domain"}}
    tree = {"folder": str(folder), "datasets": datasets}
    return load_questions(QuestionSettings.model_validate_json(json.dumps(tree)))


def read(folder: Path, name: str, data: str | bytes, **source: Any) -> list[Question]:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    questions = {q.question_id: q for q in load(folder, name, **source).questions("test")}
    return [questions[key] for key in sorted(questions)]


def answers(folder: Path, name: str, data: str | bytes, **source: Any) -> list[str]:
    return [question.answer for question in read(folder, name, data, **source)]


def complaint(folder: Path, name: str, data: str | bytes, **source: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, name, data, **source)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


# --- JSON --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("q.json", f"[{line()}]\n[{line()}]", "q.json:2: text follows the end of the list"),
        ("q.json", f"[{line()}] more", "q.json:1: text follows the end of the list"),
        ("q.json", f"[\n{line()},\n]", "q.json:3 is not JSON: there is an extra comma"),
        ("q.json", f"[{line()},,{line()}]", "q.json:1 is not JSON: there is an extra comma"),
        ("q.json", f"[{line()}\n{line()}]", "q.json:2 is not JSON: a comma or the end of the list"),
        ("q.json", f'{{"examples": [{line()}]', "the object around the list is not closed"),
        ("q.json", f'{{"examples": [{line()}]}} []', "text follows the end of the list"),
        ("q.json", f'{{"examples": [{line()}], "examples": []}} []', "text follows the end"),
        ("q.json", f'{{"examples": [{ONE}], "more": [{TWO}]}}', "the list 'more' follows the list"),
        (
            "q.json",
            f'{{"more": [{TWO}], "examples": [{ONE}]}}',
            "no column 'id'; the columns are more,",
        ),
        ("q.json", '{"data": [1]}', "is a number"),
        ("q.json", "5", "q.json:1: every line must be one JSON object, but this is a number"),
        ("q.json", "{5: [1]}", "q.json:1 is not JSON"),
        ("q.json", '{"data" [1]}', "q.json:1 is not JSON: expecting ':' delimiter"),
        ("q.json", '{"more": [1}', "q.json:1 is not JSON: expecting ',' delimiter"),
        ("q.json", '{"more": ' + "[" * 100_000, "q.json:1 is not JSON that can be read"),
        ("q.jsonl", line(x=0).replace("0}", "[" * 100_000), "read: it is nested too deeply;"),
        ("q.jsonl", line(answer=0).replace("0}", "9" * 5000 + "}"), "has more than 4300 digits;"),
        ("q.jsonl", f"[{line()}]", "this is a list; a file with a single list must end in .json"),
        ("q.jsonl", line() + line(), "q.jsonl:1 is not JSON: extra data at column"),
        ("q.jsonl", '{"id": "a', "unterminated string starting at column 8"),
        ("q.jsonl", '{"id": "a\tb"}', "invalid control character at column 10"),
        ("q.jsonl", line()[:-1] + ', "answer": 2}', "the key 'answer' is given twice"),
        ("q.jsonl", line(x={"a": 1}).replace('"a": 1', '"a": 1, "a": 2'), "the key 'a' is given"),
        ("q.jsonl", line(answer=float("nan")), "column 'answer' is nan, which is not a value"),
        ("q.jsonl", line(answer=float("inf")), "column 'answer' is inf, which is not a value"),
        ("q.jsonl", '{"id": 1, "question": "?", "answer": 1e9999}', "more than 400 digits"),
        ("q.jsonl", line(question=" \u200b"), "column 'question' is empty"),
        ("q.json", line().encode("utf-16"), "q.json is not JSON but UTF-16; save it as UTF-8"),
        ("q.csv", "id,question".encode("utf-16"), "q.csv is not CSV but UTF-16"),
        ("q.csv", b"PK\x03\x04...", "q.csv is not CSV but zip; unpack it with unzip"),
    ],
)
def test_json_that_would_lose_something_is_refused(
    tmp_path: Path, name: str, data: str | bytes, said: str
) -> None:
    assert said in complaint(tmp_path, name, data)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("q.json", f"\ufeff [ {ONE} ,\r\n {TWO} ]\n"),
        ("q.json", f'{{"canary": "x", "examples": [{ONE}, {TWO}], "more": [1]}}'),
        ("q.json", f'{{"examples": [{ONE}, {TWO}]}}\n'),
        ("q.json", f"{line(examples=[1])}\n{TWO}"),
        ("q.json", f"{ONE}\n\n{TWO}\n"),
        ("q.ndjson", f"{line(x=float('nan'))}\n{TWO}"),
        ("Q.JSONL", f"{ONE}\r\n{TWO}"),
        ("q.jsonl.gz", packed(f"{ONE}\n".encode()) + packed(TWO.encode())),
        ("q.jsonl", packed(f"{ONE}\n{TWO}".encode())),
        ("q.jsonl.gz", f"{ONE}\n{TWO}"),
        ("q.json.gz", packed(f"[{ONE},{TWO}]".encode())),
        ("q.csv.gz", packed(b"id,question,answer\n1,How many?,1\n2,How much?,1\n")),
    ],
)
def test_json_and_gzip_in_any_of_their_forms_are_read_whole(
    tmp_path: Path, name: str, data: str | bytes
) -> None:
    assert answers(tmp_path, name, data) == ["1", "1"]


@pytest.mark.parametrize("cut", [4, 30])
def test_gzip_that_is_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    data = packed("\n".join(line(id=n) for n in range(50)).encode())[:-cut]
    assert "is cut short: its gzip data end too early" in complaint(tmp_path, "q.jsonl.gz", data)


def test_gzip_that_is_damaged_is_refused(tmp_path: Path) -> None:
    data = bytearray(packed("\n".join(line(id=n) for n in range(50)).encode()))
    data[20:24] = b"\xff\xff\xff\xff"
    assert "q.jsonl.gz is damaged" in complaint(tmp_path, "q.jsonl.gz", bytes(data))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("0.1", "0.1"),
        ("0.1234567890123456789012", "0.1234567890123456789012"),
        ("9007199254740993", "9007199254740993"),
        ("1e3", "1000"),
        ("-0.50", "-0.5"),
    ],
)
def test_json_number_keeps_its_digits(tmp_path: Path, written: str, expected: str) -> None:
    data = line(answer=0).replace('"answer": 0', f'"answer": {written}')
    assert answers(tmp_path, "q.jsonl", data) == [expected]


# --- CSV ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("id,question,answer,answer\n1,a?,2,3\n", "has the column 'answer' twice"),
        ("id,question,answer,,\n1,a?,2,,\n", "has a column without a name twice"),
        ("id,question,answer\n1,a?\n", "q.csv:2 has fewer cells than the header: 2, but"),
        ("id;question, long;answer\n1;a?;2\n", "can be split at a comma or a semicolon; set"),
        ("id;question;answer\n1;a?;3,5\n", "q.csv:2, column 'answer': the number '3,5'"),
        ("1,a?,2\n2,b?,3\n", "file has no header line, name its columns with source.header"),
        ("one?\ntwo?\n", "the columns are one?; set"),
    ],
)
def test_csv_that_would_lose_something_is_refused(tmp_path: Path, data: str, said: str) -> None:
    assert said in complaint(tmp_path, "q.csv", data)


@pytest.mark.parametrize(
    ("name", "data", "source"),
    [
        ("q.csv", "\n id , question,answer\n\n1,a?,2\n\n", {}),
        ("q.csv", "\ufeffid;question;answer\r\n1;a, b?;2\r\n", {}),
        ("q.csv", "id|question|answer\n1|a?|2\n", {}),
        ("q.csv", "id\tquestion\tanswer\n1\ta, b; c?\t2\n", {}),
        (
            "q.tsv",
            "id\tquestion, long\tanswer\n1\ta?\t2\n",
            {"columns": {"question": "question, long"}},
        ),
        ("q.csv", "1;a, b?;2\n", {"header": ["id", "question", "answer"]}),
        (
            "q.csv",
            "id;question, long;answer\n1;a?;2\n",
            {"delimiter": ";", "columns": {"question": "question, long"}},
        ),
    ],
)
def test_csv_is_cut_at_what_its_first_line_tells_or_the_config_says(
    tmp_path: Path, name: str, data: str, source: dict[str, Any]
) -> None:
    assert answers(tmp_path, name, data, **source) == ["2"]


def test_csv_cell_may_be_of_any_length(tmp_path: Path) -> None:
    long = "word " * 60_000 + "?"
    [question] = read(tmp_path, "q.csv", f'id,question,answer\n1,"{long}",2\n')
    assert question.question == long


def test_csv_without_header_says_where_the_names_do_not_fit(tmp_path: Path) -> None:
    said = complaint(tmp_path, "q.csv", "1,a?,2\n", header=["question", "answer"])
    assert "q.csv:1 does not have the 2 cells that source.header names" in said


def test_csv_that_names_its_columns_itself_needs_no_header(tmp_path: Path) -> None:
    data = "id,question,answer\n1,a?,2\n"
    said = complaint(tmp_path, "q.csv", data, header=["id", "question", "answer"])
    assert "q.csv:1 names the columns itself; remove source.header" in said


# --- Parquet -----------------------------------------------------------------------------------


def parquet(folder: Path, **columns: Any) -> bytes:
    pq.write_table(pa.table({"id": ["1"], "question": ["How many?"]} | columns), folder / "made")
    return (folder / "made").read_bytes()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (pa.array([0.1], pa.float32()), "0.1"),
        (pa.array([np.float16(0.1)], pa.float16()), "0.1"),
        (pa.array([1e20]), "100000000000000000000"),
        (pa.array([2**62 + 1]), str(2**62 + 1)),
        (pa.array([2**64 - 1], pa.uint64()), str(2**64 - 1)),
        (pa.array([decimal.Decimal("1.50")]), "1.5"),
    ],
)
def test_parquet_number_is_what_was_stored(tmp_path: Path, answer: Any, expected: str) -> None:
    assert answers(tmp_path, "q.parquet", parquet(tmp_path, answer=answer)) == [expected]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([float(2**53 + 2)], "may have been rounded; store it as a whole number"),
        ([float("nan")], "column 'answer' is nan"),
        ([datetime.date(2020, 1, 1)], "expected a text, found a date"),
        ([datetime.datetime(2020, 1, 1)], "expected a text, found a datetime"),
        ([None], "column 'answer' is null"),
    ],
)
def test_parquet_value_that_is_no_truth_is_refused(tmp_path: Path, answer: Any, said: str) -> None:
    assert said in complaint(tmp_path, "q.parquet", parquet(tmp_path, answer=answer))


def test_parquet_small_floats_within_lists_and_structs_keep_their_digits(tmp_path: Path) -> None:
    options = pa.array([[0.1, 0.2]], pa.list_(pa.float32()))
    data = parquet(tmp_path, answer=["B"], choices=options)
    assert read(tmp_path, "q.parquet", data, answer_type="choice")[0].choices == ("0.1", "0.2")
    kind = pa.struct([("label", pa.list_(pa.string())), ("text", pa.list_(pa.float32()))])
    labelled = pa.array([{"label": ["x", "y"], "text": [0.1, 0.2]}], kind)
    data = parquet(tmp_path, answer=["y"], choices=labelled)
    [question] = read(tmp_path, "q.parquet", data, answer_type="choice")
    assert (question.choices, question.answer) == (("0.1", "0.2"), "B")


def test_small_floats_of_a_dictionary_and_of_a_null_struct_keep_their_digits() -> None:
    kind = pa.struct([("value", pa.float32()), ("name", pa.string())])
    table = pa.table(
        {
            "coded": pa.array([0.1, 0.1, None], pa.float32()).dictionary_encode(),
            "nested": pa.array([{"value": 0.1, "name": "x"}, None, {"value": None}], kind),
        }
    )
    rows = arrow_rows(table)
    assert [row["coded"] and str(row["coded"]) for row in rows] == ["0.1", "0.1", None]
    assert str(rows[0]["nested"]["value"]) == "0.1"
    assert [row["nested"] for row in rows[1:]] == [None, {"value": None, "name": None}]


def test_parquet_column_twice_is_refused(tmp_path: Path) -> None:
    arrays = [pa.array(["1"]), pa.array(["?"]), pa.array([1]), pa.array([2])]
    names = ["id", "question", "answer", "answer"]
    pq.write_table(pa.Table.from_arrays(arrays, names=names), tmp_path / "q.parquet")
    with pytest.raises(InputError, match="has the column 'answer' twice"):
        load(tmp_path, "q.parquet")


def test_hub_dataset_with_small_floats_keeps_their_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "someone"
    folder.mkdir()
    (folder / "test.parquet").write_bytes(parquet(tmp_path, answer=pa.array([0.1], pa.float32())))
    loaded = load(tmp_path, "test", hub={"repository": str(folder)})
    assert [question.answer for question in loaded.questions("test")] == ["0.1"]


# --- several files -----------------------------------------------------------------------------


def write_shards(folder: Path, *numbers: int, total: int = 3) -> None:
    for number in numbers:
        name = f"q-{number:05d}-of-{total:05d}.jsonl"
        (folder / name).write_text(line(id=number, question=f"How many {number}?"))


@pytest.mark.parametrize("numbers", [(0, 1, 2), (1, 2, 3)])
def test_all_shards_are_read_by_a_star(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    write_shards(tmp_path, *numbers)
    assert load(tmp_path, "q-*.jsonl").table.num_rows == 3


@pytest.mark.parametrize(
    "test", ["q-*.jsonl", ["q-00000-of-00003.jsonl", "q-00002-of-00003.jsonl"]]
)
def test_missing_shard_is_refused(tmp_path: Path, test: Any) -> None:
    write_shards(tmp_path, 0, 2)
    with pytest.raises(InputError, match=r"of 3 files, but only 2 of them are given \(number 0, 2"):
        load(tmp_path, test)


def write_numbered(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).write_text(line(id=number, question=f"How many {number}?"))


@pytest.mark.parametrize(
    "names",
    [
        ("part-0.jsonl", "part-1.jsonl", "part-3.jsonl"),
        ("train_001.jsonl", "train_003.jsonl", "train_004.jsonl"),
    ],
)
def test_gap_in_numbered_files_is_refused_unless_they_are_listed(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    write_numbered(tmp_path, *names)
    with pytest.raises(InputError, match="without number 2; copy what is missing, or list the"):
        load(tmp_path, "*.jsonl")
    assert load(tmp_path, list(names)).table.num_rows == 3


def test_years_and_single_numbers_have_no_gap(tmp_path: Path) -> None:
    write_numbered(tmp_path, "aime-2022.jsonl", "aime-2024.jsonl", "grade-5.jsonl", "q.jsonl")
    assert load(tmp_path, "*.jsonl").table.num_rows == 4


def test_star_stands_for_no_hidden_file(tmp_path: Path) -> None:
    write_numbered(tmp_path, ".old.jsonl", "q.jsonl")
    assert load(tmp_path, "*.jsonl").table.num_rows == 1


def test_list_of_rows_may_be_the_data_of_one_object(tmp_path: Path) -> None:
    rows = [{"id": number, "question": f"How many {number}?", "answer": 1} for number in range(2)]
    assert len(read(tmp_path, "q.json", json.dumps({"version": 1, "data": rows}))) == 2
    with pytest.raises(InputError, match="the list 'more' follows the list of rows"):
        read(tmp_path, "q.json", json.dumps({"data": rows, "more": rows}))


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("x" * 300 + ".jsonl", "cannot read the question file"),
        ("nowhere://folder/q.jsonl", "cannot read the question file nowhere://folder/q.jsonl"),
        ("x" * 300 + "/*.jsonl", "cannot list"),
    ],
)
def test_place_that_no_storage_knows_is_refused(tmp_path: Path, test: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(tmp_path, test)


def test_file_whose_disk_fails_while_it_is_read_is_named() -> None:
    def lines() -> Iterator[str]:
        yield ONE
        raise OSError(5, "Input/output error")

    found = reading("q.jsonl", lines())
    assert next(found) == ONE
    with pytest.raises(InputError, match=r"cannot read the question file q\.jsonl: .*Input/output"):
        next(found)


def test_file_on_a_network_is_read_in_one_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "q.jsonl").write_text(ONE)
    network = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    monkeypatch.setattr(files, "open_filesystem", lambda location: (network, "q.jsonl"))
    found = files.open_file("s3://bucket/q.jsonl")
    (tmp_path / "q.jsonl").unlink()
    assert found.read() == ONE.encode()


@pytest.mark.parametrize(
    ("path", "folder", "expected"),
    [
        ("a/q.jsonl", "s3://bucket/questions", "s3://bucket/questions/a/q.jsonl"),
        ("/data/q.jsonl", "s3://bucket/questions", "/data/q.jsonl"),
        ("gs://other/q.jsonl", "s3://bucket/questions", "gs://other/q.jsonl"),
        ("q.jsonl", "/data", "/data/q.jsonl"),
    ],
)
def test_path_is_relative_to_the_folder_of_the_questions(
    path: str, folder: str, expected: str
) -> None:
    assert resolve(path, folder) == expected


def test_star_that_fits_no_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file in .* matches q-\*\.jsonl"):
        load(tmp_path, "q-*.jsonl")
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match=r"data is a folder; name the files in it, or all of them"):
        load(tmp_path, "data")


# --- columns and conversions -------------------------------------------------------------------


def test_column_that_one_setting_names_is_no_second_thing_by_default(tmp_path: Path) -> None:
    data = json.dumps({"id": 1, "question": "How many?", "solution": 5})
    [question] = read(tmp_path, "q.jsonl", data, columns={"answer": "solution"})
    assert (question.answer, question.solution) == ("5", "")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"answer": "question"}, "question and answer both name the column 'question'"),
        ({"question": "{question} {answer}"}, "question and answer both name the column 'answer'"),
        ({"question": "{question} {solution}", "solution": "solution"}, "question and solution"),
        ({"question": "{question"}, "'{question' is not a template"),
        ({"question": "{question!r}"}, "braces may only contain the name of a column"),
        ({"question": "{} {question}"}, "braces may only contain the name of a column"),
        (["question", "answer"], "should be a valid dictionary"),
    ],
)
def test_columns_that_cannot_be_meant_are_refused(columns: Any, said: str) -> None:
    source = {"kind": "files", "test": "q.jsonl", "columns": columns}
    with pytest.raises(pydantic.ValidationError) as caught:
        DatasetSettings.model_validate({"source": source, "domain": "out_of_domain"})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"header": ("id",)}, "delimiter and header are for CSV files, and q.jsonl is not one"),
        ({"delimiter": ";"}, "delimiter and header are for CSV files"),
        ({"test": "q.csv", "header": ("id", "answer", "id")}, "header: a column is named twice"),
        ({"choices": ("a", "b"), "columns": {"choices": "c"}}, "choices and columns.choices both"),
        ({"columns": {"choices": ("answer", "b")}}, "set shuffle_options: true"),
        ({"answer_map": {}}, "no answer; name at least one"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(source: dict[str, Any], said: str) -> None:
    source = {"kind": "files", "test": "q.jsonl"} | source
    with pytest.raises(pydantic.ValidationError) as caught:
        DatasetSettings.model_validate({"source": source, "domain": "out_of_domain"})
    assert said in str(caught.value)


XY = {"choices": ["x", "y"]}


@pytest.mark.parametrize(
    ("row", "source", "said"),
    [
        ({}, {"columns": {"question": "{passage} {question}"}}, "no column 'passage'"),
        ({}, {"columns": {"aliases": "aliasses"}}, "source.columns.aliases: no row has a column"),
        ({"answer": "so #### 5"}, {}, "set source.answer_after to '####'"),
        ({"answer": "so 5"}, {"answer_after": "####"}, "has no answer after '####'"),
        ({"answer": 1}, {"answer_type": "boolean"}, "with source.answer_map"),
        (
            {"answer": "maybe"},
            {"answer_map": {"yes": 1}},
            "is 'maybe', which is not in source.answer_map",
        ),
        ({}, {"answer_type": "choice"}, "or the options of every question with source.choices"),
        (XY, {"answer_type": "choice"}, "set source.answer_index to 0 or 1"),
        (XY | {"answer": 2}, {"answer_type": "choice", "answer_index": 0}, "from 0 to 1"),
        (XY | {"answer": 0}, {"answer_type": "choice", "answer_index": 1}, "from 1 to 2"),
        (XY | {"answer": True}, {"answer_type": "choice", "answer_index": 0}, "is True, not a"),
        (
            {"choices": ["1", "2"]},
            {"answer_type": "choice"},
            "and possibly the position of another",
        ),
        (
            {"choices": ["A. x", "B) y"], "answer": "A"},
            {"answer_type": "choice"},
            "set source.option_letters to strip, or to keep",
        ),
        ({"choices": "['x', 'y']"}, {"answer_type": "choice"}, "write them as JSON"),
        ({"choices": "[" * 100_000}, {"answer_type": "choice"}, "write them as JSON"),
        (
            {"choices": {"text": ["x", "y"], "label": ["1"]}},
            {"answer_type": "choice"},
            "has 1 labels for 2 options",
        ),
        (
            {"choices": {"text": ["x", "y"], "label": ["1", "1"]}},
            {"answer_type": "choice"},
            "two options have the same label",
        ),
        (
            {"choices": {"text": ["x", "y"], "label": ["C", "D"]}, "answer": "A"},
            {"answer_type": "choice"},
            "is 'A', which is not one of the labels C, D",
        ),
        (
            {"p": "x", "q": None, "r": "z", "answer": "A"},
            {"answer_type": "choice", "columns": {"choices": ["p", "q", "r"]}},
            "every option must be a text, but one is a null",
        ),
        ({"p": "x"}, {"columns": {"choices": ["p"]}}, "a number question has no options"),
        (
            {"p": "x", "answer": "A"},
            {"answer_type": "choice", "columns": {"choices": ["p", "q"]}},
            "no column 'q'",
        ),
        (
            {"p": "x", "q": None},
            {
                "answer_type": "choice",
                "shuffle_options": True,
                "columns": {"choices": ["p", "q"], "answer": "q"},
            },
            "is null; fill it in or remove the row",
        ),
    ],
)
def test_hint_names_the_setting(
    tmp_path: Path, row: dict[str, Any], source: dict[str, Any], said: str
) -> None:
    assert said in complaint(tmp_path, "q.jsonl", line(**row), **source)


@pytest.mark.parametrize(
    ("row", "source", "expected"),
    [
        ({"answer": "Maybe"}, {"answer_type": "boolean", "answer_map": {"maybe": False}}, "no"),
        (XY | {"answer": "1"}, {"answer_type": "choice", "answer_index": 0}, "B"),
        (XY | {"answer": 1.0}, {"answer_type": "choice", "answer_index": 0}, "B"),
        ({"choices": ["1", "2"]}, {"answer_type": "choice", "answer_index": "never"}, "A"),
        ({"choices": {"c": "x", "d": "y"}, "answer": "d"}, {"answer_type": "choice"}, "B"),
        (
            {"choices": [{"label": "1", "text": "x"}, {"label": "2", "text": "y"}], "answer": "2"},
            {"answer_type": "choice"},
            "B",
        ),
        (
            {"choices": ["A. x", "B. y"], "answer": "B"},
            {"answer_type": "choice", "option_letters": "keep"},
            "B",
        ),
        (XY | {"answer": "y"}, {"answer_type": "choice", "option_letters": "strip"}, "B"),
        (
            {"p": "x", "q": "y", "r": None, "answer": "B"},
            {"answer_type": "choice", "columns": {"choices": ["p", "q", "r"]}},
            "B",
        ),
        ({"answer": "3 #### 4 #### 5"}, {"answer_after": "####"}, "5"),
        (
            {"answer": False},
            {
                "answer_type": "choice",
                "choices": ["T", "F"],
                "answer_map": {"true": "A", "false": "F"},
            },
            "B",
        ),
        (
            {"answer": "n"},
            {"answer_type": "choice", "choices": ["e", "n", "c"], "answer_map": {"n": "B"}},
            "B",
        ),
    ],
)
def test_conversion_gives_the_truth(
    tmp_path: Path, row: dict[str, Any], source: dict[str, Any], expected: str
) -> None:
    assert answers(tmp_path, "q.jsonl", line(**row), **source) == [expected]


def test_right_answer_and_a_list_of_wrong_ones_are_options_in_an_order_of_the_id(
    tmp_path: Path,
) -> None:
    rows = [
        {"id": n, "question": f"Which {n}?", "best": f"right {n}", "wrong": ["x", "y", "z"]}
        for n in range(30)
    ]
    data = "\n".join(map(json.dumps, rows))
    columns = {"answer": "best", "choices": ["best", "wrong"]}
    source = {"answer_type": "choice", "columns": columns, "shuffle_options": True}
    questions = read(tmp_path, "q.jsonl", data, **source)
    for question in questions:
        assert question.choices["ABCD".index(question.answer)].startswith("right")
    assert {question.answer for question in questions} == set("ABCD")
    backwards = "\n".join(map(json.dumps, reversed(rows)))
    assert read(tmp_path, "q.jsonl", backwards, **source) == questions


def test_shuffled_options_keep_their_aliases(tmp_path: Path) -> None:
    rows = [
        {"id": n, "question": f"Which {n}?", "choices": ["one", "two", "six"], "answer": "A"}
        | {"aliases": ["two"]}
        for n in range(8)
    ]
    data = "\n".join(map(json.dumps, rows))
    for question in read(tmp_path, "q.jsonl", data, answer_type="choice", shuffle_options=True):
        letters = (question.answer, *question.aliases)
        assert [question.choices["ABC".index(one)] for one in letters] == ["one", "two"]


def test_option_letters_out_of_order_name_the_options(tmp_path: Path) -> None:
    data = line(choices=["B. ice", "A. steam", "C. fire"], answer="B")
    source = {"answer_type": "choice", "option_letters": "strip"}
    [question] = read(tmp_path, "q.jsonl", data, **source)
    assert (question.choices, question.answer) == (("ice", "steam", "fire"), "A")


def test_template_joins_lists_and_leaves_out_what_is_empty(tmp_path: Path) -> None:
    columns = {"question": "{facts}\n{more}{question}"}
    data = line(facts=["One.", "Two.", 3], more=None)
    assert (
        read(tmp_path, "q.jsonl", data, columns=columns)[0].question == "One.\nTwo.\n3\nHow many?"
    )
    csv = 'id,facts,more,question,answer\n1,"[""One."", ""Two.""]",,How many?,1\n'
    assert read(tmp_path, "q.csv", csv, columns=columns)[0].question == "One.\nTwo.\nHow many?"
    data = line(facts='["a text"]', more="")
    assert read(tmp_path, "q.jsonl", data, columns=columns)[0].question.startswith('["a text"]\n')


def test_part_of_a_column_is_named_with_a_dot(tmp_path: Path) -> None:
    options = [{"label": "A", "text": "ice"}, {"label": "B", "text": "steam"}]
    row = {"id": 1, "question": {"stem": "Which?", "choices": options}, "key": {"is": "B"}}
    columns = {"question": "{question.stem}", "choices": "question.choices", "answer": "key.is"}
    source: dict[str, Any] = {"answer_type": "choice", "columns": columns}
    [question] = read(tmp_path, "q.jsonl", json.dumps(row), **source)
    assert (question.text, question.answer) == ("Which?\nA) ice\nB) steam", "B")
    pq.write_table(pa.Table.from_pylist([row | {"id": "1"}]), tmp_path / "q.parquet")
    assert list(load(tmp_path, "q.parquet", **source).questions("test")) == [question]
    columns["answer"] = "key.was"
    assert "no column 'key.was'" in complaint(tmp_path, "q.jsonl", json.dumps(row), **source)


@pytest.mark.parametrize(("value", "kind"), [("algebra", "algebra"), (3, "3"), (None, "")])
def test_kind_is_kept_and_changes_no_fingerprint(tmp_path: Path, value: Any, kind: str) -> None:
    [with_kind] = read(tmp_path, "q.jsonl", line(level=value), columns={"kind": "level"})
    [without] = read(tmp_path, "q.jsonl", line())
    assert (with_kind.kind, without.kind) == (kind, "")
    assert with_kind.fingerprint == without.fingerprint
    assert load(tmp_path, "q.jsonl").table.column("kind").to_pylist() == [""]


def test_settings_as_a_run_stores_them_mean_the_same(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("q;right;wrong\nWhich?;a;b\n")
    source = {
        "kind": "files",
        "test": "q.csv",
        "answer_type": "choice",
        "shuffle_options": True,
        "columns": {
            "question_id": None,
            "question": "Say: {q}",
            "answer": "right",
            "choices": ["right", "wrong"],
        },
    }
    tree = {
        "folder": str(tmp_path),
        "datasets": {"mine": {"source": source, "domain": "out_of_domain"}},
    }
    settings = QuestionSettings.model_validate_json(json.dumps(tree))
    again = QuestionSettings.model_validate_json(settings.model_dump_json())
    assert again == settings
    assert load_questions(again).table == load_questions(settings).table


# --- counts ------------------------------------------------------------------------------------


def test_limit_above_what_there_is_is_said(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("\n".join(line(id=n, question=f"{n}?") for n in range(3)))
    source = {"kind": "files", "train": "q.jsonl", "answer_type": "number"}
    tree: dict[str, Any] = {"folder": str(tmp_path)}
    tree["datasets"] = {"mine": {"source": source, "dev_share": 0.0, "num_train": 1000}}
    facts = load_questions(QuestionSettings.model_validate_json(json.dumps(tree))).facts()
    assert facts.shortfalls() == [
        "questions.datasets.mine.num_train is 1000, but there are only 3 questions"
    ]
    tree["datasets"]["mine"]["num_train"] = 3
    loaded = load_questions(QuestionSettings.model_validate_json(json.dumps(tree)))
    assert loaded.facts().shortfalls() == []


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "files", "train": "q.jsonl"},
        {"kind": "task", "name": "gsm8k", "splits": ["train"]},
    ],
)
def test_limit_of_a_split_that_cannot_be_is_refused(source: dict[str, Any]) -> None:
    dataset = {"source": source, "num_test": 50}
    with pytest.raises(pydantic.ValidationError, match="num_test is 50, but there is no test"):
        DatasetSettings.model_validate_json(json.dumps(dataset))
    for change in ({"num_test": 0}, {"test_share": 0.2}):
        DatasetSettings.model_validate_json(json.dumps(dataset | change))


def test_truth_that_its_own_map_made_unreadable_gets_no_hint_of_a_map(tmp_path: Path) -> None:
    own = {"answer_type": "boolean", "answer_map": {"maybe": "perhaps"}}
    said = complaint(tmp_path, "q.jsonl", line(answer="maybe"), **own)
    assert "perhaps" in said
    assert "answer_map" not in said
