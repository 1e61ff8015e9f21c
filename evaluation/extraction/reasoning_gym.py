"""Questions of `reasoning_gym`, judged by the scorer of their family.

Most families have a scorer, because their questions have more than one right answer, or an answer
that can be written in more than one way. It needs the complete entry, so the question carries it::

    Question(..., answer_type="text", grader=FAMILY_GRADER,
             grader_data=family_data("countdown", {"max_numbers": 4}, entry))

The scorer runs in a process of `sandbox`, because some scorers compute with the answer: one may run
for ever or raise an error, and in both cases the answer is wrong. Only a full score is right.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from evaluation.extraction.answer_extraction import ReadAs, find_answer
from evaluation.extraction.normalize import MAX_LINE_LENGTH, plain_text, shorten
from evaluation.extraction.sandbox import Calculator
from evaluation.grader import Grade, Verdict, no_answer
from evaluation.question import AnswerType, Question

_NUMBERS = [
    "aiw", "basic_arithmetic", "binary_alternation", "chain_sum", "circuit_logic", "count_bits",
    "count_primes", "decimal_chain_sum", "gcd", "gsm_symbolic", "largest_island", "lcm",
    "leg_counting", "letter_counting", "maze", "number_format", "number_sequence", "products",
    "rectangle_count", "rotten_oranges", "self_reference", "simple_equations", "simple_geometry",
]  # fmt: skip
_TRUTH_VALUES = [
    "course_schedule", "game_of_life_halting", "isomorphic_strings", "ransom_note", "syllogism",
]  # fmt: skip
_WORDS = ["figlet_font", "letter_jumble", "spell_backward"]

KINDS_OF_FAMILIES: Mapping[str, AnswerType] = {
    **dict.fromkeys(_NUMBERS, "number"),
    **dict.fromkeys(_TRUTH_VALUES, "boolean"),
    **dict.fromkeys(_WORDS, "text"),
}
"""Families with a single right answer, for which reading it as its type is as good as their scorer
or better: some scorers accept any truth value, a number without its sign, or extra words at the
end."""

EXAMPLES = {
    "graph_color": "possible_answer",
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
}
"""Where the entries of families without a single answer store one of the right ones."""

_FRACTION = re.compile(r"\\frac ?\{([0-9]+)\} ?\{([0-9]+)\}")
_SIGNS = {r"\times": "×", r"\cdot": "×", r"\div": "÷"}

FAMILY_GRADER = "evaluation.extraction.reasoning_gym:grade_by_family"
FULL_SCORE = 1.0 - 1e-9
MAX_ANSWER_LENGTH = 10 * MAX_LINE_LENGTH  # characters; the largest boards have a few thousand


def right_answer(family: str, entry: Mapping[str, Any]) -> str:
    """The entry's answer, or an example of one; it may be empty. Raises ValueError if there is
    none, as in `rush_hour`.
    """
    answer = entry["answer"]
    if answer is None and family in EXAMPLES:
        answer = entry["metadata"][EXAMPLES[family]]
    if answer is None:
        raise ValueError("it has no right answer")
    return json.dumps(answer) if isinstance(answer, dict | list) else str(answer)


def family_data(family: str, settings: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """The scorer's data as a Python literal, which preserves tuples and numeric keys.

    Raises ValueError for an entry that a literal cannot represent.
    """
    parts = {"question": entry["question"], "answer": entry["answer"]}
    data = repr(
        {
            "family": family,
            "settings": repr(dict(settings)),
            "entry": repr(_without_numpy(parts | {"metadata": entry["metadata"]})),
        }
    )
    try:
        ast.literal_eval(ast.literal_eval(data)["entry"])
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"an entry of {family} cannot be stored as text ({error}): leave its scorer out"
        ) from error
    return data


def _without_numpy(value: Any) -> Any:
    """The same value with Python's numbers and texts in place of NumPy's."""
    if isinstance(value, Mapping):
        return {_without_numpy(key): _without_numpy(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)([_without_numpy(item) for item in value])
    return value.item() if isinstance(value, np.generic) else value


def grade_by_family(text: str, question: Question, *, read_last: bool, finished: bool) -> Grade:
    """Let the family's scorer judge the unchanged answer, with its line breaks."""
    read_as, answer = find_answer(text, last=read_last and finished, finished=finished)
    if not answer:
        return no_answer(finished=finished)
    forms = tuple(form for form in dict.fromkeys(_forms(answer)) if form)
    correct = _is_right(forms, question.grader_data)
    verdict = Verdict.CORRECT if correct else Verdict.WRONG
    return Grade(shorten(answer), verdict, ReadAs(read_as))


def _forms(answer: str) -> Iterator[str]:
    """The answer unchanged, since a board may contain stars; without markdown, since words may be
    marked up; and with LaTeX signs replaced by those that scorers know.
    """
    yield answer
    lines = answer.replace("\\\\", "\n").splitlines()
    plain = "\n".join(plain_text(line) for line in lines).strip()
    yield plain
    for latex, sign in _SIGNS.items():
        plain = plain.replace(latex, sign)
    fraction = _FRACTION.fullmatch(plain)
    plain = "/".join(fraction.groups()) if fraction else _FRACTION.sub(r"(\1/\2)", plain)
    yield plain
    yield plain.replace("×", "*").replace("÷", "/")


@lru_cache(maxsize=4096)
def _is_right(forms: tuple[str, ...], data: str) -> bool:
    """Whether one of these forms gets the full score; they share the time of one request."""
    fitting = [form for form in forms if len(form) <= MAX_ANSWER_LENGTH]
    if not fitting:
        return False
    request = ast.literal_eval(data) | {"answers": fitting}
    return float(Calculator.of_this_process().ask(request).get("score", 0.0)) >= FULL_SCORE
