"""BIG-Bench Hard: 27 tasks of BIG-bench that were hard for models (arXiv 2210.09261).

    {"canary": "...", "examples": [{"input": "Which ...?\\nOptions:\\n(A) red\\n(B) blue",
                                    "target": "(B)"}, ...]}

Targets are of every kind: a letter or (in two tasks) an option's text, True or Yes, a number,
words. Each task has one kind, which is given here. The options are removed from the question, since
the prompt lists them itself. One row of `snarks` has a single option. The data contains a canary
and is never used for training.
"""

from __future__ import annotations

import re
import string

from evaluation.question import AnswerType
from evaluation.reading.hub_rows import Hub
from evaluation.reading.rows import SourceRow
from evaluation.task import ParsedRow, Task

ANSWER_READERS: dict[str, AnswerType] = {
    "boolean_expressions": "boolean",
    "causal_judgement": "boolean",
    "date_understanding": "choice",
    "disambiguation_qa": "choice",
    "dyck_languages": "text",
    "formal_fallacies": "choice",
    "geometric_shapes": "choice",
    "hyperbaton": "choice",
    "logical_deduction_five_objects": "choice",
    "logical_deduction_seven_objects": "choice",
    "logical_deduction_three_objects": "choice",
    "movie_recommendation": "choice",
    "multistep_arithmetic_two": "number",
    "navigate": "boolean",
    "object_counting": "number",
    "penguins_in_a_table": "choice",
    "reasoning_about_colored_objects": "choice",
    "ruin_names": "choice",
    "salient_translation_error_detection": "choice",
    "snarks": "choice",
    "sports_understanding": "boolean",
    "temporal_sequences": "choice",
    "tracking_shuffled_objects_five_objects": "choice",
    "tracking_shuffled_objects_seven_objects": "choice",
    "tracking_shuffled_objects_three_objects": "choice",
    "web_of_lies": "boolean",
    "word_sorting": "text",
}
"""The 27 tasks, with the kind of answer in each."""

_OPTIONS = re.compile(r"\s*^Options:[ \t]*\n", re.MULTILINE)
_OPTION = re.compile(r"^(?:\(([A-Z])\)|-)[ \t]*", re.MULTILINE)
_LETTER = re.compile(r"\(([A-Z])\)")


def read_row(row: SourceRow) -> ParsedRow:
    """The question without its options; the id begins with the task, which is the file's name."""
    name = _name(row)
    kind = ANSWER_READERS[name]
    start, *listed = _OPTIONS.split(row.text("input"), maxsplit=1)
    text = row.checked_text("input", start)
    target, key = row.text("target"), f"{row.number:04d}"
    if kind != "choice":
        return ParsedRow(text, target, kind, key=key, group=name)
    options = _listed(row, listed)
    return ParsedRow(text, _letter(row, target, options), kind, options, key=key, group=name)


def aliases_of(draft: ParsedRow) -> tuple[str, ...]:
    """Sorted words are equally right with commas between them."""
    is_sorted = "word_sorting" in (draft.group, *(draft.key or "").split("/"))
    return (", ".join(draft.answer.split()),) if is_sorted else ()


def _name(row: SourceRow) -> str:
    found = [part for part in re.split(r"[/.]", row.part) if part in ANSWER_READERS]
    if not found:
        raise row.wrong("input", f": the name {row.part} does not contain one of the 27 tasks")
    return found[-1]


def _listed(row: SourceRow, listed: list[str]) -> tuple[str, ...]:
    """The options' texts, whether they are labelled `(A)` or only begin with a dash."""
    text = listed[0] if listed else ""
    marks = list(_OPTION.finditer(text))
    letters = [mark[1] for mark in marks if mark[1]]
    if not marks or (letters and letters != list(string.ascii_uppercase[: len(marks)])):
        raise row.wrong("input", "does not list options as (A), (B), ...; fix the row")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    texts = [text[mark.end() : end] for mark, end in zip(marks, ends, strict=True)]
    return row.checked_options("input", texts)


def _letter(row: SourceRow, target: str, options: tuple[str, ...]) -> str:
    """The letter of the target, which is either `(B)` or the text of an option."""
    lettered = _LETTER.fullmatch(target)
    letter = lettered[1] if lettered else ""
    if letter and letter in string.ascii_uppercase[: len(options)]:
        return letter
    if options.count(target) != 1:
        raise row.wrong("target", f"is {target!r}, which is not one of the options")
    return string.ascii_uppercase[options.index(target)]


TASK = Task(
    name="bbh",
    reasoning="logic",
    answer_types=("choice", "boolean", "number", "text"),
    domain="out_of_domain",
    licence="MIT, with a canary",
    upstream="github.com/suzgunmirac/BIG-Bench-Hard",
    files={"test": tuple(f"bbh/{name}.json" for name in ANSWER_READERS)},
    hub=Hub("SaylorTwift/bbh", {"test": ("test",)}, tuple(ANSWER_READERS)),
    counts={"test": 6511},
    no_training="it carries the canary of BIG-bench, which asks never to be trained on",
    read_row=read_row,
    aliases_of=aliases_of,
)
