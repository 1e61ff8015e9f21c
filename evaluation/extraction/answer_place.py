r"""Where in a text the grader read the answer, to show it to a person.

    answer_place(r"So it is \boxed{72}, as before.", question, read_last=False)  ->  (9, 19)

It follows the grader, so it marks what the grader read and not what looks like an answer.
"""

from __future__ import annotations

from evaluation.extraction.answer_extraction import (
    Located,
    ReadAs,
    Span,
    locate_answer,
    on_one_line,
)
from evaluation.extraction.answer_types import ANSWER_READERS
from evaluation.extraction.turns import own_answer
from evaluation.question import Question


def answer_place(
    text: str, question: Question, *, read_last: bool, finished: bool = True
) -> Span | None:
    """The start and end, in characters, of what states the answer; the arguments are those of
    `evaluation.grader.grade`.

    None if no answer was read, or if a custom grader or a format of several channels read it.
    """
    visible = own_answer(text)
    if visible is None or question.grader:
        return None
    offset = text.find(visible)
    kind = ANSWER_READERS[question.answer_type]
    last = read_last and finished
    read_as, found = locate_answer(
        visible, kind, tuple(question.choices), last=last, finished=finished
    )
    if found is None or offset < 0:
        return None
    searched = on_one_line(visible) if kind.name == "math" else visible
    start, end = _value_in(searched, found) if read_as == ReadAs.LAST else found.place
    start, end = _trimmed(searched, start, end)
    while read_as == ReadAs.PHRASE and start and _is_of_word(searched[start - 1]):
        start -= 1  # a phrase is found by the end of its first word
    if searched != visible:
        start, end = _before_joining(visible, searched, (start, end))
    return offset + start, offset + end


def _value_in(text: str, found: Located) -> Span:
    """The last value itself, if its line has it in the form that was read; otherwise the line."""
    start, end = found.place
    at = text.rfind(found.reading.shown, start, end)
    return (at, at + len(found.reading.shown)) if at >= 0 else (start, end)


def _is_of_word(character: str) -> bool:
    return character.isalpha() or character == "#"


def _trimmed(text: str, start: int, end: int) -> Span:
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    return start, start + len(piece.strip())


def _before_joining(text: str, joined: str, span: Span) -> Span:
    """The place in a text of a place in the same text with fewer white spaces."""
    start, end = span
    before = sum(not each.isspace() for each in joined[:start])
    within = sum(not each.isspace() for each in joined[start:end])
    places = [at for at, each in enumerate(text) if not each.isspace()]
    return places[before], places[before + within - 1] + 1
