"""ASDiv: diverse word problems of elementary school (arXiv 2106.15772).

    <Problem ID="nluds-0001" Grade="1" Source="..."><Body>Ann has 3 hens.</Body>
      <Question>How many hens?</Question><Answer>3 (hens)</Answer></Problem>

Units in parentheses are removed from the truth. If the rest is a plain number it is graded as one,
yes and no as truth values, and ratios (`5:6`), lists (`50; 20`, also `50 and 20`), fractions, times
and names as texts. The hub's copy has no ids, so its rows are numbered.
"""

from __future__ import annotations

import re

from evaluation.reading.hub_rows import Hub
from evaluation.reading.rows import SourceRow
from evaluation.task import ParsedRow, Task, plain_number, spoken_list

_UNIT = re.compile(r"\s*\([^()]*\)")


def read_row(row: SourceRow) -> ParsedRow:
    """Body and question; upstream's columns are capitalised, the hub's are not."""
    is_upstream = "Body" in row.values
    columns = ("Body", "Question", "Answer")
    body, question, answer = columns if is_upstream else map(str.lower, columns)
    text = f"{row.text(body)} {row.text(question)}"
    key = row.text("ID") if is_upstream else None
    return _draft(text, _without_units(row, answer), key)


def _without_units(row: SourceRow, column: str) -> str:
    parts = _UNIT.sub("", row.text(column)).split(";")
    text = "; ".join(part.strip() for part in parts if part.strip())
    return row.checked_text(column, text)


def _draft(text: str, answer: str, key: str | None) -> ParsedRow:
    number = plain_number(answer)
    if number is not None:
        return ParsedRow(text, number, "number", key=key)
    if answer.casefold() in ("yes", "no"):
        return ParsedRow(text, answer, "boolean", key=key)
    return ParsedRow(text, answer, "text", key=key)


def aliases_of(draft: ParsedRow) -> tuple[str, ...]:
    """The form that a list has in a sentence."""
    return spoken_list(draft.answer.split("; ")) if draft.answer_type == "text" else ()


TASK = Task(
    name="asdiv",
    reasoning="mathematics",
    answer_types=("number", "text", "boolean"),
    domain="out_of_domain",
    licence="CC BY-NC 4.0, research only",
    upstream="github.com/chaochun/nlu-asdiv-dataset",
    files={"test": ("dataset/ASDiv.xml",)},
    hub=Hub("EleutherAI/asdiv", {"test": ("validation",)}, ("asdiv",), is_converted=True),
    counts={"test": 2305},
    read_row=read_row,
    aliases_of=aliases_of,
)
