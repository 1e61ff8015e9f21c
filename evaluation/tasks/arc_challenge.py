"""ARC-Challenge: school science questions that neither retrieval nor co-occurrence answers
(arXiv 1803.05457). `evaluation/reading/ai2.py` describes the format of a row.
"""

from __future__ import annotations

from evaluation.reading.ai2 import read_labelled_options
from evaluation.reading.hub_rows import Hub
from evaluation.task import Task

TASK = Task(
    name="arc_challenge",
    reasoning="commonsense",
    answer_types=("choice",),
    domain="in_domain",
    licence="CC BY-SA 4.0",
    upstream="allenai.org/data/arc",
    files={
        "train": ("ARC-Challenge/ARC-Challenge-Train.jsonl",),
        "dev": ("ARC-Challenge/ARC-Challenge-Dev.jsonl",),
        "test": ("ARC-Challenge/ARC-Challenge-Test.jsonl",),
    },
    hub=Hub(
        "allenai/ai2_arc",
        {"train": ("train",), "dev": ("validation",), "test": ("test",)},
        ("ARC-Challenge",),
    ),
    counts={"train": 1119, "dev": 299, "test": 1172},
    read_row=read_labelled_options,
)
