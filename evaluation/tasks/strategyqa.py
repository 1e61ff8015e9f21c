"""StrategyQA: yes/no questions with implicit steps (arXiv 2101.02235).

    {"qid": "...", "term": "...", "question": "Did ...?", "answer": true, "facts": ["...", "..."]}

The labels of upstream's test are hidden, so the 2,290 labelled questions are split into 1,603 and
687, as is common. The gold facts are not shown; `strategyqa_facts` is the easier task with them.
"""

from __future__ import annotations

from evaluation.reading.hub_rows import Hub
from evaluation.reading.rows import SourceRow
from evaluation.task import ParsedRow, Task


def read_row(row: SourceRow) -> ParsedRow:
    """The question alone."""
    answer = row.written("answer", row.value("answer"))
    return ParsedRow(row.text("question"), answer, "boolean", key=row.text("qid"))


TASK = Task(
    name="strategyqa",
    reasoning="commonsense",
    answer_types=("boolean",),
    domain="in_domain",
    licence="MIT",
    upstream="github.com/eladsegal/strategyqa",
    files={"train": ("data/strategyqa/train.json",), "test": ("data/strategyqa/test.json",)},
    hub=Hub("ChilleD/StrategyQA", {"train": ("train",), "test": ("test",)}),
    counts={"train": 1603, "test": 687},
    note="Without gold facts: compare with results that do not show them either.",
    read_row=read_row,
)
