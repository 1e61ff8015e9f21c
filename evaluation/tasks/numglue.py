"""NumGLUE: eight kinds of questions about numbers in texts (arXiv 2204.05660).

    {"question": "Ann has 3 hens ...", "answer": "3", "type": "Type_1"}
    {"passage": "...", "question": "How many ...?", "answer": {"number": "2", "date": {...},
     "spans": []}, "type": "Type_5"}

Kinds 3 (comparison) and 7 (inference) are choices; the others are numbers, or texts if upstream's
truth is a word, such as a month. Kinds 5 and 6 have a passage; if their truth consists of spans,
any order is right. The formats of 3, 6 and 7 were taken from other projects' loaders and not tried
on upstream's files.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from evaluation.reading.rows import SourceRow
from evaluation.task import ParsedRow, Task, plain_number

RELATIONS = ("entailment", "neutral", "contradiction")
MAX_REORDERED = 4  # spans, which is 24 orders


def read_row(row: SourceRow) -> ParsedRow:
    """The question of any of the eight kinds; the id begins with the kind (`t5/00042`)."""
    kind = row.text("type").removeprefix("Type_")
    if kind not in _READERS:
        raise row.wrong("type", f"is {kind!r}; known are Type_1 to Type_8")
    return _READERS[kind](row, f"t{kind}")


def _read_question(row: SourceRow, group: str) -> ParsedRow:
    return _draft(row.text("question"), row.written("answer", row.value("answer")), group)


def _read_passage(row: SourceRow, group: str) -> ParsedRow:
    text = f"{row.text('passage')}\n{row.text('question')}"
    answer, *others = _passage_answers(row, row.value("answer"))
    return replace(_draft(text, answer, group), aliases=tuple(others))


def _passage_answers(row: SourceRow, answer: Any) -> list[str]:
    """The number, else the spans in each order, else the date, as in DROP's answers."""
    if not isinstance(answer, Mapping):
        return [row.written("answer", answer)]
    spans = [row.checked_text("answer", span) for span in answer.get("spans") or ()]
    date = answer.get("date") or {}
    days = [str(date[part]) for part in ("day", "month", "year") if date.get(part)]
    number = answer.get("number")
    if number not in (None, ""):
        return [row.written("answer", number)]
    if spans:
        orders: Iterable[Sequence[str]] = [spans]
        if len(spans) <= MAX_REORDERED:
            orders = itertools.permutations(spans)
        return [", ".join(order) for order in orders]
    if not days:
        raise row.wrong("answer", "contains no number, span or date; fix the row")
    return [" ".join(days)]


def _draft(text: str, answer: str, group: str) -> ParsedRow:
    number = plain_number(answer)
    if number is None:
        return ParsedRow(text, answer, "text", group=group)
    return ParsedRow(text, number, "number", group=group)


def _read_comparison(row: SourceRow, group: str) -> ParsedRow:
    """Two options, and `Option 1` or `Option 2` as the truth."""
    letters = {"option1": "A", "option2": "B"}
    answer = row.written("answer", row.value("answer"))
    letter = letters.get(answer.casefold().replace(" ", ""))
    if letter is None:
        raise row.wrong("answer", f"is {answer!r}, neither Option 1 nor Option 2")
    options = tuple(row.written(name, row.value(name)) for name in ("Option1", "Option2"))
    return ParsedRow(row.text("question"), letter, "choice", options, group=group)


def _read_inference(row: SourceRow, group: str) -> ParsedRow:
    """Two statements, and how the second follows from the first."""
    answer = row.text("answer").casefold()
    if answer not in RELATIONS:
        raise row.wrong("answer", f"is {answer!r}; known are {', '.join(RELATIONS)}")
    text = (
        f"Premise: {row.text('statement1')}\nHypothesis: {row.text('statement2')}\n"
        "Is the hypothesis entailed by the premise, contradicted by it, or neither (neutral)?"
    )
    return ParsedRow(text, "ABC"[RELATIONS.index(answer)], "choice", RELATIONS, group=group)


_READERS: Mapping[str, Callable[[SourceRow, str], ParsedRow]] = {
    "1": _read_question,
    "2": _read_question,
    "3": _read_comparison,
    "4": _read_question,
    "5": _read_passage,
    "6": _read_passage,
    "7": _read_inference,
    "8": _read_question,
}

TASK = Task(
    name="numglue",
    reasoning="mathematics",
    answer_types=("number", "text", "choice"),
    domain="in_domain",
    licence="ODC-BY",
    upstream="allenai.org/data/numglue",
    files={
        "train": ("data/NumGLUE_train.json",),
        "dev": ("data/NumGLUE_dev.json",),
        "test": ("data/NumGLUE_test.json",),
    },
    mirror="hf://datasets/metaeval/num-glue",
    note=(
        "Molar masses of kind 2 are rounded upstream, and some train questions are also in its "
        "test; they are dropped from train. Kind 5 has half "
        "of upstream's rows: limit it with num_train."
    ),
    read_row=read_row,
)
