"""Options by letter, by letter with text, or by text alone: `B`, `(B) banana`, `banana`.

A letter beside the text of another option is neither of the two, since both were said. Two options
with one text are both right where either is.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from evaluation.answers.number import exact_number, read_number
from evaluation.answers.plain import Choices, Keys, Reading, normalize, plain_text, shorten


class _Option(NamedTuple):
    letter: str
    text: str
    normalized: str
    values: Keys


MOST_WORDS, FEW_WORDS = 0.6, 0.3
"""Who shares so many words with one option, and so few with another, means the first."""

_LETTERED = re.compile(
    r"(?:(?i:option|choice|answer|letter) ?:? ?)?[(\[{]? ?(?P<letter>[A-Za-z])"
    r"(?: ?[)\]}:,]| ?\.(?![A-Za-z0-9])| ?$| [-—] ) ?"
)
_LOOSE_LETTER = re.compile(
    r"(?:(?i:option|choice|answer|letter) ?:? ?(?=[A-Za-z]\b)|(?=[B-HJ-Z] )"
    r"|(?=A (?:because|since|as|is|which|and|for|with|or)\b))(?P<letter>[A-Za-z])"
)
_SECOND_LETTER = re.compile(
    r"(?:(?i:option|choice|answer) )?[(\[]?[A-Za-z][)\].]? ?(?:,|/|&|and\b|or\b) ?(?:and |or )?"
    r"(?:(?i:option) )?[(\[]?([A-Z](?![A-Za-z'])|[a-z](?=[)\].,]|$))"
)
_STANDALONE_LETTER = re.compile(
    r"(?<![A-Za-z])\(([A-Za-z])\)|(?<![A-Za-z0-9])([A-Z])\)|^([A-Z])[.:] |^([A-Za-z])[.:)]?$"
    r"|\b(?i:option|choice|answer(?: is)?):? \(?([A-Za-z])\b(?!')|(?<![A-Za-z0-9'])([A-Z]) ?\.?$"
)
_TEXT_END = re.compile(r"[.;,:!?](?=\s|$)| (?:because|since|which|as|and|is|are)\b| [-—] ")
_NUMBERED = re.compile(r"^\(?[0-9]{1,2}[).] ")
_LISTED = re.compile(r"[\s*>-]*\(?([A-Za-z])[).:] ?[^\s]")
_FILLER = re.compile(
    r"(?i:(?:therefore|thus|then|hence|either|likely|most|probably|clearly|simply|indeed|actually"
    r"|definitely|that)\b[ ,:]*)+"
)


@lru_cache(maxsize=4096)
def _options(choices: Choices) -> tuple[_Option, ...]:
    options = []
    for letter, text in zip(string.ascii_uppercase, choices, strict=False):
        plain = plain_text(text)
        number = read_number(plain)
        values = number.keys if number else frozenset()
        options.append(_Option(letter, plain, normalize(plain), values))
    return tuple(options)


def read_choice(plain: str, choices: Choices) -> Reading | None:
    """The letter, or the option whose text stands there."""
    options = _options(choices)
    if len(plain) > 2:  # before letters: "A. Lincoln" and "a - b" may be the text of an option
        by_text = _match_option(plain, choices)
        if by_text is not None:
            return by_text
    filler = _FILLER.match(plain)
    plain = plain[filler.end() if filler else 0 :].strip("\"' ")
    found = _leading_letter(plain, options)
    if found is None:
        return _match_option(plain, choices) or _match_option(_NUMBERED.sub("", plain), choices)
    letter = found["letter"].upper()
    second = _SECOND_LETTER.match(plain)
    if second and second[1].upper() in {option.letter for option in options} - {letter}:
        return Reading(shorten(plain))
    if _names_another(letter, plain[found.end() :], choices):
        return Reading(shorten(plain))
    return Reading(letter, frozenset([letter]))


def _leading_letter(plain: str, options: Sequence[_Option]) -> re.Match[str] | None:
    """The option's letter a text begins with; "A dog" and "a dog" begin with an article."""
    found = _LETTERED.match(plain) or _LOOSE_LETTER.match(plain)
    if found is None:
        return None
    letter = found["letter"].upper()
    return found if any(option.letter == letter for option in options) else None


