"""SVAMP: elementary word problems varied to show shallow reading (arXiv 2103.07191).

    [{"ID": "chal-1", "Body": "Each pack ...", "Question": "How much ...?", "Answer": 51.0}, ...]

All 1,000 are test; the hub's copy has them in two splits. They are derived from ASDiv-A.
"""

from __future__ import annotations

from evaluation.reading.hub_rows import Hub
from evaluation.reading.rows import SourceRow
from evaluation.task import ParsedRow, Task


def read_row(row: SourceRow) -> ParsedRow:
    """Body and question, on separate lines."""
    answer = row.written("Answer", row.value("Answer"))
    text = f"{row.text('Body')}\n{row.text('Question')}"
    return ParsedRow(text, answer, "number", key=row.text("ID"))


TASK = Task(
    name="svamp",
    reasoning="mathematics",
    answer_types=("number",),
    domain="out_of_domain",
    licence="MIT",
    upstream="github.com/arkilpatel/SVAMP",
    files={"test": ("SVAMP.json",)},
    hub=Hub("ChilleD/SVAMP", {"test": ("train", "test")}),
    counts={"test": 1000},
    note="Derived from ASDiv-A: the two are not independent.",
    read_row=read_row,
)
