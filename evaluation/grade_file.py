"""Grade a file of responses: `regenesis.py grade FILE.jsonl`.

Each line gives the same row with three more columns::

    {"response": "So \\boxed{72}.", "answer": "72", "answer_type": "number", "choices": null}
    {..., "predicted": "72", "verdict": "correct", "read_as": "boxed"}

Other fields are copied. Some are used if they are present: `finish_reason` (any value except "stop"
means that the text was cut off), `thinking_opened` (true if the prompt began the thinking),
`aliases` (a list of other right answers), and `grader` with `grader_data` (a custom grader for the
question).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, cast

from cluster.errors import InputError
from evaluation.extraction.custom_grader import read_grader
from evaluation.grader import Verdict, grade
from evaluation.question import ANSWER_TYPES, AnswerType, Question
from evaluation.reading.files import unpacked
from evaluation.reading.json_rows import read_json_lines
from evaluation.reading.values import number_text

Row = dict[str, Any]


def grade_file(path: Path, output: TextIO) -> Counter[str]:
    """Write each row of a JSONL file with its grade; returns the number of rows by verdict.

    It works line by line, so that a file of any size can be piped. The last number, letter or truth
    value of a response counts if nothing clearer was found; `read_as` is then `last`. A truth that
    is invalid for its type has the verdict `error`. Raises InputError, with the line, for a file
    that cannot be read and for an invalid row.
    """
    counts: Counter[str] = Counter()
    for place, row in read_rows(path):
        graded = grade_row(row, place)
        output.write(json.dumps(graded) + "\n")
        counts[graded["verdict"]] += 1
    return counts


def format_verdicts(counts: Mapping[str, int]) -> str:
    """`412 rows: 301 correct, 98 wrong, 13 no_answer`."""
    verdicts = [f"{counts[name]} {name}" for name in Verdict if counts.get(name)]
    return f"{sum(counts.values())} rows: {', '.join(verdicts) or 'nothing to grade'}"


def grade_row(row: Row, place: str) -> Row:
    """The row with `predicted`, `verdict` and `read_as`; an InputError names `place`."""
    response = row.get("response")
    if not isinstance(response, str):
        raise InputError(f"{place}, field 'response': expected a text; give the model's text")
    finished = row.get("finish_reason", "stop") == "stop"
    opened = row.get("thinking_opened") or False
    if not isinstance(opened, bool):
        raise InputError(f"{place}, field 'thinking_opened': expected true, false or null")
    result = grade(
        response,
        _question(row, place),
        read_last=True,
        finished=finished,
        thinking_opened=opened,
    )
    return row | {
        "predicted": result.predicted,
        "verdict": result.verdict.value,
        "read_as": result.read_as.value,
    }


def _question(row: Row, place: str) -> Question:
    grader = str(row.get("grader") or "")
    if grader:
        try:
            grader = read_grader(grader)
        except InputError as error:
            raise InputError(f"{place}, field 'grader': {error}") from error
    answer_type = _answer_type(row, place)
    choices = _texts(row, "choices", place)
    if answer_type == "choice" and not choices:
        raise InputError(
            f"{place}, field 'choices': a choice needs its options; give them as a list of texts"
        )
    return Question(
        question_id=place,
        dataset="",
        split="test",
        domain="in_domain",
        question=str(row.get("question") or ""),
        answer=_answer(row, place, answer_type),
        answer_type=answer_type,
        choices=choices,
        aliases=_texts(row, "aliases", place),
        grader=grader,
        grader_data=_grader_data(row),
    )


def _answer_type(row: Row, place: str) -> AnswerType:
    value = row.get("answer_type")
    if value not in ANSWER_TYPES:
        raise InputError(
            f"{place}, field 'answer_type': {value!r} is unknown; use one of "
            f"{', '.join(ANSWER_TYPES)}"
        )
    return cast(AnswerType, value)


def _answer(row: Row, place: str, answer_type: AnswerType) -> str:
    """The truth as text; JSON's numbers and truth values are converted."""
    value = row.get("answer")
    if isinstance(value, bool):
        return ("false", "true")[value]
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        try:
            return number_text(value)
        except ValueError as error:
            raise InputError(f"{place}, field 'answer': {error}") from error
    raise InputError(f"{place}, field 'answer': expected a text or a number; give the truth")


def _grader_data(row: Row) -> str:
    """The text; any other value as JSON, as in the same column of a question file."""
    value = row.get("grader_data")
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _texts(row: Row, field: str, place: str) -> tuple[str, ...]:
    value = row.get(field) or []
    if not isinstance(value, list) or not all(
        isinstance(text, str | int | float) for text in value
    ):
        raise InputError(f"{place}, field {field!r}: expected a list of texts or null")
    if field == "choices" and len(value) > 26:
        raise InputError(f"{place}, field 'choices': {len(value)} options, but only 26 letters")
    return tuple(str(text) for text in value)


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Each row with its place, `file.jsonl:12`; blank lines are skipped and gzip is unpacked."""
    try:
        with path.open("rb", buffering=0) as stream:
            for place, row in read_json_lines(str(path), unpacked(stream)):
                yield place, dict(row)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a JSONL file") from error
