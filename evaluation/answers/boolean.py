"""Yes and no, which true and false also say."""

from __future__ import annotations

import re

from evaluation.answers.plain import Choices, Keys, Reading, plain_text, shorten

_TRUTH_WORDS = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_LETTERS = {"y": "yes", "t": "yes", "n": "no", "f": "no"}
_BOOLEAN_HEAD = re.compile(r"[\W_]{0,3}(?P<word>(?i:yes|no|true|false))\b")
_BOOLEAN_INNER = re.compile(
    r"(?i:(?:it|this|that|is|was|would|be|a|the|statement|expression|result|therefore|thus|most"
    r"|likely|probably|clearly|definitely|simply|indeed|actually)\b[ ,:]*){1,6}"
    r"[\W_]{0,3}(?P<word>(?i:yes|true|false|no(?! ?\w)))\b"
)
_BOOLEAN_SECOND = re.compile(r" ?(?:/|\||or\b|and\b) ?(?i:yes|no|true|false)\b")
_BOOLEAN_OTHER = re.compile(r" ?, ?(?P<word>(?i:yes|no|true|false))[\W_]*$")
_NEITHER = re.compile(r"(?i:neither)\b")
_BOOLEAN_WORD = re.compile(r"(?<!not )\b(?:(?i:yes|true|false)|No|NO|no(?! [a-z]))\b")


def read_boolean(plain: str, choices: Choices) -> Reading | None:
    """The yes or no a text opens with, behind a few words such as "it is" at most."""
    result = plain.rpartition("=")[2].strip() or plain
    if _NEITHER.match(result):
        return Reading(shorten(plain))
    found = _BOOLEAN_HEAD.match(result) or _BOOLEAN_INNER.match(result)
    if found is None:
        letter = _LETTERS.get(result.strip("().").casefold())
        return Reading(letter, frozenset([letter])) if letter else None
    if _BOOLEAN_SECOND.match(result, found.end()):
        return Reading(shorten(plain))
    other = _BOOLEAN_OTHER.match(result, found.end())
    if other and _TRUTH_WORDS[other["word"].casefold()] != _TRUTH_WORDS[found["word"].casefold()]:
        return Reading(shorten(plain))
    return _boolean_reading(found["word"])


def _boolean_reading(word: str) -> Reading:
    canonical = _TRUTH_WORDS[word.casefold()]
    return Reading(canonical, frozenset([canonical]))


def last_boolean(line: str, choices: Choices) -> Reading | None:
    """The last yes, no, true or false of a line."""
    words = _BOOLEAN_WORD.findall(plain_text(line))
    return _boolean_reading(words[-1]) if words else None


def canonical_boolean(answer: str, choices: Choices = ()) -> str:
    """`yes` or `no`; ValueError for anything else."""
    word = answer.strip(" .!\"'\n\t").casefold()
    if word not in _TRUTH_WORDS:
        raise ValueError(f"the boolean answer {answer!r} is none: write yes, no, true or false")
    return _TRUTH_WORDS[word]


def boolean_keys(canonical: str, choices: Choices = ()) -> Keys:
    """What an answer must equal to be this truth value."""
    return frozenset([canonical])
