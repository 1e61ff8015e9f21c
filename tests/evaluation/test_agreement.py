"""The grader compared with math-verify: they agree, or the reason is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.agreement import explanation, main, pairs
from tests.conftest import SHARED_DATA


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the benchmark files are not here")
def test_grader_agrees_with_math_verify_or_the_difference_is_explained() -> None:
    judged = list(pairs(SHARED_DATA, limit=10))
    different = [pair for pair in judged if pair.ours != pair.theirs]
    assert len(different) <= 0.01 * len(judged)
    assert [pair for pair in different if explanation(pair) is None] == []


def test_rows_that_are_judged_otherwise_than_expected_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"response": r"\boxed{5}", "answer": "5", "answer_type": "number", "expect": "correct"},
        {"response": r"\boxed{5}", "answer": "6", "answer_type": "number", "expect": "correct"},
        {
            "response": r"\boxed{yes}",
            "answer": "yes",
            "answer_type": "boolean",
            "expect": "not_correct",
        },
        {"response": r"\boxed{2x}", "answer": "x + x", "answer_type": "math"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main([str(path), "--json"])
    *lines, counts = capsys.readouterr().out.strip().split("\n")
    assert [line.split(":")[0] for line in lines[:-1]] == ["wrong reject", "wrong accept"]
    assert json.loads(counts) == {
        "rows": 4,
        "expected": 3,
        "wrong_accepts": 1,
        "wrong_rejects": 1,
        "compared": 3,
        "agreement": 1.0,
    }


def test_rows_with_an_unknown_verdict_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps({"response": "", "answer": "5", "answer_type": "number", "expect": 1})
    )
    with pytest.raises(SystemExit, match="'expect'"):
        main([str(path)])
