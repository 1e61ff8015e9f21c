"""Numbers in words, where the meaning is unambiguous: `twenty-five` as `25`.

with_digits("two hundred and five apples")  ->  "205 apples"
with_digits("five and a half")              ->  "5 1/2"
with_digits("one of them")                  ->  None
"""

from __future__ import annotations

import re

_ONES = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9,
}  # fmt: skip
_TEENS = {
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15,
    "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70,
    "eighty": 80, "ninety": 90,
}  # fmt: skip
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_VALUES = _ONES | _TEENS | _TENS
_PARTS = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8,
    "tenth": 10,
}  # fmt: skip

_DIGIT = "|".join(list(_ONES)[1:])
_SCALE = "|".join(_LARGE)
_TO_99 = rf"(?:(?:{'|'.join(_TENS)})(?:[- ](?:{_DIGIT}))?|{'|'.join([*_TEENS, *_ONES])})"
_TO_999 = rf"(?:(?:{_TO_99}|a) hundred(?: (?:and )?{_TO_99})?|{_TO_99})"
_WHOLE = (
    rf"(?:(?:(?:{_TO_999}|a) (?:{_SCALE})(?:,? (?:and )?(?={_TO_999}))?)+(?:{_TO_999})?|{_TO_999})"
)
_PART = rf"(?:{'|'.join(_PARTS)}|halves)s?"
_SPELLED = re.compile(
    rf"\b(?:(?P<whole>{_WHOLE})(?: and (?P<more>a|{_TO_99})[ -](?P<piece>{_PART}))?"
    rf"(?![a-z-])(?! (?:{_PART})\b)"
    rf"|(?P<top>one|{_TO_99})[ -](?P<bottom>{_PART})\b|(?P<half>half)\b)"
)
NUMBER_WORDS = "|".join([*_VALUES, "hundred", *_LARGE, "half", "dozen"])
"""The words of spelled-out numbers, as alternatives in a pattern."""
_NUMBER_WORD = re.compile(rf"\b(?:{NUMBER_WORDS})\b")
_SIGN = re.compile(r"(?:minus|negative) $")
# What may come before the number: words that only introduce it.
_OPENING = re.compile(
    r"(?:(?:exactly|only|just|about|approximately|there|are|were|is|was|he|she|it|they|we|has|have"
    r"|had|will|be|a total of|in total) )*"
)
# "one of them", "two more", "three point five", "five to ten", "six or seven".
_CLOSING = re.compile(
    r"(?: (?!of|more|less|point|or|to|and|plus|minus|times|by|over)[a-z%'-]+){0,3}"
)


def with_digits(text: str) -> str | None:
    """The text with its only spelled-out number in digits; None if there is none, or more."""
    if len(text) > 200:
        return None
    text = text.casefold().strip(" .!")
    found = _SPELLED.search(text)
    if found is None:
        return None
    before, after = text[: found.start()], text[found.end() :]
    sign = _SIGN.search(before)
    before = before[: sign.start()] if sign else before
    if not _OPENING.fullmatch(before) or not _CLOSING.fullmatch(after):
        return None
    if _NUMBER_WORD.search(after) or (found[0] == "one" and (before or after.count(" ") > 1)):
        return None
    return f"{before}{'-' if sign else ''}{_digits(found)}{after}"


def _digits(found: re.Match[str]) -> str:
    if found["half"]:
        return "1/2"
    if found["top"]:
        return f"{_value(found['top'])}/{_part(found['bottom'])}"
    whole = _value(found["whole"])
    return (
        f"{whole} {_value(found['more'])}/{_part(found['piece'])}" if found["more"] else str(whole)
    )


def _part(name: str) -> int:
    return 2 if name == "halves" else _PARTS[name.removesuffix("s")]


def _value(words: str) -> int:
    """The value of a well-formed number: hundreds multiply, and thousands close a group."""
    total = group = 0
    for word in re.findall(r"[a-z]+", words):
        if word in _VALUES:
            group += _VALUES[word]
        elif word == "hundred":
            group = max(group, 1) * 100
        elif word in _LARGE:
            total += max(group, 1) * _LARGE[word]
            group = 0
    return total + (1 if words == "a" else group)
