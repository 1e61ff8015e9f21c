"""ARC-Easy: the school science questions of ARC that are not in its Challenge set
(arXiv 1803.05457). `evaluation/reading/ai2.py` describes the format of a row.
"""

from __future__ import annotations

from evaluation.reading.ai2 import read_labelled_options
from evaluation.reading.hub_rows import Hub
from evaluation.task import Task

TASK = Task(
    name="arc_easy",
    reasoning="commonsense",
    answer_types=("choice",),
    domain="in_domain",
    licence="CC BY-SA 4.0",
    upstream="allenai.org/data/arc",
    files={
        "train": ("ARC-Easy/ARC-Easy-Train.jsonl",),
        "dev": ("ARC-Easy/ARC-Easy-Dev.jsonl",),
        "test": ("ARC-Easy/ARC-Easy-Test.jsonl",),
    },
    hub=Hub(
        "allenai/ai2_arc",
        {"train": ("train",), "dev": ("validation",), "test": ("test",)},
        ("ARC-Easy",),
    ),
    counts={"train": 2251, "dev": 570, "test": 2376},
    read_row=read_labelled_options,
)
