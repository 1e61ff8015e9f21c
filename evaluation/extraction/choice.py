"""Options by letter, by letter with text, or by text alone: `B`, `(B) banana`, `banana`.

A letter with the text of another option counts as neither, since both were named. If two options
have the same text, either both are right or neither is.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from evaluation.extraction import residue
from evaluation.extraction.normalize import (
    NO_READING,
    Choices,
    Keys,
    Reading,
    normalize,
    plain_text,
    shorten,
)
from evaluation.extraction.number import exact_number, read_number


class _Option(NamedTuple):
    letter: str
    text: str
    normalized: str
    values: Keys


MOST_WORDS, FEW_WORDS = 0.6, 0.3
"""Sharing this many words with one option, and at most this few with others, selects it."""

_LETTERED = re.compile(
    r"(?:(?i:option|choice|answer|letter) ?:? ?)?[(\[{]? ?(?P<letter>[A-Za-z])"
    r"(?: ?[)\]}:,]| ?\.(?![A-Za-z0-9])| ?$| [-—] ) ?"
)
_LOOSE_LETTER = re.compile(
    r"(?:(?i:option|choice|answer|letter) ?:? ?(?=[A-Za-z]\b)|(?=[B-HJ-Z] )"
    r"|(?=A (?:because|since|as|is|which|and|for|with|or)\b))(?P<letter>[A-Za-z])"
)
# Letters named in addition to the first: "(A)(B)", "A or maybe B", "A) apple, B) banana".
_SECOND_LETTER = re.compile(
    r"\((?P<a>[A-Za-z])\)|(?<![A-Za-z0-9'])(?P<b>[A-Z])\)"
    r"|(?:[,/&|+;]|\b(?:and|or|to|also|maybe|perhaps|possibly|both|but)\b) ?(?i:option |answer )?"
    r"(?P<c>[A-Z](?![A-Za-z'])|[a-z](?=[)\].,]|$))|(?<![A-Za-z0-9'])(?P<d>[B-HJ-Z])(?![A-Za-z0-9'])"
    r"|^[\s.,;]*(?P<e>[A-Za-z])[.)]?$"
)
_LETTER_BEHIND = re.compile(
    r"(?P<text>.+?) ?(?:[(\[] ?(?:(?i:option|choice|answer|letter) )?(?P<letter>[A-Za-z]) ?[)\]]"
    r"|[-—:] ?\(?(?P<other>[A-Z])\)?)[. ]*"
)
_STANDALONE_LETTER = re.compile(
    r"(?<![A-Za-z])\(([A-Za-z])\)|(?<![A-Za-z0-9])([A-Z])\)|^([A-Z])[.:] "
    r"|^[\"' ]*([A-Za-z])[.:)]?[\"' ]*$"
    r"|\b(?i:option|choice):? \(?([A-Za-z])\b(?!')"
    r"|\b(?i:answer(?: is)?|réponse est|antwort ist|respuesta es):? \(?(?!a [a-z])([A-Za-z])\b(?!')"
    r"|(?<![A-Za-z0-9'])([A-Z]) ?[.!?]?$"
    r"|(?<![A-Za-z0-9'])([A-Z])(?= (?i:is|would be|seems|must be) (?:\w+ ){0,2}(?i:correct|right"
    r"|best|answer|wrong|incorrect)\b|[,;]? (?i:not|non|or|and|nor|rather)\b [^.]*\b[A-Z]\b"
    r"|, |[^\x00-\x7f])"
)
_JOINS = re.compile(
    r"[\s()]*(?:,|/|&|(?i:and|or|nor))[\s(),]*"
    r"(?P<guess>(?i:maybe|perhaps|possibly|rather|even)[\s,]+)?(?:(?i:option|choice) )?\(?"
)
_JOINED = re.compile(
    r"[\s)\]]*(?:(?:[,;/&|]\s*)?(?P<or>\b(?i:or)\b)(?! rather\b)|[,;/&|]|\b(?i:and)\b)\s*"
)
_REASON_OR_END = re.compile(r"[.!] (?=[^ ]{2})|\b(?:because|since|as|which|where)\b")
_WRONG = re.compile(
    r"\b(?i:wrong|incorrect|not (?:the|right|correct|true|(?-i:an?))|ruled out|impossible"
    r"|eliminated|excluded|discarded)\b|n't\b"
)
_ASKED = re.compile(r"[^.!;?]{0,60}\?[^A-Za-z]*$")
_NO_BEFORE = re.compile(r"\b(?i:no|without|any|(?:any|every)thing but|all but) \(?$")
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
    """The letter, or the option whose text is given."""
    options = _options(choices)
    if len(plain) > 2:  # first, since an option may read "A. Lincoln" or "a - b"
        by_text = _match_option(plain, choices) or _text_with_letter(plain, choices)
        if by_text is not None:
            return by_text
    filler = _FILLER.match(plain)
    plain = plain[filler.end() if filler else 0 :].strip("\"' ")
    found = _leading_letter(plain, options)
    if found is None:
        return _match_option(plain, choices) or _match_option(_NUMBERED.sub("", plain), choices)
    letter = found["letter"].upper()
    rest = plain[found.end() :]
    if _says_more(letter, rest, options) or _names_another(letter, rest, choices):
        return Reading(shorten(plain))
    return Reading(letter, frozenset([letter]))


def _text_with_letter(plain: str, choices: Choices) -> Reading | None:
    """The option of "banana (B)", where text and letter have to agree."""
    found = _LETTER_BEHIND.fullmatch(plain)
    named = _match_option(found["text"], choices) if found else None
    if found is None or named is None or not named.keys:
        return None
    letter = (found["letter"] or found["other"]).upper()
    return Reading(letter, frozenset([letter])) if letter in named.keys else Reading(shorten(plain))


def _says_more(letter: str, rest: str, options: Sequence[_Option]) -> bool:
    """Whether the text after a letter denies or doubts it, or names another one as well."""
    if not rest:
        return False
    own = next(option for option in options if option.letter == letter)
    said = rest.strip(" .").removeprefix("(")
    if own.text and said.startswith(own.text):  # which may contain any of these
        rest = said[len(own.text) :]
    if _joins_another(own, rest, options):
        return True
    sentence = _REASON_OR_END.split(rest, maxsplit=1)[0]
    retracted = residue.is_retracted(f" {rest}") and not residue.sets_another_aside(f" {rest}")
    if retracted or _WRONG.search(sentence) or residue.is_hedged(sentence):
        return True
    letters = {option.letter for option in options} - {letter}
    for second in _SECOND_LETTER.finditer(sentence):
        name = next(name for name in second.groups() if name)
        if name.upper() in letters and not residue.NEGATION.search(sentence[: second.end()]):
            return True
    return False


def _joins_another(own: _Option, rest: str, options: Sequence[_Option]) -> bool:
    """Whether another option's text, or an open "or", comes directly after an answer."""
    joined = _JOINED.match(rest)
    if joined is None:
        return False
    next_ = normalize(rest[joined.end() :])
    if own.normalized and next_.startswith(own.normalized):
        return False
    others = (option.normalized for option in options if option is not own)
    return joined["or"] is not None or any(0 in _occurrences(text, next_) for text in others)


