"""Predictions in a JSONL file that any tool wrote, under the names that such files use.

A line needs the question's id or its text, and the response or whether it is right::

    {"id": "gsm8k/test/00007", "response": "She has ... 12"}
    {"question": "Tom has ...", "output": "12", "answer": "12", "answer_type": "number"}
    {"id": 7, "correct": true}

With `answer` and `answer_type` our grader judges the response. Without them the truth of another
file that is compared is used, and else `correct`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from cluster.errors import InputError
from evaluation.answers import Answer
from evaluation.grade_file import question_of
from evaluation.reading.json_rows import Placed

NAMES = {
    "id": ("question_id", "id", "doc_id", "key", "uid"),
    "question": ("question", "prompt", "problem", "query", "input"),
    "response": ("response", "text", "output", "completion", "generation", "model_output"),
    "answer": ("answer", "target", "gold", "label", "reference"),
    "correct": ("correct", "is_correct", "exact_match", "acc"),
    "task": ("dataset", "task"),
}
"""What a column may be called; the first name that a line has counts."""


def read_predictions(rows: Iterable[Placed], task: str) -> Iterator[Answer]:
    """The answers in a file; `task` is that of lines which name none.

    Raises `InputError` with the line and the field.
    """
    for place, row in rows:
        yield _answer(place, row, task)


def _answer(place: str, row: Mapping[str, Any], task: str) -> Answer:
    answer = Answer(
        place,
        _text(row, "id", place),
        _text(row, "question", place),
        _text(row, "task", place) or task,
        _text(row, "domain", place),
        _text(row, "split", place),
        response=_text(row, "response", place) if _value(row, "response") is not None else None,
        finished=row.get("finish_reason", "stop") == "stop",
    )
    if not answer.question_id and not answer.text:
        raise _lacks(place, row, "id", "question")
    if answer.response is not None and row.get("answer_type") is not None:
        asked = question_of({**row, "answer": _value(row, "answer")}, place)
        own_id = answer.question_id or place
        named = replace(asked, question_id=own_id, dataset=answer.task, question=answer.text)
        return answer.graded_by(named)
    correct = _correct(row, place)
    if answer.response is None and correct is None:
        raise _lacks(place, row, "response", "correct")
    return replace(answer, strict=correct, tolerant=correct)


def _value(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column under the first of its names that the row has."""
    names = (name for name in NAMES.get(column, (column,)) if row.get(name) is not None)
    return row.get(next(names, ""))


def _text(row: Mapping[str, Any], column: str, place: str) -> str:
    value = _value(row, column)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{place}, field {column!r}: expected a text; write one, or leave it out")
    return str(value)


def _correct(row: Mapping[str, Any], place: str) -> bool | None:
    value = _value(row, "correct")
    if value is None:
        return None
    if value not in (0, 1):
        raise InputError(f"{place}, field 'correct': {value!r} is neither true nor false")
    return bool(value)


def _lacks(place: str, row: Mapping[str, Any], *columns: str) -> InputError:
    wanted = " or ".join(f"{column} ({', '.join(NAMES[column])})" for column in columns)
    there = ", ".join(row) or "nothing"
    return InputError(f"{place} has no {wanted}; it has {there}; rename a field to one of them")
