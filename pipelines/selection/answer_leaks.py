"""Leaks: paths that lean on what a model will not be shown when it is asked the question alone.

* `hint`: a path that was shown the right answer, and says so.
* `structure`: the plan already holds the answer, so that the path had only to copy it.
* `guideline`: the solution speaks of the guideline, the advice or the plan.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from evaluation.grader import Verdict, grade
from evaluation.question import Question
from pipelines.synthesis.reasoning_path import ReasoningPath

Leak = Literal["hint", "structure", "guideline"]

_CITES_HINT = re.compile(
    r"\bas (?:was |we were |i was )?(?:given|told|stated|hinted)(?: beforehand)?,? (?:that )?the "
    r"(?:\w+ )?answer\b"
    r"|\b(?:given|provided|known|stated|told) (?:\w+ )?answer\b"
    r"|\b(?:told|know|knew|given)(?: beforehand| already)? that the (?:\w+ )?answer\b"
    r"|\bthe answer (?:is|was) (?:given|provided|known|told)\b"
    r"|\b(?:we|you|i) (?:already |do )?(?:know|have|had) (?:that )?(?:the|our|your) "
    r"(?:\w+ )?answer\b"
    r"|\b(?:the|this|your) hint\b"
    r"|\btold beforehand\b"
)
_CITES_GUIDELINE = re.compile(
    r"\b(?:the|this|that|your|given) (?:\w+ )?(?:guidelines?|advice|reasoning structure)\b"
    r"|\b(?:follow(?:ing|s)?|per|according to|based on|as in|using|applying) "
    r"(?:the|this|that|your) (?:\w+ )?(?:plan|structure)\b"
)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?![\w%])")


def find_leak(question: Question, path: ReasoningPath, wanted: tuple[Leak, ...]) -> Leak | None:
    """The first of the wanted leaks that a path has."""
    return next((leak for leak in wanted if _LEAKS[leak](question, path)), None)


def _cites_hint(question: Question, path: ReasoningPath) -> bool:
    return path.is_hinted and _cites(_CITES_HINT, question, path)


def _cites_guideline(question: Question, path: ReasoningPath) -> bool:
    return bool(path.guideline_id) and _cites(_CITES_GUIDELINE, question, path)


def _cites(pattern: re.Pattern[str], question: Question, path: ReasoningPath) -> bool:
    """Whether the solution says it and the question does not."""
    said = (match.group() for match in pattern.finditer(path.reasoning.casefold()))
    asked = question.text.casefold()
    return any(words not in asked for words in said)


def _structure_holds_answer(question: Question, path: ReasoningPath) -> bool:
    """Whether the plan says the right answer, or has it as a number that the question has not."""
    structure = path.structure
    if not structure:
        return False
    if grade(structure, question, read_last=False).verdict == Verdict.CORRECT:
        return True
    if question.answer_type != "number":
        return False
    numbers, asked = (
        {match.replace(",", "") for match in _NUMBER.findall(text)}
        for text in (structure, question.text)
    )
    return question.answer in numbers - asked


_LEAKS: dict[Leak, Callable[[Question, ReasoningPath], bool]] = {
    "hint": _cites_hint,
    "structure": _structure_holds_answer,
    "guideline": _cites_guideline,
}
