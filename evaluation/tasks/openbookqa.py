"""OpenBookQA: elementary science that needs a fact and common sense (arXiv 1809.02789).

`evaluation/reading/ai2.py` describes the format of a row; the hub calls the stem `question_stem`.
14 test and 7 dev questions are also in train, with their options in another order."""

from __future__ import annotations

from evaluation.reading.ai2 import read_labelled_options
from evaluation.reading.hub_rows import Hub
from evaluation.reading.rows import SourceRow
from evaluation.task import ParsedRow, Task


def read_row(row: SourceRow) -> ParsedRow:
    """A question with four options; the fact from the open book is not shown."""
    return read_labelled_options(row, stem="question_stem")


TASK = Task(
    name="openbookqa",
    reasoning="commonsense",
    answer_types=("choice",),
    domain="out_of_domain",
    licence="Apache-2.0",
    upstream="allenai.org/data/open-book-qa",
    files={
        "train": ("Data/Main/train.jsonl",),
        "dev": ("Data/Main/dev.jsonl",),
        "test": ("Data/Main/test.jsonl",),
    },
    hub=Hub(
        "allenai/openbookqa",
        {"train": ("train",), "dev": ("validation",), "test": ("test",)},
        ("main",),
    ),
    counts={"train": 4957, "dev": 500, "test": 500},
    read_row=read_row,
)
