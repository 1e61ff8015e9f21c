"""Grading a file of rows: what is added, what passes through, and which line an error names."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from evaluation.grade_file import grade_file


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def graded(path: Path) -> list[dict[str, Any]]:
    output = io.StringIO()
    grade_file(path, output)
    return [json.loads(line) for line in output.getvalue().splitlines()]


def row(response: str, answer: Any = "72", kind: str = "number", **more: Any) -> dict[str, Any]:
    return {"response": response, "answer": answer, "answer_type": kind, "choices": None} | more


def test_grade_file_adds_three_fields_and_passes_the_others_through(tmp_path: Path) -> None:
    given = row("So \\boxed{72}.", id=7, note={"by": ["a", None]})
    [result] = graded(write(tmp_path / "rows.jsonl", given))
    assert result == given | {"predicted": "72", "verdict": "correct", "read_as": "boxed"}


def test_grade_file_takes_each_kind_as_json_holds_it(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        row("It is 72", 72),
        row("\\boxed{0.5}", 0.5),
        row("The answer is yes.", True, "boolean"),
        row("\\boxed{B}", "B", "choice", choices=["ice", "fire"]),
        row("\\boxed{NYC}", "New York", "text", aliases=["NYC"]),
        row("\\boxed{2\\pi}", r"2\pi", "math"),
        row("It is 72", finish_reason="length"),
        row("\\boxed{72}", "twelve apples"),
        row("\\boxed{72}", thinking_opened=True),
        row("Hm.</think>\\boxed{72}", thinking_opened=True),
    )
    verdicts = [result["verdict"] for result in graded(path)]
    assert verdicts == ["correct"] * 6 + ["truncated", "error", "truncated", "correct"]


def test_grade_file_counts_rows_by_verdict(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", row("\\boxed{72}"), row("\\boxed{1}"), row("Hm."))
    assert grade_file(path, io.StringIO()) == {"correct": 1, "wrong": 1, "no_answer": 1}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "is not JSON"),
        ("[1]", "one JSON object"),
        (json.dumps(row("") | {"response": None}), "'response'"),
        (json.dumps(row("", None)), "'answer'"),
        (json.dumps(row("", kind="poem")), "'answer_type'"),
        (json.dumps(row("", choices="ab")), "'choices'"),
        (json.dumps(row("", choices=["a"] * 27)), "27 options"),
        (json.dumps(row("", "A", "choice")), "'choices': a choice needs its options"),
        ('{"response": "a", "response": "b"}', "the key 'response' is given twice"),
        (json.dumps(row("", float("nan"))), "'answer': nan is not a number"),
        (json.dumps(row("", grader="nowhere:f")), "'grader'"),
        (json.dumps(row("", thinking_opened="yes")), "'thinking_opened'"),
    ],
)
def test_grade_file_of_a_wrong_row_names_its_line(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row("\\boxed{72}")) + "\n\n" + line + "\n")
    with pytest.raises(InputError, match=rf"rows\.jsonl:3.*{what}"):
        grade_file(path, io.StringIO())


def test_grade_file_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        grade_file(tmp_path / "none.jsonl", io.StringIO())


def test_grade_file_reads_gzip_and_a_byte_order_mark(tmp_path: Path) -> None:
    lines = "\ufeff" + json.dumps(row("\\boxed{0.1}", 0.1)) + "\n" + json.dumps(row("Hm.")) + "\n"
    for data in (lines.encode(), gzip.compress(lines.encode())):
        (tmp_path / "rows.jsonl.gz").write_bytes(data)
        verdicts = [result["verdict"] for result in graded(tmp_path / "rows.jsonl.gz")]
        assert verdicts == ["correct", "no_answer"]
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-5])
    with pytest.raises(InputError, match=r"rows\.jsonl\.gz is cut short"):
        graded(tmp_path / "rows.jsonl.gz")
