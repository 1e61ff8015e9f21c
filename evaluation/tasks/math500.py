"""MATH-500: 500 held-out problems of MATH (arXiv 2305.20050).

    {"problem": "...", "answer": "\\\\frac{1}{2}", "unique_id": "test/algebra/42.json", ...}

A truth that is a plain number is graded as one, because this also handles words around a number
("12 inches"). Any other is LaTeX, which is compared by its meaning.
"""

from __future__ import annotations

from evaluation.question import AnswerType
from evaluation.reading.hub_rows import Hub
from evaluation.reading.rows import SourceRow
from evaluation.task import ParsedRow, Task, plain_number


def read_row(row: SourceRow) -> ParsedRow:
    """The problem; its solution is not read."""
    answer = row.text("answer")
    number = None if "$" in answer else plain_number(answer)
    key = row.text("unique_id").removeprefix("test/").removesuffix(".json")
    answer_type: AnswerType = "math" if number is None else "number"
    subject = row.text("subject") if row.values.get("subject") else key.partition("/")[0]
    return ParsedRow(row.text("problem"), number or answer, answer_type, key=key, kind=subject)


TASK = Task(
    name="math500",
    reasoning="mathematics",
    answer_types=("number", "math"),
    domain="out_of_domain",
    licence="MIT",
    upstream="github.com/openai/prm800k",
    files={"test": ("prm800k/math_splits/test.jsonl",)},
    hub=Hub("HuggingFaceH4/MATH-500", {"test": ("test",)}),
    counts={"test": 500},
    note="181 truths are LaTeX and compared by meaning.",
    read_row=read_row,
)
