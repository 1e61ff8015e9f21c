from __future__ import annotations

from typing import Any

import pytest

from evaluation.question import Question
from pipelines.selection.answer_leaks import Leak, find_leak
from pipelines.synthesis.reasoning_path import ReasoningPath

QUESTION = Question(
    "d/train/1",
    "d",
    "train",
    "in_domain",
    "Ann has 3 apples and buys 12 more. How many?",
    "15",
    "number",
)
ALL: tuple[Leak, ...] = ("hint", "structure", "guideline")


def path(**columns: Any) -> ReasoningPath:
    return ReasoningPath.from_row({"path_id": "p", "guideline_id": "plan"} | columns)


@pytest.mark.parametrize(
    ("reasoning", "leaks"),
    [
        ("3 + 12 = 15, as we were told the answer.", True),
        ("The given answer is 15, so it must be so.", True),
        ("We know that the right answer is 15.", True),
        ("According to the hint it is 15.", True),
        ("We know the answer is 15.\n\nThe answer is 15.", True),
        ("You already have the final answer. You are correct: 15.", True),
        ("Once we have 3 and 12 we know what the answer is: 15.", False),
        ("3 + 12 = 15, so the answer is 15.", False),
        ("As given, she has 3 apples. The final answer is \\boxed{15}.", False),
    ],
)
def test_hinted_path_that_cites_the_hint_leaks(reasoning: str, leaks: bool) -> None:
    assert find_leak(QUESTION, path(**{"pass": 1}, reasoning=reasoning), ALL) == (
        "hint" if leaks else None
    )
    assert find_leak(QUESTION, path(reasoning=reasoning), ("hint",)) is None


@pytest.mark.parametrize(
    ("reasoning", "leaks"),
    [
        ("Following the plan, add 3 and 12.", True),
        ("The guideline says to look for data.", True),
        ("Based on this structure: 15", True),
        ("By the given advice we add.", True),
        ("Her plan is to buy apples: 3 + 12 = 15", False),
        ("Add 3 and 12.", False),
    ],
)
def test_solution_that_cites_the_guideline_leaks(reasoning: str, leaks: bool) -> None:
    assert find_leak(QUESTION, path(reasoning=reasoning), ALL) == ("guideline" if leaks else None)
    plain = path(reasoning=reasoning, guideline_id=None)
    assert find_leak(QUESTION, plain, ALL) is None, "a plain chain has no guideline to cite"


def test_what_the_question_itself_speaks_of_is_no_leak() -> None:
    about = Question(
        "d/train/2", "d", "train", "in_domain", "Is the advice sound?", "yes", "boolean"
    )
    assert find_leak(about, path(reasoning="The advice is sound: yes"), ALL) is None


@pytest.mark.parametrize(
    ("structure", "leaks"),
    [
        ("1. Add 3 and 12 to get 15.", True),
        ("1. Add. 2. The answer is \\boxed{15}", True),
        ("1. Take 3. 2. Add 12.", False),
        ("1. Look for 150 and 1.5 and x15.", False),
        ("", False),
    ],
)
def test_structure_that_holds_the_answer_leaks(structure: str, leaks: bool) -> None:
    found = find_leak(QUESTION, path(structure=structure), ALL)
    assert found == ("structure" if leaks else None)


def test_only_the_wanted_leaks_are_looked_for() -> None:
    both = path(structure="It is 15.", reasoning="The guideline says 15.")
    assert find_leak(QUESTION, both, ()) is None
    assert find_leak(QUESTION, both, ("guideline",)) == "guideline"
    assert find_leak(QUESTION, both, ALL) == "structure"
