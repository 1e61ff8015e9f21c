"""The place of an answer is where the grader read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from evaluation.extraction.answer_place import answer_place
from evaluation.grader import ReadAs, grade
from evaluation.question import AnswerType, Question

OUTPUTS = Path(__file__).parent / "real_outputs.jsonl"


def question(answer_type: AnswerType, **facts: object) -> Question:
    given = {"answer": "72", "choices": ()} | facts
    return Question("q", "d", "train", "in_domain", "?", answer_type=answer_type, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer_type", "text", "marked"),
    [
        ("number", "Half of 96. So \\boxed{71} no, \\boxed{72}.", "\\boxed{72}"),
        ("number", "The answer is 72. That is all.", "answer is 72"),
        ("number", "x\n#### 72", "#### 72"),
        ("number", "<answer>\n72 </answer> ok", "72"),
        ("number", "First 48.\nThen it is 24 + 48 = 72 clips", "72"),
        ("number", "<think>\\boxed{1}</think>It is \\boxed{72}", "\\boxed{72}"),
        ("boolean", "It holds. The answer: yes", "answer: yes"),
        ("math", "$$\n a\n= b $$ so\n$$\\boxed{\n x +\n 1}$$ .", "\\boxed{\n x +\n 1}"),
        (
            "number",
            "\\boxed{1}, \\boxed{2} and \\boxed{3}",
            "\\boxed{1}, \\boxed{2} and \\boxed{3}",
        ),
    ],
)
def test_answer_place_is_what_the_grader_read(
    answer_type: AnswerType, text: str, marked: str
) -> None:
    place = answer_place(text, question(answer_type), read_last=True)
    assert place is not None
    assert text[slice(*place)] == marked


def test_text_without_an_answer_has_no_place() -> None:
    assert answer_place("no idea", question("number"), read_last=True) is None
    assert answer_place("so 72", question("number"), read_last=False) is None
    assert answer_place("it is 72", question("number"), read_last=True, finished=False) is None
    assert answer_place("<think>it is 72", question("number"), read_last=True) is None


@pytest.mark.parametrize("answer_type", get_args(AnswerType))
def test_real_outputs_have_a_place_exactly_where_an_answer_was_read(
    answer_type: AnswerType,
) -> None:
    choices = ("one", "two", "three", "four") if answer_type == "choice" else ()
    truth = {"choice": "A", "boolean": "yes"}.get(answer_type, "72")
    asked = question(answer_type, answer=truth, choices=choices)
    texts = [json.loads(line)["text"] for line in OUTPUTS.read_text().splitlines()]
    assert texts
    for text in texts:
        read = grade(text, asked, read_last=True).read_as
        place = answer_place(text, asked, read_last=True)
        assert (place is not None) == (read is not ReadAs.NOTHING)
        if place is not None:
            assert 0 <= place[0] < place[1] <= len(text)
