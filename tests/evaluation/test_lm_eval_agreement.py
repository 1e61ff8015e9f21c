"""Our grader and lm-evaluation-harness 0.4.13 on the same saved answers to number questions.

`gsm8k_predictions.jsonl` has 40 answers of real models (`real_outputs.jsonl`) and 32 in the forms
of GSM8K. For each, `lm_eval` holds what the filters of the harness' task gsm8k extract, and whether
its metric calls it right, as recorded with the package itself. Where the two differ, `causes`
declares why, and the table of docs/EVALUATION.md counts the causes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.grader import ReadAs
from evaluation.predictions import Prediction
from evaluation.question import Question
from evaluation.scores import is_correct, is_read

HERE = Path(__file__).parent
ROWS = [json.loads(line) for line in (HERE / "gsm8k_predictions.jsonl").read_text().splitlines()]
INVALID = "[invalid]"
STRICT, FLEXIBLE = "strict-match", "flexible-extract"
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


def predicted(row: dict[str, Any]) -> Prediction:
    question = Question(row["id"], "gsm8k", "test", "in_domain", "?", row["answer"], "number")
    finish_reason = "stop" if row["finished"] else "length"
    return Prediction(question, row["response"], finish_reason=finish_reason).graded()


def ours(row: dict[str, Any], name: str) -> tuple[str, bool]:
    """The value and the verdict under the reading that belongs to a filter."""
    prediction, tolerant = predicted(row), name == FLEXIBLE
    value = prediction.predicted if tolerant or is_read(prediction) else None
    return (value or INVALID).removesuffix("%"), is_correct(prediction, tolerant=tolerant)


def theirs(row: dict[str, Any], name: str) -> tuple[str, bool]:
    """The same of the harness, without the signs that its metric ignores."""
    value, right = row["lm_eval"][name]
    return re.sub(r"[,$]|\.$", "", value), right


CAUSES: dict[str, Callable[[dict[str, Any], str], bool]] = {
    # strict-match knows `#### 72` alone; we also read a box, a phrase and `####$72`.
    "announced otherwise": lambda row, name: (
        name == STRICT and not _STRICT.search(row["response"]) and is_read(predicted(row))
    ),
    # It takes the first `####`, we the last statement.
    "first of several": lambda row, name: (
        name == STRICT and len(re.findall("####", row["response"])) > 1
    ),
    # flexible-extract takes the last number of any text, we what the text states as its answer.
    "not the last number": lambda row, name: (
        name == FLEXIBLE and predicted(row).read_as in (ReadAs.BOXED, ReadAs.PHRASE)
    ),
    # A text that the token limit cut has no last number for us: it would be accidental.
    "cut off": lambda row, name: name == FLEXIBLE and not row["finished"],
    # Its metric compares texts, ours values: 12.0 is 12, and twelve and 1/2 are numbers.
    "compared as text": lambda row, _name: predicted(row).verdict == "correct",
}


@pytest.mark.parametrize("name", [STRICT, FLEXIBLE])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["id"]))
def test_value_and_verdict_are_the_same_or_differ_for_the_declared_cause(
    row: dict[str, Any], name: str
) -> None:
    cause = row["causes"].get(name)
    assert (ours(row, name) == theirs(row, name)) == (cause is None), (ours(row, name), cause)
    assert cause is None or CAUSES[cause](row, name)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["id"]))
def test_recorded_values_are_those_of_the_filters_patterns(row: dict[str, Any]) -> None:
    found = _STRICT.findall(row["response"])
    assert row["lm_eval"][STRICT][0] == (found[0] if found else INVALID)
    pairs = _FLEXIBLE.findall(row["response"])
    assert row["lm_eval"][FLEXIBLE][0] == (next(filter(None, pairs[-1])) if pairs else INVALID)


def counted(name: str) -> dict[str, tuple[int, int]]:
    """By cause, on how many rows the two differ, and on how many of them in the verdict."""
    rows = [row for row in ROWS if name in row["causes"]]
    values = Counter(row["causes"][name] for row in rows)
    verdicts = Counter(
        row["causes"][name] for row in rows if ours(row, name)[1] != theirs(row, name)[1]
    )
    return {cause: (number, verdicts[cause]) for cause, number in values.items()}


def test_document_has_the_counts() -> None:
    document = (HERE.parents[1] / "docs" / "EVALUATION.md").read_text()
    for name in (STRICT, FLEXIBLE):
        for cause, (values, verdicts) in counted(name).items():
            row = rf"\| `{name}` +\| {cause}: [^|]*\| {values} +\| {verdicts} +\|"
            assert re.search(row, document), (name, cause, values, verdicts)
