"""The format in which AI2 publishes multiple-choice questions: ARC and OpenBookQA.

Upstream's files and the hub differ in the place of the stem and the options::

    {"id": "1", "question": {"stem": "Which?", "choices": [{"text": "ice", "label": "A"}, ...]},
     "answerKey": "A"}
    {"id": "1", "question": "Which?", "choices": {"text": ["ice", ...], "label": ["A", ...]},
     "answerKey": "A"}
"""

from __future__ import annotations

import string
from dataclasses import replace
from typing import Any

from evaluation.reading.rows import SourceRow
from evaluation.task import ParsedRow


def read_labelled_options(row: SourceRow, stem: str = "question") -> ParsedRow:
    """The question of a row; `stem` is the hub's column with the question's text.

    Options are renamed by position: some rows of ARC use the labels 1 to 4, which would be mistaken
    for numbers, and there are 3 to 5 options. Raises `InputError`.
    """
    nested = row.values.get("question")
    if isinstance(nested, dict):
        inner = replace(row, values=nested)
        text, labels, options = inner.text("stem"), *_listed(inner)
    else:
        text, labels, options = row.text(stem), *_columns(row)
    key = row.text("answerKey")
    if labels.count(key) != 1:
        raise row.wrong("answerKey", f"is {key!r}, which is not one of the labels {labels}")
    letter = string.ascii_uppercase[labels.index(key)]
    return ParsedRow(text, letter, "choice", options, key=row.text("id"))


def _listed(row: SourceRow) -> tuple[list[str], tuple[str, ...]]:
    """Labels and texts of options that are objects."""
    choices = [_as_row(row, choice) for choice in row.items("choices")]
    labels = [choice.text("label") for choice in choices]
    return labels, row.checked_options("choices", [choice.text("text") for choice in choices])


def _columns(row: SourceRow) -> tuple[list[str], tuple[str, ...]]:
    """Labels and texts of options that are two lists."""
    choices = _as_row(row, row.value("choices"))
    labels, options = list(choices.texts("label")), choices.options("text")
    if len(labels) != len(options):
        raise row.wrong("choices", f"has {len(labels)} labels for {len(options)} options")
    return labels, options


def _as_row(row: SourceRow, value: Any) -> SourceRow:
    if not isinstance(value, dict):
        raise row.wrong("choices", f": expected a mapping, found {value!r}")
    return replace(row, values=value)
