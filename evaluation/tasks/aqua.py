"""AQuA: algebraic word problems with five options (arXiv 1705.04146).

    {"question": "...", "options": ["A)21", "B)22", "C)23", "D)24", "E)25"], "rationale": "...",
     "correct": "E"}

Some test rows have two equal options, so the truth is a letter and never an option's text.
"""

from __future__ import annotations

import re
import string

from evaluation.reading.hub_rows import Hub
from evaluation.reading.rows import SourceRow
from evaluation.task import ParsedRow, Task

_LETTERED = re.compile(r"\(?([A-Z])\s*\)\s*(.*)", re.DOTALL)


def read_row(row: SourceRow) -> ParsedRow:
    """The options without their letters."""
    options = row.options("options")
    texts = tuple(_text(row, letter, option) for letter, option in _named(options))
    correct = row.text("correct")
    if correct not in [letter for letter, _ in _named(options)]:
        raise row.wrong("correct", f"is {correct!r}, which is not the letter of an option")
    solution = row.values.get("rationale")
    given = solution.strip() if isinstance(solution, str) else ""
    return ParsedRow(row.text("question"), correct, "choice", texts, solution=given)


def _named(options: tuple[str, ...]) -> list[tuple[str, str]]:
    return list(zip(string.ascii_uppercase, options, strict=False))


def _text(row: SourceRow, letter: str, option: str) -> str:
    found = _LETTERED.fullmatch(option)
    if found is None or found[1] != letter:
        raise row.wrong("options", f": {option!r} should begin with {letter}); fix the row")
    return found[2].strip()


TASK = Task(
    name="aqua",
    reasoning="mathematics",
    answer_types=("choice",),
    domain="out_of_domain",
    licence="Apache-2.0",
    upstream="github.com/google-deepmind/AQuA",
    files={"train": ("train.json",), "dev": ("dev.json",), "test": ("test.json",)},
    hub=Hub(
        "deepmind/aqua_rat",
        {"train": ("train",), "dev": ("validation",), "test": ("test",)},
        ("raw",),
    ),
    counts={"train": 97467, "dev": 254, "test": 254},
    note="7 test rows have two equal options: an answer is graded by its letter.",
    read_row=read_row,
)