def _leading_letter(plain: str, options: Sequence[_Option]) -> re.Match[str] | None:
    """The option letter that begins a text; "A dog" and "a dog" begin with an article instead."""
    found = _LETTERED.match(plain) or _LOOSE_LETTER.match(plain)
    if found is None:
        return None
    letter = found["letter"].upper()
    return found if any(option.letter == letter for option in options) else None


def _names_another(letter: str, rest: str, choices: Choices) -> bool:
    """Whether the text after a letter begins with another option's text, or most of its words."""
    text = _TEXT_END.split(rest, maxsplit=1)[0].strip("\"'()*. ") if rest else ""
    if not text:
        return False
    named = _match_option(text, choices)
    if named is not None and named.keys:
        return letter not in named.keys
    words = frozenset(normalize(text).split())
    shares = {option.letter: _shared(words, option) for option in _options(choices)}
    best = max(shares, key=lambda each: shares[each])
    return shares[best] >= MOST_WORDS and shares[letter] <= FEW_WORDS


def _shared(words: frozenset[str], option: _Option) -> float:
    """The words shared by a text and an option, as a share of all their words (Jaccard)."""
    own = frozenset(option.normalized.split())
    return len(words & own) / max(1, len(words | own))


def _match_option(plain: str, choices: Choices) -> Reading | None:
    """The option that a text equals: exactly, else normalized, else as a bare number."""
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
    """The last clear letter of a line, otherwise the option whose text ends last in it.

    A denied letter ("D, not B") is ignored; `NO_READING` if all of them are denied.
    """
    plain = plain_text(line)
    letters = {option.letter for option in _options(choices)}
    spans = [
        (match.start(match.lastindex or 0), match[match.lastindex or 0].upper())
        for match in _STANDALONE_LETTER.finditer(plain)
    ]
    found = [(start, start + 1, letter) for start, letter in spans if letter in letters]
    start = _last_stated(plain, [(one, end) for one, end, _ in found])
    if start is not None:
        letter = plain[start].upper()
        contradicts = _names_another(letter, plain[start + 1 :].lstrip(").:"), choices)
        return Reading(shorten(plain)) if contradicts else Reading(letter, frozenset([letter]))
    if found:
        return NO_READING
    return _last_text(plain, choices)


