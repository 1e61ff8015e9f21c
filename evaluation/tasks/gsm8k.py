"""GSM8K: word problems of grade-school mathematics (arXiv 2110.14168).

    {"question": "Tom has ...", "answer": "He has 2 + 1 = <<2+1=3>>3 ...\\n#### 3"}

Upstream's answers have commas in thousands and notes for a calculator (`<<2+1=3>>`); both are
removed. There is no dev split.
"""

from __future__ import annotations

import re

from evaluation.reading.hub_rows import Hub
from evaluation.reading.rows import SourceRow
from evaluation.task import ParsedRow, Task, plain_number


def read_row(row: SourceRow) -> ParsedRow:
    """The number after the last `####` is the truth."""
    solution, marks, end = row.text("answer").rpartition("####")
    number = plain_number(end) if marks else None
    if number is None:
        raise row.wrong("answer", "does not end with #### and a number; fix the row")
    without_calculator = re.sub(r"<<[^<>]*>>", "", solution).strip()
    return ParsedRow(row.text("question"), number, "number", solution=without_calculator)


TASK = Task(
    name="gsm8k",
    reasoning="mathematics",
    answer_types=("number",),
    domain="in_domain",
    licence="MIT",
    upstream="github.com/openai/grade-school-math",
    files={
        "train": ("grade_school_math/data/train.jsonl",),
        "test": ("grade_school_math/data/test.jsonl",),
    },
    hub=Hub("openai/gsm8k", {"train": ("train",), "test": ("test",)}, ("main",)),
    counts={"train": 7473, "test": 1319},
    read_row=read_row,
)
