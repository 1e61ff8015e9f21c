"""Predictions of other tools: logs of lm-evaluation-harness and JSONL files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from cluster.errors import InputError
from evaluation.answers import Answer
from evaluation.predictions import Prediction
from evaluation.prompt import answer_messages
from evaluation.question import Question
from evaluation.reading.lm_eval import is_lm_eval, lm_eval_lines, read_lm_eval, task_of
from evaluation.reading.prediction_rows import read_predictions


def placed(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(f"file.jsonl:{number}", row) for number, row in enumerate(rows, start=1)]


def line(doc_id: int, name: str, right: float, **changes: Any) -> dict[str, Any]:
    """As lm-evaluation-harness 0.4 writes a question of GSM8K."""
    row = {
        "doc_id": doc_id,
        "doc": {"question": "2 + 2?", "answer": "Two and two are four.\n#### 4"},
        "target": "4",
        "arguments": {"gen_args_0": {"arg_0": "Question: 2 + 2?\nAnswer:", "arg_1": {"until": []}}},
        "resps": [["It is 4."]],
        "filtered_resps": ["4"],
        "filter": name,
        "metrics": ["exact_match"],
        "doc_hash": "a",
        "prompt_hash": "b",
        "target_hash": "c",
        "exact_match": right,
    }
    return row | changes


def test_filters_of_a_log_are_the_two_readings() -> None:
    rows = [line(7, "strict-match", 0.0), line(7, "flexible-extract", 1.0)]
    [answer] = read_lm_eval(placed(rows), "gsm8k")
    assert (answer.question_id, answer.text, answer.task) == ("gsm8k/7", "2 + 2?", "gsm8k")
    assert (answer.strict, answer.tolerant, answer.response) == (False, True, "It is 4.")
    assert not answer.graded_here


def test_log_of_likelihoods_has_verdicts_and_no_response() -> None:
    likely = line(0, "none", 1.0, resps=[[["-1.5", "False"]], [["-0.2", "True"]]], metrics=["acc"])
    del likely["exact_match"]
    one = line(1, "none", 0.0, resps=[[["-1.5", "False"]]])
    first, second = read_lm_eval(placed([likely | {"acc": 1.0}, one]), "arc_easy")
    [unjudged] = read_lm_eval(placed([likely | {"metrics": ["perplexity"]}]), "arc_easy")
    assert (unjudged.strict, unjudged.tolerant) == (None, None)
    assert (first.strict, first.tolerant, first.response) == (True, True, None)
    assert (second.strict, second.response) == (False, None)


def test_log_that_is_none_or_is_two_is_refused_with_its_line() -> None:
    with pytest.raises(InputError, match=r"file.jsonl:1: .* has doc, and this one has not"):
        list(
            read_lm_eval(
                placed([{k: v for k, v in line(0, "none", 1.0).items() if k != "doc"}]), "t"
            )
        )
    twice = [line(0, "none", 1.0), line(0, "none", 0.0)]
    with pytest.raises(InputError, match=r"file.jsonl:2: the question 0 is there twice"):
        list(read_lm_eval(placed(twice), "t"))
    with pytest.raises(InputError, match=r"field 'exact_match': 0.5 does not say right or wrong"):
        list(read_lm_eval(placed([line(0, "none", 0.5)]), "t"))


def test_task_is_in_the_name_of_a_log() -> None:
    assert task_of("samples_gsm8k_cot_2026-11-29T22-51-03.123456.jsonl") == "gsm8k_cot"
    assert task_of("samples_arc_easy.jsonl") == "arc_easy"
    assert task_of("mine.jsonl") == "mine"


@pytest.mark.parametrize(
    ("said", "finish", "strict", "tolerant"),
    [
        ("So \\boxed{4}.", "stop", True, True),
        ("That is 4", "stop", False, True),
        ("That is 4", "length", False, False),
        ("Who knows?", "stop", False, False),
    ],
)
def test_log_that_we_write_says_what_our_grader_said(
    said: str, finish: str, strict: bool, tolerant: bool
) -> None:
    question = Question("t/test/0", "t", "test", "in_domain", "2 + 2?", "4", "number")
    prediction = Prediction(question, said, finish_reason=finish).graded()
    lines = json.loads(json.dumps(list(lm_eval_lines([prediction], answer_messages))))
    assert all(is_lm_eval(each) for each in lines)
    [answer] = read_lm_eval(placed(lines), "x")
    own = Answer.from_prediction(prediction, "")
    assert (answer.strict, answer.tolerant) == (own.strict, own.tolerant) == (strict, tolerant)
    assert (answer.question_id, answer.task, answer.response) == ("t/test/0", "t", said)


def test_failed_answer_is_written_as_an_empty_one() -> None:
    question = Question("t/test/0", "t", "test", "in_domain", "2 + 2?", "4", "number")
    lines = list(lm_eval_lines([Prediction(question, error="too long").graded()], answer_messages))
    assert [each["filtered_resps"] for each in lines] == [["[invalid]"], ["[invalid]"]]
    assert [each["exact_match"] for each in lines] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": "t/0", "response": "4"}, ("t/0", "", "4", None, None)),
        ({"id": 7, "correct": True}, ("7", "", None, True, True)),
        ({"question": "2?", "output": "x", "exact_match": 0}, ("", "2?", "x", False, False)),
        (
            {"key": "a", "text": "is 4", "target": 4, "answer_type": "number"},
            ("a", "", "is 4", False, True),
        ),
    ],
)
def test_columns_of_other_tools_are_known(row: dict[str, Any], expected: tuple[Any, ...]) -> None:
    [answer] = read_predictions(placed([row]), "mine")
    found = (answer.question_id, answer.text, answer.response, answer.strict, answer.tolerant)
    assert found == expected
    assert answer.task == "mine"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"response": "4"}, r"file.jsonl:1 has no id \(.*\) or question"),
        ({"id": "a"}, r"file.jsonl:1 has no response \(.*\) or correct"),
        ({"id": "a", "correct": "yes"}, "field 'correct': 'yes' is neither true nor false"),
        ({"id": [1], "correct": True}, "field 'id': expected a text"),
        ({"id": "a", "response": "4", "answer_type": "sum"}, "field 'answer_type': 'sum'"),
    ],
)
def test_row_that_is_no_prediction_is_refused(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        list(read_predictions(placed([row]), "mine"))
