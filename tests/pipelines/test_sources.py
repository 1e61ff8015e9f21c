"""Question files: what is read, and the sentence for each kind of bad input."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest
from reasoning_gym.factory import DATASETS, create_dataset

from cluster.errors import InputError
from evaluation.grader import Verdict, grade
from evaluation.question import Question
from pipelines.questions.loading import DatasetSettings
from pipelines.questions.sources.columns import Columns
from pipelines.questions.sources.files import FileSource, HubSettings, read_questions
from pipelines.questions.sources.reasoning_gym import ReasoningGymSource, draw_questions
from tests.conftest import boxed_truth


def packed(data: bytes) -> bytes:
    """As gzip, without the time: it would be part of a test's name."""
    return gzip.compress(data, mtime=0)


GOOD = {"id": "a", "question": "What is 1 + 1?", "answer": "2", "answer_type": "number"}
SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


def read(folder: Path, **source: Any) -> list[Question]:
    files = FileSource(kind="files", **source)
    return list(read_questions(files, str(folder), "mine", "out_of_domain"))


def read_rows(folder: Path, *rows: dict[str, Any], **source: Any) -> list[Question]:
    lines = [json.dumps(row) for row in rows]
    (folder / "q.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return read(folder, test="q.jsonl", **source)


def complaint_about(folder: Path, data: bytes, name: str = "q.jsonl", **source: Any) -> str:
    (folder / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        read(folder, test=name, **source)
    return str(caught.value)


def complaint_about_row(folder: Path, row: dict[str, Any], **source: Any) -> str:
    """The complaint about a bad second line."""
    lines = [json.dumps(GOOD), json.dumps(row)]
    return complaint_about(folder, "\n".join(lines).encode(), **source)


def test_jsonl_row_becomes_question(tmp_path: Path) -> None:
    assert read_rows(tmp_path, GOOD) == [
        Question("mine/test/a", "mine", "test", "out_of_domain", "What is 1 + 1?", "2", "number")
    ]


def test_id_with_dataset_name_is_kept(tmp_path: Path) -> None:
    assert read_rows(tmp_path, GOOD | {"id": "mine/test/7"})[0].question_id == "mine/test/7"


def test_id_column_null_numbers_the_rows(tmp_path: Path) -> None:
    rows = [GOOD, GOOD | {"id": "b"}]
    questions = read_rows(tmp_path, *rows, columns=Columns(question_id=None))
    assert [q.question_id for q in questions] == ["mine/test/00000", "mine/test/00001"]


def test_columns_are_mapped_and_type_is_constant(tmp_path: Path) -> None:
    columns = Columns(question_id="key", question="q", answer="truth")
    row = {"key": 3, "q": "How many?", "truth": "5", "rest": None}
    question = read_rows(tmp_path, row, columns=columns, answer_type="number")[0]
    assert (question.question_id, question.text, question.answer) == (
        "mine/test/3",
        "How many?",
        "5",
    )


@pytest.mark.parametrize(
    ("answer", "answer_type", "expected"),
    [
        (72, "number", "72"),
        (0.5, "number", "0.5"),
        (1e-07, "number", "0.0000001"),
        (True, "boolean", "yes"),
        (False, "boolean", "no"),
        (1912, "text", "1912"),
        (True, "text", "true"),
    ],
)
def test_json_value_as_answer_is_written_out(
    tmp_path: Path, answer: Any, answer_type: str, expected: str
) -> None:
    row = GOOD | {"answer": answer, "answer_type": answer_type}
    assert read_rows(tmp_path, row)[0].answer == expected


@pytest.mark.parametrize("choices", [["apple", "pear"], ["", "pear"], ["pear"], [1, 2.5]])
def test_choices_may_be_empty_single_or_numbers(tmp_path: Path, choices: list[Any]) -> None:
    row = GOOD | {"answer": "A", "answer_type": "choice", "choices": choices}
    assert read_rows(tmp_path, row)[0].choices == tuple(str(choice) for choice in choices)


def test_byte_order_mark_crlf_blank_lines_and_line_separators_are_read(tmp_path: Path) -> None:
    row = GOOD | {"question": "one\u2028two"}
    line = json.dumps(row, ensure_ascii=False).encode()
    (tmp_path / "q.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n")
    assert [q.question for q in read(tmp_path, test="q.jsonl")] == ["one\u2028two"]


def test_crlf_line_ends_count_lines_as_an_editor_does(tmp_path: Path) -> None:
    lines = [json.dumps(GOOD), "", json.dumps(GOOD | {"id": "b", "answer": "many"})]
    assert "q.jsonl:3, column 'answer'" in complaint_about(tmp_path, "\r\n".join(lines).encode())


def test_text_is_kept_byte_for_byte(tmp_path: Path) -> None:
    text = "1 👩‍🔬, cafe\u0301 not caf\u00e9\t\x1b[0m\r\n\u200bهل?"
    assert read_rows(tmp_path, GOOD | {"question": text})[0].question == text


def test_very_long_question_is_read(tmp_path: Path) -> None:
    text = "word " * 40_000 + "?"
    assert read_rows(tmp_path, GOOD | {"question": text})[0].question == text


def test_line_across_blocks_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.reading.files.BLOCK_BYTES", 7)
    rows = [GOOD | {"id": str(n), "question": "word " * n + "?"} for n in range(30)]
    assert [q.question for q in read_rows(tmp_path, *rows)] == [row["question"] for row in rows]


def test_csv_cells_are_texts_and_options_a_json_list(tmp_path: Path) -> None:
    lines = [
        "id,question,answer,answer_type,choices",
        'a,"Which, of these\ntwo?",B,choice,"[""hot, dry"", 2]"',
        "b,What is 1 + 1?,2,number,",
    ]
    (tmp_path / "q.csv").write_text("\r\n".join(lines))
    first, second = read(tmp_path, test="q.csv")
    assert (first.question, first.answer) == ("Which, of these\ntwo?", "B")
    assert first.choices == ("hot, dry", "2")
    assert (second.question_id, second.answer, second.choices) == ("mine/test/b", "2", ())


def test_solution_is_read_where_it_stands(tmp_path: Path) -> None:
    told = GOOD | {"solution": "First one, then the other.", "how": 3}
    assert read_rows(tmp_path, told)[0].solution == "First one, then the other."
    assert read_rows(tmp_path, GOOD)[0].solution == ""
    assert read_rows(tmp_path, told, columns=Columns(solution=None))[0].solution == ""
    with pytest.raises(InputError, match="column 'how'"):
        read_rows(tmp_path, told, columns=Columns(solution="how"))


def test_aliases_and_grader_data_are_read_where_they_stand(tmp_path: Path) -> None:
    row = GOOD | {"answer": "New York", "answer_type": "text", "aliases": ["NYC", 10]}
    question = read_rows(tmp_path, row | {"grader_data": {"tests": [1, None]}})[0]
    assert question.aliases == ("NYC", "10")
    assert question.grader_data == '{"tests": [1, null]}'
    assert read_rows(tmp_path, GOOD | {"aliases": None, "grader_data": "as it is"}) == [
        replace(read_rows(tmp_path, GOOD)[0], grader_data="as it is")
    ]
    named = Columns(aliases="also", grader_data=None)
    row = GOOD | {"aliases": "not ours", "also": ["2.50"], "grader_data": "x"}
    question = read_rows(tmp_path, row, columns=named)[0]
    assert (question.aliases, question.grader_data) == (("2.5",), "")


def test_csv_aliases_are_a_json_list(tmp_path: Path) -> None:
    lines = ["id,question,answer,aliases,grader_data", 'a,Where?,NYC,"[""New York""]",5', "b,?,x,,"]
    (tmp_path / "q.csv").write_text("\n".join(lines))
    first, second = read(tmp_path, test="q.csv", answer_type="text")
    assert (first.aliases, first.grader_data) == (("New York",), "5")
    assert (second.aliases, second.grader_data) == ((), "")


def test_parquet_aliases_are_a_list(tmp_path: Path) -> None:
    row = GOOD | {"aliases": ["3", "4"], "grader_data": {"tolerance": 0.5}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "q.parquet")
    (question,) = read(tmp_path, test="q.parquet")
    assert (question.aliases, question.grader_data) == (("3", "4"), '{"tolerance": 0.5}')


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"id,question\na,b,c\n", "q.csv:2 has more cells than the header"),
        (b'id,question,answer\na,"x\ny",1\nb,,2\n', "q.csv:4, column 'question' is null"),
        (b'id,question\na,"x" y\n', "q.csv:2 is not CSV"),
        (b"id,question\na,\xff\n", "q.csv:2 is not UTF-8"),
        (b"id,question\n", "q.csv contains no questions"),
    ],
)
def test_broken_csv_names_file_and_line(tmp_path: Path, data: bytes, expected: str) -> None:
    assert expected in complaint_about(tmp_path, data, name="q.csv", answer_type="number")


