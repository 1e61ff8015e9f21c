"""ANLI: inference, written in three rounds against the models of the time (arXiv 1910.14599).

    {"uid": "...", "context": "...", "hypothesis": "...", "label": "e"}

The hub calls the context `premise` and numbers the labels: 0 entailment, 1 neutral,
2 contradiction. The id begins with the round, which is in the file's or split's name.
"""

from __future__ import annotations

import re

from evaluation.question import Split
from evaluation.reading.hub_rows import Hub
from evaluation.reading.rows import SourceRow
from evaluation.task import ParsedRow, Task

RELATIONS = ("entailment", "neutral", "contradiction")

_LETTERS = {"e": "A", "n": "B", "c": "C", 0: "A", 1: "B", 2: "C"}
_ROUND = re.compile(r"(?:^|[/_])[rR]([123])(?=[/_.-]|$)")
_ROUNDS = ("1", "2", "3")
_SPLITS: tuple[Split, ...] = ("train", "dev", "test")


def read_row(row: SourceRow) -> ParsedRow:
    """The premise, the hypothesis, and the question about them."""
    label = row.value("label")
    if not isinstance(label, str | int) or label not in _LETTERS:
        raise row.wrong("label", f"is {label!r}; known are e, n, c and 0, 1, 2")
    premise = row.text("premise" if "premise" in row.values else "context")
    text = (
        f"Premise: {premise}\nHypothesis: {row.text('hypothesis')}\n"
        "Is the hypothesis entailed by the premise, contradicted by it, or neither (neutral)?"
    )
    letter = _LETTERS[label]
    return ParsedRow(text, letter, "choice", RELATIONS, key=row.text("uid"), group=_round(row))


def _round(row: SourceRow) -> str:
    rounds = _ROUND.findall(row.part)
    if not rounds:
        raise row.wrong("uid", f": {row.part} names no round; name the folder R1, R2 or R3")
    return f"r{rounds[-1]}"


TASK = Task(
    name="anli",
    reasoning="inference",
    answer_types=("choice",),
    domain="out_of_domain",
    licence="CC BY-NC 4.0, research only",
    upstream="github.com/facebookresearch/anli",
    files={split: tuple(f"R{n}/{split}.jsonl" for n in _ROUNDS) for split in _SPLITS},
    hub=Hub(
        "facebook/anli",
        {split: tuple(f"{split}_r{n}" for n in _ROUNDS) for split in _SPLITS},
        ("plain_text",),
    ),
    counts={"train": 162865, "dev": 3200, "test": 3200},
    read_row=read_row,
)