def _names_another(letter: str, rest: str, choices: Choices) -> bool:
    """Whether what follows a letter begins with another option's text, or most of its words."""
    text = _TEXT_END.split(rest, maxsplit=1)[0].strip("\"'()*. ")
    named = _match_option(text, choices)
    if named is not None and named.keys:
        return letter not in named.keys
    words = frozenset(normalize(text).split())
    shares = {option.letter: _shared(words, option) for option in _options(choices)}
    best = max(shares, key=lambda each: shares[each])
    return shares[best] >= MOST_WORDS and shares[letter] <= FEW_WORDS


def _shared(words: frozenset[str], option: _Option) -> float:
    """The words that a text shares with an option, as a part of all that either has (Jaccard)."""
    own = frozenset(option.normalized.split())
    return len(words & own) / max(1, len(words | own))


def _match_option(plain: str, choices: Choices) -> Reading | None:
    """The option a text equals: exactly, else normalised, else as a bare number."""
    options = _options(choices)
    same = [option for option in options if option.text == plain]
    if not same:
        normalized = normalize(plain)
        same = [option for option in options if option.normalized == normalized]
    if not same:
        number = exact_number(plain)
        same = [option for option in options if number and number.keys & option.values]
    if not same:
        return None
    if len({option.text for option in same}) > 1:  # as "Cc or cc" and "CC or Cc" for "cc or cc"
        return Reading(shorten(plain))
    return Reading(same[0].letter, frozenset(option.letter for option in same))


def last_choice(line: str, choices: Choices) -> Reading | None:
    """The last clear letter of a line, else the option's text that ends last in it."""
    plain = plain_text(line)
    options = _options(choices)
    letters = {option.letter for option in options}
    for match in reversed(list(_STANDALONE_LETTER.finditer(plain))):
        letter = match[match.lastindex or 0].upper()
        if letter in letters:
            contradicts = _names_another(letter, plain[match.end() :], choices)
            return Reading(shorten(plain)) if contradicts else Reading(letter, frozenset([letter]))
    words = normalize(plain)
    best = max(options, key=lambda option: _end_and_length(option.normalized, words), default=None)
    if best is None or _end_and_length(best.normalized, words)[0] < 0:
        return None
    return _match_option(best.text, choices)


def without_option_lists(lines: list[str]) -> list[str]:
    """The lines without those that only repeat the options: "A) ice" and below it "B) fire"."""
    found = [_LISTED.match(line) for line in lines]
    letters = [match[1].upper() if match else "" for match in found]
    listed = [
        bool(letter) and any(other and other != letter for other in (before, after))
        for before, letter, after in zip(["", *letters], letters, [*letters[1:], ""], strict=False)
    ]
    return [line for line, is_listed in zip(lines, listed, strict=True) if not is_listed]


def _end_and_length(part: str, line: str) -> tuple[int, int]:
    """Where the last whole-word occurrence of a part ends in a line, -1 if there is none."""
    at = line.rfind(part)
    while at >= 0:
        end = at + len(part)
        if not (line[at - 1 : at].isalnum() or line[end : end + 1].isalnum()):
            return end, len(part)
        at = line.rfind(part, 0, end - 1)
    return -1, 0


def canonical_choice(answer: str, choices: Choices) -> str:
    """The capital letter; ValueError for what names none or several of the options."""
    letters = string.ascii_uppercase[: len(choices)]
    text = answer.strip()
    bare = text.strip("().: ").upper()
    if len(bare) == 1 and bare in letters:
        return bare
    options = zip(letters, choices, strict=False)
    found = [letter for letter, choice in options if choice.strip() == text]
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"the choice answer {answer!r} names none or several of the {len(choices)} options: "
        "write its letter"
    )


def choice_keys(canonical: str, choices: Choices) -> Keys:
    """What an answer must equal to be this option."""
    return frozenset([canonical])


def is_lone_option(plain: str, choices: Choices, after: str) -> bool:
    """Whether a line is an option and no heading: "B) banana", and not "A. First look"."""
    letter = _LETTERED.match(plain)
    rest = plain[letter.end() if letter else 0 :]
    return not rest or _match_option(rest, choices) is not None