def test_json_list_is_read_and_items_are_named_by_their_line(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps([GOOD, GOOD | {"id": "b"}], indent=2))
    assert [q.question_id for q in read(tmp_path, test="q.json")] == ["mine/test/a", "mine/test/b"]
    bad = json.dumps([GOOD, GOOD | {"id": "b", "answer": "many"}], indent=2)
    assert "q.json:8, column 'answer'" in complaint_about(tmp_path, bad.encode(), name="q.json")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'[\n\n{"id": "b"', "q.json:3 is not JSON"),
        (b"[1]", "q.json:1: every item must be one JSON object, but this is a number"),
        (b"[]", "q.json contains no questions"),
        (packed(b"[]"), "q.json contains no questions"),
        (packed(packed(b"[]")), "q.json is not JSON but gzip within gzip"),
    ],
)
def test_broken_json_names_file_and_line(tmp_path: Path, data: bytes, expected: str) -> None:
    assert expected in complaint_about(tmp_path, data, name="q.json")


def test_hub_dataset_is_read_by_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "someone"
    folder.mkdir()
    (folder / "test.jsonl").write_text(json.dumps({"q": "How many?", "truth": 5}) + "\n")
    columns = Columns(question_id=None, question="q", answer="truth")
    hub = HubSettings(repository=str(folder))
    question = read(tmp_path, hub=hub, test="test", columns=columns, answer_type="number")[0]
    assert (question.question_id, question.text, question.answer) == (
        "mine/test/00000",
        "How many?",
        "5",
    )
    with pytest.raises(InputError, match=r"the dataset .*someone/dev.* from the Hugging Face hub"):
        read(tmp_path, hub=hub, dev="dev", columns=columns, answer_type="number")


