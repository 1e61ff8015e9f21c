"""The question's row and fingerprint."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from evaluation.question import (
    QUESTION_TABLE_SCHEMA,
    Question,
    own_letter,
    question_table,
    shown_letter,
)

PLAIN = Question("d/1", "d", "test", "in_domain", "Where?", "New York", "text")
FULL = replace(
    PLAIN, aliases=("NYC", "N.Y."), grader="mine:grade", grader_data="{}", solution="So."
)


@pytest.mark.parametrize("question", [PLAIN, FULL])
def test_from_row_of_to_row_is_the_question(question: Question) -> None:
    assert Question.from_row(question.to_row()) == question
    [row] = question_table([question]).to_pylist()
    assert list(row) == QUESTION_TABLE_SCHEMA.names
    assert Question.from_row(row) == question


def test_from_row_of_before_the_new_columns_has_none_of_them() -> None:
    row = PLAIN.to_row()
    for name in ("aliases", "grader", "grader_data", "solution"):
        del row[name]
    assert Question.from_row(row) == PLAIN
    nulls = dict.fromkeys(("aliases", "grader", "grader_data", "solution"))
    assert Question.from_row(PLAIN.to_row() | nulls) == PLAIN


def test_fingerprint_changes_with_what_is_right() -> None:
    others = [
        replace(PLAIN, aliases=("NYC",)),
        replace(PLAIN, grader="mine:grade"),
        replace(PLAIN, grader="mine:grade", grader_data="{}"),
        replace(PLAIN, answer="York"),
        replace(PLAIN, solution="It is said to be."),
    ]
    assert len({question.fingerprint for question in [PLAIN, *others]}) == 6
    assert replace(PLAIN, question_id="d/2").fingerprint == PLAIN.fingerprint


COLOURS = Question(
    "d/test/1", "d", "test", "in_domain", "Which?", "B", "choice", ("red", "green", "blue")
)


def test_options_in_another_order_keep_their_right_one() -> None:
    for order in itertools.permutations(range(3)):
        shown = COLOURS.with_options(order)
        assert shown.shown_answer.endswith(") green")
        assert own_letter(shown.answer, order) == "B"
        assert [shown_letter(own_letter(one, order), order) for one in "ABC"] == list("ABC")
    assert COLOURS.with_options(()) == COLOURS


def test_letters_of_other_text_stay_as_they_are() -> None:
    for text in ("", "Z", "green", "AB"):
        assert own_letter(text, (2, 0, 1)) == shown_letter(text, (2, 0, 1)) == text
    assert own_letter("B", ()) == "B"
