r"""The grader: extract an answer from a model's text and judge it against the truth.

The training filter and the reported score both call `grade`, so the two can never disagree. Model
text is data: nothing in it raises an error, and every search is linear or bounded.

    grade(r"48 + 24 = 72, so \boxed{72}.", question, read_last=False)
    -> Grade(predicted="72", verdict=Verdict.CORRECT, read_as=ReadAs.BOXED)

The answer is located by `evaluation.extraction.answer_extraction`, and each answer type is parsed
and compared in a separate file of that folder. Extraction never uses the truth, so `predicted` can
be counted as a vote on unlabelled questions. A question can name a custom grader
(`Question.grader`).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from evaluation.extraction.answer_extraction import ReadAs, escape_loose_braces, read_answer
from evaluation.extraction.answer_types import ANSWER_READERS
from evaluation.extraction.custom_grader import load_grader, shown
from evaluation.extraction.normalize import Choices, Keys, plain_text
from evaluation.extraction.number import MAX_NUMBER_LENGTH
from evaluation.extraction.turns import own_answer
from evaluation.question import AnswerType, Question

__all__ = [
    "GRADER_VERSION",
    "MAX_NUMBER_LENGTH",
    "Grade",
    "ReadAs",
    "Verdict",
    "box",
    "canonical_answer",
    "grade",
    "lone_answer",
    "same_answer",
]

GRADER_VERSION = "6"


class Verdict(enum.StrEnum):
    """How an answer was judged. `unlabelled`: there is no truth to compare with; `error`: the truth
    is invalid for its type."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    TRUNCATED = "truncated"
    UNLABELLED = "unlabelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Grade:
    """`predicted` is canonical if the answer could be parsed as its type, otherwise the text found.

    A number with a percent sign keeps it, and one without a finite decimal is written as `1/3`.
    """

    predicted: str | None
    verdict: Verdict
    read_as: ReadAs


def grade(
    text: str,
    question: Question,
    *,
    read_last: bool,
    finished: bool = True,
    thinking_opened: bool = False,
) -> Grade:
    """Judge one completion; `finished` is false if the token limit cut it off.

    A box or a phrase counts even in an unfinished text; the last value in it would be accidental.
    `thinking_opened` means that the prompt began the thinking; a text that never ends it is
    truncated. A custom grader gets the text without its thinking, and its exceptions are passed on.
    """
    visible = own_answer(text, opened=thinking_opened)
    if visible is None:
        return Grade(None, Verdict.TRUNCATED, ReadAs.NOTHING)
    if question.grader:
        return _grade_by_own(visible, question, read_last=read_last, finished=finished)
    kind = ANSWER_READERS[question.answer_type]
    choices = tuple(question.choices)
    last = read_last and finished
    read_as, reading = read_answer(visible, kind, choices, last=last, finished=finished)
    if reading is None:
        return no_answer(finished=finished)
    if not question.answer:
        return Grade(reading.shown, Verdict.UNLABELLED, read_as)
    truths, keys = _truths(question.answer, question.aliases, question.answer_type, choices)
    if not truths:
        return Grade(reading.shown, Verdict.ERROR, read_as)
    correct = not keys.isdisjoint(reading.keys) or (
        kind.same is not None and any(kind.same(truth, reading.shown) for truth in truths)
    )
    return Grade(reading.shown, Verdict.CORRECT if correct else Verdict.WRONG, read_as)


def _grade_by_own(text: str, question: Question, *, read_last: bool, finished: bool) -> Grade:
    own = load_grader(question.grader)
    result = own(text, question, read_last=read_last, finished=finished)
    if not isinstance(result, Grade):
        raise TypeError(
            f"the grader {shown(question.grader)} returned {result!r}, which is not a Grade"
        )
    return result


def no_answer(*, finished: bool) -> Grade:
    """The grade of a text in which no answer was found."""
    verdict = Verdict.NO_ANSWER if finished else Verdict.TRUNCATED
    return Grade(None, verdict, ReadAs.NOTHING)


def same_answer(first: str, second: str, question: Question) -> bool:
    """Whether two predicted answers to a question are the same vote, as `1/2` and `0.5` are."""
    kind = ANSWER_READERS[question.answer_type]
    choices = tuple(question.choices)
    one, other = (kind.read(kind.clean(answer), choices) for answer in (first, second))
    if first == second or one is None or other is None or question.grader:
        return first == second
    if not one.keys.isdisjoint(other.keys):
        return True
    return kind.same is not None and kind.same(one.shown, other.shown)


def lone_answer(text: str, question: Question) -> str | None:
    """The answer that makes up a whole text: `B) banana`, `72 clips`, `No`; None where there is
    more, and for types whose answers cannot be told from other text, or a grader of one's own."""
    kind = ANSWER_READERS[question.answer_type]
    if question.grader or kind.name not in ("number", "choice", "boolean"):
        return None
    choices, cleaned = tuple(question.choices), kind.clean(text)
    reading = kind.read(cleaned, choices)
    if reading is None or not reading.keys or not kind.stands_alone(cleaned, choices, ""):
        return None
    is_sentence = kind.name == "boolean" and len(cleaned.split()) > 1
    return None if is_sentence else reading.shown


def canonical_answer(answer: str, answer_type: AnswerType, choices: Sequence[str] = ()) -> str:
    """The canonical form of this truth: `1000.5`, `B`, `yes`, or the stripped text or LaTeX.

    Raises ValueError, with what to do, for a truth that is invalid for its type. A percent sign is
    dropped.
    """
    if not plain_text(answer):
        raise ValueError(f"the answer {answer!r} is empty; give every question a truth")
    return ANSWER_READERS[answer_type].canonical(answer, tuple(choices))


def box(answer: str, answer_type: AnswerType) -> str:
    r"""An answer in the format that the prompt asks for, `\boxed{72}`."""
    if answer_type in ("text", "math"):
        answer = escape_loose_braces(answer)
    return f"\\boxed{{{answer}}}"


@lru_cache(maxsize=4096)
def _truths(
    answer: str, aliases: tuple[str, ...], kind: AnswerType, choices: Choices
) -> tuple[tuple[str, ...], Keys]:
    """All forms of the right answers, and their keys; empty if one is invalid for its type."""
    try:
        truths = tuple(canonical_answer(truth, kind, choices) for truth in (answer, *aliases))
    except ValueError:
        return (), frozenset()
    # A percent sign is not part of the canonical answer, but of the answers that may be equal to
    # it.
    signed = [
        f"{truth}%" if kind == "number" and "%" in plain_text(given) else truth
        for truth, given in zip(truths, (answer, *aliases), strict=True)
    ]
    return truths, frozenset().union(
        *(ANSWER_READERS[kind].keys(truth, choices) for truth in signed)
    )