def test_rows_of_a_task_that_is_never_trained_on_are_refused_as_train(tmp_path: Path) -> None:
    row = GOOD | {"dataset": "bbh"}
    assert len(read_rows(tmp_path, row)) == 1
    source = FileSource(kind="files", train="q.jsonl")
    with pytest.raises(InputError, match=r"q\.jsonl:1: rows of bbh may not be trained on"):
        list(read_questions(source, str(tmp_path), "mine", "in_domain"))


def test_several_files_make_one_split(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD))
    pq.write_table(pa.Table.from_pylist([GOOD | {"id": "b"}]), tmp_path / "b.parquet")
    both = read(tmp_path, test=("a.jsonl", str(tmp_path / "b.parquet")))
    assert [q.question_id for q in both] == ["mine/test/a", "mine/test/b"]


def test_parquet_and_jsonl_give_the_same_questions(tmp_path: Path) -> None:
    rows = [
        {"id": f"{n}", "question": f"Pick {n}", "answer": "B", "choices": ["x", "y"]}
        for n in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    from_parquet = read(tmp_path, test="q.parquet", answer_type="choice")
    assert from_parquet == read_rows(tmp_path, *rows, answer_type="choice")


def test_uri_is_read(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(GOOD))
    assert len(read(Path("/nowhere"), test=f"file://{tmp_path}/q.jsonl")) == 1


def test_missing_file_names_path_nearest_and_folder(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text(json.dumps(GOOD))
    with pytest.raises(InputError, match=r"no question file .*question\.jsonl .*questions.jsonl"):
        read(tmp_path, test="question.jsonl")


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    assert "must end in .jsonl, .ndjson, .json, .csv" in complaint_about(
        tmp_path, b"id", name="q.txt"
    )


def test_folder_instead_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        read(tmp_path, test="q.jsonl")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"", "q.jsonl contains no questions", id="empty"),
        pytest.param(b"\n \n", "q.jsonl contains no questions", id="blank"),
        pytest.param(b'{"id": "a",\n', "q.jsonl:1 is not JSON", id="torn"),
        pytest.param(f"{json.dumps(GOOD)}\n\n{{}}".encode(), "q.jsonl:3: no column", id="row"),
        pytest.param(b"\n\n{oops}\n", "q.jsonl:3 is not JSON", id="third line"),
        pytest.param(b"[1, 2]\n", "q.jsonl:1: every line must be one JSON object", id="list"),
        pytest.param(b"null\n", "q.jsonl:1: every line must be one JSON object", id="null"),
        pytest.param(b'{"id": "caf\xe9"}\n', "q.jsonl:1 is not UTF-8", id="latin-1"),
        pytest.param(b"\xff\xfe{\x00", "q.jsonl is not JSONL but UTF-16; save", id="utf-16"),
        pytest.param(b"9" * 5000, "q.jsonl:1 is not JSON that can be read", id="huge number"),
        pytest.param(b"[" * 200_000, "q.jsonl:1 is not JSON", id="deep"),
        pytest.param(packed(b"{}"), "q.jsonl:1: no column 'id'", id="gzip"),
        pytest.param(packed(b"{}" * 99)[:-9], "q.jsonl is cut short: its gzip", id="cut gzip"),
        pytest.param(packed(b"{}") + b"more", "q.jsonl is damaged: its gzip", id="rest"),
        pytest.param(b"PK\x03\x04", "q.jsonl is not JSONL but zip; unpack it with unzip", id="zip"),
        pytest.param(b"PAR1\x15\x04", "q.jsonl is not JSONL but Parquet; let", id="parquet"),
        pytest.param(b"{}\r{}\r", "q.jsonl:1 is not JSON: extra data", id="carriage returns"),
    ],
)
def test_broken_jsonl_names_file_and_line(tmp_path: Path, data: bytes, expected: str) -> None:
    assert expected in complaint_about(tmp_path, data)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"question": ""}, "column 'question' is empty"),
        ({"question": " \n"}, "column 'question' is empty"),
        ({"question": " \t\r\n\u00a0\u3000"}, "column 'question' is empty"),
        ({"question": "\u200b\ufeff \u200d"}, "column 'question' is empty"),
        ({"question": "What is\0 1 + 1?"}, "column 'question': a NUL character at 7"),
        ({"answer": "2\0"}, "column 'answer': a NUL character at 1"),
        ({"id": "\0b"}, "column 'id': a NUL character at 0"),
        ({"question": 7}, "column 'question': expected a text, found a number"),
        ({"question": ["What?"]}, "column 'question': expected a text, found a list"),
        ({"question": "half \ud83d"}, "column 'question': a broken character at 5"),
        ({"question": None}, "column 'question' is null"),
        ({"id": None}, "column 'id' is null"),
        ({"id": ""}, "column 'id' is empty"),
        ({"id": True}, "column 'id': expected a text, found a true/false"),
        ({"answer": None}, "column 'answer' is null"),
        ({"answer": ""}, "column 'answer' is empty"),
        ({"answer": {"a": 1}}, "column 'answer': expected a text, found a mapping"),
        ({"answer": "many"}, "column 'answer'"),
        ({"answer": float("nan")}, "column 'answer'"),
        ({"answer": "maybe", "answer_type": "boolean"}, "column 'answer'"),
        ({"answer": "C", "answer_type": "choice", "choices": ["x", "y"]}, "column 'answer'"),
        ({"answer_type": "numbers"}, "unknown answer type 'numbers'; known are number, choice"),
        ({"answer_type": 3}, "unknown answer type 3"),
        ({"answer_type": ["number"]}, "unknown answer type ['number']"),
        ({"answer_type": None}, "set source.answer_type"),
        ({"answer_type": "choice", "answer": "A"}, "source.columns.choices"),
        ({"answer_type": "choice", "answer": "A", "choices": []}, "without options"),
        ({"answer_type": "choice", "answer": "A", "choices": "x, y"}, "must be a list of texts"),
        ({"answer_type": "choice", "answer": "A", "choices": [None]}, "one is a null"),
        ({"answer_type": "choice", "answer": "A", "choices": ["x"] * 27}, "only 26 letters"),
        ({"answer_type": "choice", "answer": "A", "choices": ["x"] * 1000}, "1000 options, but"),
        (
            {"answer_type": "choice", "answer": "A", "choices": ["\ud83d"]},
            "a broken character at 0",
        ),
        ({"answer_type": "choice", "answer": "A", "choices": ["x\0"]}, "a NUL character at 1"),
        ({"choices": ["x", "y"]}, "a number question has no options"),
        ({"aliases": "two"}, "column 'aliases': the aliases must be a list of answers, this is a"),
        ({"aliases": ["many"]}, "column 'aliases': the number 'many' cannot be read"),
        ({"aliases": [None]}, "column 'aliases': expected a text, found a null"),
        ({"grader_data": "a\0"}, "column 'grader_data': a NUL character at 1"),
        ({"id": "a"}, "is already used at"),
    ],
)
def test_bad_row_names_line_and_what_to_do(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    complaint = complaint_about_row(tmp_path, GOOD | {"id": "b"} | change)
    assert "q.jsonl:2" in complaint
    assert expected in complaint


def test_duplicate_id_names_both_lines(tmp_path: Path) -> None:
    complaint = complaint_about_row(tmp_path, GOOD)
    assert "q.jsonl:2" in complaint
    assert "q.jsonl:1" in complaint


def test_duplicate_id_across_the_files_of_a_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD | {"id": "mine/1"}))
    (tmp_path / "test.jsonl").write_text(json.dumps(GOOD | {"id": "mine/1"}))
    source = FileSource(kind="files", train="train.jsonl", test="test.jsonl")
    with pytest.raises(InputError, match=r"test\.jsonl:1.*train\.jsonl:1"):
        list(read_questions(source, str(tmp_path), "mine", "in_domain"))


