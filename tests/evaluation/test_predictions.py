from __future__ import annotations

from typing import Any

from cluster.engine import Completion
from evaluation.predictions import grade_response, regrade
from evaluation.question import Question

QUESTION = Question("d/test/1", "d", "test", "in_domain", "What is 2 + 2?", "4", "number")


def row(text: str, finish_reason: str = "stop") -> dict[str, Any]:
    return dict(grade_response(Completion(text, [1, 2], finish_reason, 9), QUESTION)) | {
        "error": None
    }


def test_regrade_of_an_older_graders_row_gives_todays_verdict() -> None:
    old = row("It is \\boxed{4}") | {"verdict": "wrong", "read_as": "last", "predicted": "7"}
    assert regrade(old, QUESTION) == row("It is \\boxed{4}")


def test_regrade_cut_off_answer_stays_cut_off() -> None:
    cut = row("2 and 2", "length")
    assert cut["verdict"] == "truncated"
    assert regrade(cut, QUESTION) == cut


def test_regrade_prompt_too_long_has_no_answer_to_grade() -> None:
    failed = dict(grade_response(None, QUESTION)) | {"response": None, "error": "too long"}
    assert regrade(failed, QUESTION) == failed