def _last_text(plain: str, choices: Choices) -> Reading | None:
    words = normalize(plain)
    found: dict[tuple[int, int], _Option] = {}
    for option in _options(choices):
        for start in _occurrences(option.normalized, words):
            span = (start, start + len(option.normalized))
            found.setdefault(span, option)
    # If two end at the same place, the longer one was meant.
    spans = sorted(found, key=lambda span: (span[1], -span[0]))
    spans = [span for span in spans if not any(_covers(other, span) for other in spans)]
    stated = _last_stated(words, spans)
    if stated is None:
        return NO_READING if spans else None
    option = next(found[span] for span in spans if span[0] == stated)
    return _match_option(option.text, choices)


def _covers(other: tuple[int, int], span: tuple[int, int]) -> bool:
    return other != span and other[0] <= span[0] and span[1] <= other[1]


def _last_stated(text: str, spans: Sequence[tuple[int, int]]) -> int | None:
    """The start of the last of these pieces that its clause does not deny."""
    denied: list[bool] = []
    for index, (start, end) in enumerate(spans):
        before = text[spans[index - 1][1] if index else 0 : start]
        joins = _JOINS.fullmatch(before) if index else None
        joined = joins is not None
        clause = residue.last_clause(before.rstrip(" ([\"'*"))
        after = residue.first_clause(text[end:])
        wrong = residue.is_retracted(text[end : end + 40]) or bool(_WRONG.search(after[:25]))
        negated = bool(
            residue.NEGATION.search(clause)
            or residue.is_guess(clause)
            or _NO_BEFORE.search(before)
            or _ASKED.match(text, end)
        )
        denied.append(negated or wrong or (joined and denied[-1]))
        if joins and not denied[-2] and (joins["guess"] or not denied[-1]):
            denied[-1] = denied[-2] = True  # "A or B", "A or maybe B"
    stated = [start for (start, _), no in zip(spans, denied, strict=True) if not no]
    return stated[-1] if stated else None


def _occurrences(part: str, line: str) -> Iterator[int]:
    """The positions where a text occurs in a line as whole words."""
    at = line.find(part) if part else -1
    while at >= 0:
        end = at + len(part)
        if not (line[at - 1 : at].isalnum() or line[end : end + 1].isalnum()):
            yield at
        at = line.find(part, at + 1)


def without_option_lists(lines: list[str]) -> list[str]:
    """The lines without those that only repeat the options: "A) ice" with "B) fire" below it."""
    found = [_LISTED.match(line) for line in lines]
    letters = [match[1].upper() if match else "" for match in found]
    listed = [
        bool(letter) and any(other and other != letter for other in (before, after))
        for before, letter, after in zip(["", *letters], letters, [*letters[1:], ""], strict=False)
    ]
    return [line for line, is_listed in zip(lines, listed, strict=True) if not is_listed]


def canonical_choice(answer: str, choices: Choices) -> str:
    """The capital letter; ValueError for a text that names no option or several."""
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
    """The keys that an answer must have to equal this option."""
    return frozenset([canonical])


def is_lone_option(plain: str, choices: Choices, after: str) -> bool:
    """Whether a line is an option and not a heading: "B) banana", but not "A. First look"."""
    letter = _LETTERED.match(plain)
    rest = plain[letter.end() if letter else 0 :]
    return not rest or _match_option(rest, choices) is not None