@pytest.mark.parametrize("missing", ["id", "question", "answer"])
def test_missing_column_names_those_there_and_the_setting(tmp_path: Path, missing: str) -> None:
    row = {name: value for name, value in GOOD.items() if name != missing}
    complaint = complaint_about(tmp_path, json.dumps(row | {f"{missing}s": "x"}).encode())
    field = {"id": "question_id"}.get(missing, missing)
    assert f"q.jsonl:1: no column '{missing}'" in complaint
    assert all(name in complaint for name in row)
    assert f"source.columns.{field}" in complaint
    assert "nearest" in complaint or missing == "id"


def test_broken_parquet_names_file(tmp_path: Path) -> None:
    complaint = complaint_about(tmp_path, b"PAR1 not really", name="q.parquet")
    assert "q.parquet cannot be read as Parquet" in complaint


def test_bad_parquet_row_is_named_by_row(tmp_path: Path) -> None:
    rows = [GOOD, GOOD | {"id": "b", "answer": "many"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    with pytest.raises(InputError, match=r"q\.parquet row 2"):
        read(tmp_path, test="q.parquet")


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("question", 7, "column 'question': expected a text, found a number"),
        ("question", b"What?", "column 'question': expected a text, found a binary value"),
        ("question", ["What?"], "column 'question': expected a text, found a list"),
        ("question", {"text": "What?"}, "column 'question': expected a text, found a mapping"),
        ("id", 1.5, "column 'id': expected a text, found a number"),
        ("answer", date(2024, 1, 1), "column 'answer': expected a text, found a date"),
        ("answer_type", 3, "column 'answer_type': unknown answer type 3"),
        ("choices", "x, y", "column 'choices': a number question has no options"),
        ("grader_data", [date(2024, 1, 1)], "column 'grader_data': Object of type date is not"),
    ],
)
def test_parquet_column_of_a_wrong_type_is_refused(
    tmp_path: Path, column: str, value: Any, expected: str
) -> None:
    pq.write_table(pa.Table.from_pylist([GOOD | {column: value}]), tmp_path / "q.parquet")
    with pytest.raises(InputError) as caught:
        read(tmp_path, test="q.parquet")
    assert f"q.parquet row 1, {expected}" in str(caught.value)


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    raw = pa.array([b"caf\xe9"]).view(pa.string())
    columns = {name: [value] for name, value in GOOD.items()}
    pq.write_table(pa.table(columns | {"question": raw}), tmp_path / "q.parquet")
    with pytest.raises(InputError, match=r"q\.parquet, after row 0: a text is not UTF-8"):
        read(tmp_path, test="q.parquet")


