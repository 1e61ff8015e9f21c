"""Free text, compared without case, articles, outer punctuation and spaces around signs."""

from __future__ import annotations

import re

from evaluation.extraction.normalize import Choices, Keys, Reading, normalize, plain_text
from evaluation.extraction.number import EQUALS, exact_number

_NAMED = re.compile(r"[ A-Za-z_]*")


def read_text(plain: str, choices: Choices) -> Reading | None:
    """The whole text; "y = 5" is also right if the truth is 5."""
    keys = _plain_keys(plain)
    parts = EQUALS.split(plain)
    if len(parts) == 2 and parts[1].strip() and _NAMED.fullmatch(parts[0]):
        keys |= _plain_keys(parts[1].strip())
    return Reading(plain.strip(" \"'").removesuffix(".").strip() or plain, keys)


def last_text(line: str, choices: Choices) -> Reading | None:
    """The whole line; see `only_line`."""
    plain = plain_text(line)
    return read_text(plain, choices) if plain else None


def only_line(lines: list[str]) -> list[str]:
    """The line of a text that has only one; in longer texts the start of an answer is unknown."""
    filled = [line for line in lines if line.strip()]
    return filled if len(filled) == 1 else []


def _plain_keys(plain: str) -> Keys:
    number = exact_number(plain)
    values = number.keys if number else frozenset()
    return values | {normalize(plain)}


def canonical_text(answer: str, choices: Choices = ()) -> str:
    """The text without surrounding white space."""
    return answer.strip()


def text_keys(canonical: str, choices: Choices = ()) -> Keys:
    """The keys that an answer must have to equal this text."""
    return _plain_keys(plain_text(canonical))


def is_last_line(plain: str, choices: Choices, after: str) -> bool:
    """Whether only marks follow: "Answer:" above a derivation is not an answer."""
    return not after.strip(" \n*$#\\]")
