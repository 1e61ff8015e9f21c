"""Texts that almost state the answer: none is accepted, and similar texts that state it are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.grader import Verdict, grade
from evaluation.question import Question
from tests.evaluation.relatives_table import GROUPS, Group


def read_groups(path: Path) -> list[Group]:
    """The groups of a file that has one in each line."""
    rows = map(json.loads, path.read_text().splitlines())
    return [
        Group(
            row["name"],
            row["answer_type"],
            row["answer"],
            tuple(row["wrong"]),
            tuple(row["right"]),
            tuple(row.get("choices", ())),
        )
        for row in rows
    ]


MORE = read_groups(Path(__file__).with_name("more_relatives.jsonl"))


@pytest.mark.parametrize("group", GROUPS + MORE, ids=lambda group: f"{group.name}: {group.answer}")
def test_grade_accepts_what_was_meant_and_nothing_else(group: Group) -> None:
    question = Question(
        "q", "d", "test", "in_domain", "?", group.answer, group.answer_type, group.choices
    )
    verdicts = {
        text: grade(text, question, read_last=True).verdict for text in (*group.wrong, *group.right)
    }
    accepted = [text for text in group.wrong if verdicts[text] == Verdict.CORRECT]
    rejected = [text for text in group.right if verdicts[text] != Verdict.CORRECT]
    assert (accepted, rejected) == ([], [])


def test_groups_are_many() -> None:
    assert sum(len(group.wrong) + len(group.right) for group in GROUPS) > 5 * 85
    assert sum(len(group.wrong) + len(group.right) for group in MORE) > 1000