def test_parquet_columns_nobody_asked_for_are_named_and_not_read(tmp_path: Path) -> None:
    dates = pa.array([10**8], pa.int32()).cast(pa.date32())  # past the years that Python knows
    columns = {name: [value] for name, value in GOOD.items()} | {"made": dates}
    pq.write_table(pa.table(columns), tmp_path / "q.parquet")
    assert len(read(tmp_path, test="q.parquet")) == 1
    with pytest.raises(InputError, match=r"row 1: no column 'q'; the columns are id, .*, made"):
        read(tmp_path, test="q.parquet", columns=Columns(question="q"))
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read(tmp_path, test="q.parquet", columns=Columns(answer="made"))


def test_parquet_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([GOOD]).slice(0, 0), tmp_path / "q.parquet")
    with pytest.raises(InputError, match="contains no questions"):
        read(tmp_path, test="q.parquet")


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no ../shared/data beside the repository")
def test_shared_benchmarks_all_load() -> None:
    for path in sorted(SHARED_DATA.glob("*.jsonl")):
        dataset = path.name.split(".")[0]
        source = FileSource(kind="files", test=path.name)
        questions = list(read_questions(source, str(SHARED_DATA), dataset, "out_of_domain"))
        num_lines = path.read_bytes().count(b"\n")
        assert len(questions) == num_lines, path.name
        assert all(q.question_id.startswith(f"{dataset}/") for q in questions)


