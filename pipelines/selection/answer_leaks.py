"""Leaks: paths that rely on something that the model will not see when it gets only the question.

* `hint`: a path that was shown the right answer mentions it.
* `structure`: the plan already contains the answer, so that the path only had to copy it.
* `guideline`: the solution mentions the guideline, the advice or the plan.
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
# What is unseen is cited by a noun. "Guideline" and "advice" hardly have another meaning. "The
# plan" is definite, so unless the question has a plan it is that of the prompt; "the plan is to
# add" makes a new one. A structure or steps can belong to anything, so the text must obey them,
# quote them, or say that they were given: "as the structure suggests", "following the given steps".
_THIS = r"(?:the|this|that|these|those|your)"
_GIVEN = (
    r"(?:given|provided|suggested|proposed|recommended|supplied|prescribed|offered|described"
    r"|outlined|stated|listed|mentioned|specified|detailed|indicated|presented|advised|set out"
    r"|laid out|called for|asked for|required)"
)
_HOW = (
    rf"(?:(?:{_GIVEN}|above|general|overall|original|initial|same|adapted|reasoning|solution"
    r"|short|step-by-step|structured) )?"
)
_ADVICE = r"(?:guidelines?|guidance|advice)"
_PLAN = r"(?:plan|outline|roadmap)"
_STRUCTURE = rf"(?:{_PLAN}|structure|framework|blueprint|template)"
_STEPS = r"(?:steps|approach|strategy|method|procedure|process)"
_ORDERS = r"(?:strategy|instructions?)"
_OBEYS = (
    r"(?:follow(?:ing|s|ed)?|per|according to|based on|as in|us(?:e|ing)|appl(?:y|ying|ied)"
    r"|in (?:line|accordance|keeping) with|consistent with|adher(?:e|ing) to"
    r"|(?:stick|keep)(?:ing)? to|guided by|(?:work|go)(?:ing)? through|implement(?:ing)?"
    r"|execut(?:e|ing)|complet(?:es?|ed|ing)|carry(?:ing)? out|(?:re)?turn(?:ing)? to"
    r"|refer(?:ring)? to|thanks to)"
)
_SAYS = (
    r"(?:says?|said|states?|tells?|told|asks?|asked|call(?:s|ed) for|recommend(?:s|ed)?"
    r"|instruct(?:s|ed)?|directs?|advises?|advised|proposes?|mentions?|mentioned|specifies|dictates?"
    r"|prescribes?|wants|reminds|guides?|points? out|(?:sets|lays) out"
    r"|(?:starts?|begins?) (?:with|by))"
)
_PART = (
    r"(?:(?:step|point|part|item|stage|section)(?: \w+)?"
    r"|(?:first|next|last|final) (?:step|point)s?)"
)
_NOT_OF = r"\b(?! of\b)"  # "the structure of the molecule" is not advice
_CITES_GUIDELINE = re.compile(
    rf"\b(?:(?:{_THIS}|given|provided) (?:\w+ )?(?:{_ADVICE}|reasoning structure)\b"
    rf"|{_OBEYS} (?:a |our |my )?{_HOW}{_ADVICE}\b"
    rf"|(?:the|your) {_HOW}{_PLAN}\b(?! (?:of|to|for|(?:is|was|will be) to)\b|:)"
    rf"|{_OBEYS} {_THIS} {_HOW}{_STRUCTURE}{_NOT_OF}"
    rf"|{_OBEYS} {_THIS} {_GIVEN} {_STEPS}{_NOT_OF}"
    rf"|{_THIS} {_HOW}{_STRUCTURE} (?:above |here |also |then |first |next )?{_SAYS}\b"
    rf"|{_OBEYS} {_THIS} {_HOW}instructions?{_NOT_OF}"
    rf"|{_THIS} {_ORDERS} above {_SAYS}\b"
    rf"|{_THIS} instructions? {_SAYS}\b"
    r"|(?:the|this) suggestion (?:is|was) to\b"
    r"|(?:given|provided) hints?\b"
    rf"|(?:as|like|what) {_THIS} {_HOW}(?:{_STRUCTURE}|steps|{_ORDERS}) "
    r"(?:suggest|say|indicate|require|impl|show|demand|describe|outline)\w*"
    rf"|(?:{_GIVEN}|told|asked|instructed|guided|directed) (?:in|by) {_THIS} {_HOW}"
    rf"{_STRUCTURE}{_NOT_OF}"
    rf"|{_PART} (?:of|in|from) {_THIS} {_HOW}{_STRUCTURE}{_NOT_OF}"
    rf"|{_THIS} {_HOW}{_STRUCTURE}['’]s {_HOW}{_PART}\b"
    rf"|{_THIS} (?:{_GIVEN}|above) {_STRUCTURE}{_NOT_OF}"
    rf"|{_THIS} (?:given|provided|suggested|recommended|prescribed) {_STEPS}{_NOT_OF}"
    rf"|{_THIS} (?:structured )?(?:{_STRUCTURE}|{_STEPS}) (?:that )?"
    r"(?:(?:is|was|are|were|(?:i|we) (?:was|were)|you) )?"
    r"(?:given|gave|provided|suggested|laid out|set out|prescribed)\b(?! (?:in|by)\b)"
    rf"|your (?:{_STRUCTURE}|suggestions?|tips?|instructions?)\b"
    r"|as (?:you |i was |we were )?(?:advised|instructed|suggested|outlined),)"
)
_NOUNS = re.compile(
    rf"\b(?:{_STRUCTURE}|{_STEPS}|suggestion|tip|instruction|advis|instruct|suggest|outline)"
)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?![\w%])")


def find_leak(question: Question, path: ReasoningPath, wanted: tuple[Leak, ...]) -> Leak | None:
    """The first of the wanted kinds of leak that a path has; None without one."""
    return next((leak for leak in wanted if _LEAKS[leak](question, path)), None)


def _cites_hint(question: Question, path: ReasoningPath) -> bool:
    return path.is_hinted and _cites(_CITES_HINT, question, path)


def _cites_guideline(question: Question, path: ReasoningPath) -> bool:
    return bool(path.guideline_id) and _cites(_CITES_GUIDELINE, question, path)


def _cites(pattern: re.Pattern[str], question: Question, path: ReasoningPath) -> bool:
    """Whether the solution cites it and the question does not contain it.

    If the question itself has a plan, "the plan says" may refer to that one; the verb in "they plan
    to" does not count.
    """
    said = (match.group() for match in pattern.finditer(path.reasoning.casefold()))
    asked = question.text.casefold()
    return any(words not in asked and not _is_of_question(words, asked) for words in said)


def _is_of_question(words: str, asked: str) -> bool:
    """Whether the question itself mentions what the words name."""
    nouns = _NOUNS.findall(words)
    return any(re.search(rf"\b{noun}(?:s|ed|e|es)?\b(?! (?:to|on)\b)", asked) for noun in nouns)


def _structure_holds_answer(question: Question, path: ReasoningPath) -> bool:
    """Whether the plan states the right answer, or contains it as a number not in the question."""
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
