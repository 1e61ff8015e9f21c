"""Texts that almost state the answer: none is accepted, and similar texts that state it are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.grader import Verdict, grade
from evaluation.question import Question
from tests.evaluation.relatives_table import GROUPS, Group

MORE = [
    Group(**{name: tuple(part) if isinstance(part, list) else part for name, part in row.items()})
    for row in map(json.loads, (Path(__file__).with_name("more_relatives.jsonl")).open())
]


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