def all_to_test(text: str) -> Any:
    return "test"


def draw(**source: Any) -> list[Question]:
    gym = ReasoningGymSource(kind="reasoning_gym", **source)
    wanted: Any = {"train": 0, "dev": 0, "test": 20}
    return list(draw_questions(gym, "mine", "out_of_domain", wanted, all_to_test))


def test_family_asks_plain_questions_with_ids_of_the_stream() -> None:
    first = draw(family="chain_sum", settings={"max_terms": 2}, seed=5)[0]
    assert first.question_id == "mine/test/000000"
    assert first.question.startswith("State the final answer")
    assert int(first.answer) == eval(first.question.split(":")[1].strip(" ="))


@pytest.mark.parametrize("value", [None, {"a": 1}, [None]])
def test_family_setting_must_be_plain(value: Any) -> None:
    with pytest.raises(pydantic.ValidationError, match="max_terms must be a number, text"):
        ReasoningGymSource(kind="reasoning_gym", family="x", settings={"max_terms": value})


def test_family_stream_keeps_repeats_beyond_what_is_wanted() -> None:
    texts = [q.text for q in draw(family="products", settings={"max_digits": 1})]
    assert len(texts) > len(set(texts)) == 20


@pytest.mark.parametrize(
    ("family", "answer_type", "by_scorer"),
    [
        ("simple_equations", "number", False),
        ("game_of_life_halting", "boolean", False),
        ("spell_backward", "text", False),
        ("rotate_matrix", "text", True),
        ("graph_color", "text", True),
    ],
)
def test_family_is_graded_as_fits_it(family: str, answer_type: str, by_scorer: bool) -> None:
    for question in draw(family=family)[:2]:
        assert question.answer_type == answer_type
        assert bool(question.grader) == bool(question.grader_data) == by_scorer
        result = grade(boxed_truth(question), question, read_last=False)
        assert result.verdict == Verdict.CORRECT


