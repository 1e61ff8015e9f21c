"""The answer types and how each is read: one line per type."""

from __future__ import annotations

from evaluation.extraction.answer_extraction import AnswerReader
from evaluation.extraction.boolean import (
    boolean_keys,
    canonical_boolean,
    last_boolean,
    read_boolean,
)
from evaluation.extraction.choice import (
    canonical_choice,
    choice_keys,
    is_lone_option,
    last_choice,
    read_choice,
    without_option_lists,
)
from evaluation.extraction.mathematics import (
    canonical_mathematics,
    clean_mathematics,
    last_mathematics,
    mathematics_keys,
    read_mathematics,
    same_mathematics,
)
from evaluation.extraction.normalize import Choices, plain_text
from evaluation.extraction.number import (
    canonical_number,
    is_lone_number,
    last_number,
    number_keys,
    read_number,
)
from evaluation.extraction.text import (
    canonical_text,
    is_last_line,
    last_text,
    only_line,
    read_text,
    text_keys,
)
from evaluation.question import AnswerType


def _stands_anywhere(cleaned: str, choices: Choices, after: str) -> bool:
    return True


ANSWER_READERS: dict[AnswerType, AnswerReader] = {
    "number": AnswerReader(
        "number",
        plain_text,
        read_number,
        last_number,
        canonical_number,
        number_keys,
        is_lone_number,
    ),
    "choice": AnswerReader(
        "choice",
        plain_text,
        read_choice,
        last_choice,
        canonical_choice,
        choice_keys,
        is_lone_option,
        last_lines=without_option_lists,
    ),
    "boolean": AnswerReader(
        "boolean",
        plain_text,
        read_boolean,
        last_boolean,
        canonical_boolean,
        boolean_keys,
        _stands_anywhere,
    ),
    "text": AnswerReader(
        "text",
        plain_text,
        read_text,
        last_text,
        canonical_text,
        text_keys,
        is_last_line,
        last_lines=only_line,
    ),
    "math": AnswerReader(
        "math",
        clean_mathematics,
        read_mathematics,
        last_mathematics,
        canonical_mathematics,
        mathematics_keys,
        is_last_line,
        same_mathematics,
    ),
}