def test_family_with_an_answer_type_is_graded_as_that() -> None:
    question = draw(family="base_conversion", answer_type="text")[0]
    assert (question.answer_type, question.grader) == ("text", "")


def test_family_is_not_asked_what_is_answered_by_nothing() -> None:
    settings = {"length": 4}
    answered = [q.answer for q in draw(family="ab", settings=settings)]
    assert len(answered) >= 20
    assert all(answered)
    entries = create_dataset("ab", **settings, seed=0, size=200)
    assert any(not entry["answer"] for entry in entries)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(set(DATASETS) - {"boxnet", "composite", "rush_hour"}))
def test_every_family_with_answers_grades_its_own_as_right(family: str) -> None:
    source = ReasoningGymSource(kind="reasoning_gym", family=family, seed=3)
    wanted: Any = {"train": 0, "dev": 0, "test": 3}
    for question in draw_questions(source, "mine", "out_of_domain", wanted, all_to_test):
        result = grade(boxed_truth(question), question, read_last=False)
        assert result.verdict == Verdict.CORRECT, question.answer


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"family": "chain_sums"}, r"source\.family: .*'chain_sums'; nearest: chain_sum"),
        ({"family": "chain_sum", "settings": {"min_term": 2}}, r"settings\.min_term: .*min_terms"),
        ({"family": "chain_sum", "settings": {"seed": 2}}, r"settings\.seed: give source\.seed"),
        ({"family": "chain_sum", "settings": {"min_terms": 9}}, "chain_sum refuses them"),
        ({"family": "chain_sum", "settings": {"min_terms": "two"}}, "chain_sum refuses them"),
        (
            {"family": "spell_backward", "answer_type": "number"},
            r"source\.answer_type: item 0 of spell_backward",
        ),
        ({"family": "rush_hour"}, r"source\.family: .* has no right answer"),
        ({"family": "coin_flip", "settings": {"max_trials": 3}}, r"gave \d+ different test"),
    ],
)
def test_family_that_cannot_serve_is_refused(source: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=r"questions\.datasets\.mine.*" + expected):
        draw(**source)


def unlabelled(**changes: Any) -> dict[str, Any]:
    columns = {"answer": None, "answer_type": None, "choices": None}
    source = {"kind": "files", "train": "t.jsonl", "columns": columns, "answer_type": "number"}
    return {"source": source | changes.pop("source", {}), "dev_share": 0.0} | changes


def test_questions_without_answers_are_trained_on_by_the_majority(tmp_path: Path) -> None:
    rows = [{"id": str(n), "question": f"What is {n} + 1?"} for n in range(3)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = DatasetSettings.model_validate(unlabelled())
    questions = list(read_questions(dataset.source, str(tmp_path), "d", "in_domain"))  # type: ignore[arg-type]
    assert [question.answer for question in questions] == ["", "", ""]
    assert not dataset.is_labelled
    result = grade("So \\boxed{3}", questions[2], read_last=False)
    assert (result.predicted, result.verdict) == ("3", "unlabelled")
    assert grade("No idea", questions[2], read_last=False).verdict == "no_answer"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": {"test": "t.jsonl"}}, "dev and test need answers"),
        ({"dev_share": 0.1}, "set dev_share: 0"),
    ],
)
def test_questions_without_answers_are_not_evaluated_on(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DatasetSettings.model_validate(unlabelled(**changes))


def test_settings_of_a_family_that_are_a_list_are_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="should be a valid dictionary"):
        ReasoningGymSource.model_validate(
            {"kind": "reasoning_gym", "family": "chain_sum", "settings": ["min_terms"]}
        )
