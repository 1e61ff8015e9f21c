"""Numbers, exactly: `1,000.50`, `1\\frac{1}{2}`, `50\\%`, `1.5 \\times 10^3`, `$5 million`, `five`.

Two numbers are equal when their values are, as fractions, without any tolerance. A text that holds
more than one number, or one that something else changes (`5x`, `2^8`, `5 to 10`), equals none.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction

from evaluation.answers.number_words import with_digits
from evaluation.answers.plain import Choices, Keys, Reading, plain_text, shorten

MAX_NUMBER_LENGTH = 1_000  # far below the 4,300 digits at which Python's int() and str() refuse
MAX_EXPONENT = 400

# Patterns. Possessive repeats (`++`) keep each search linear on text made to be slow. Those that
# run over whole texts open with a plain set of characters, since `re` skips to those ten times
# faster than it tries a pattern; what must stand before is then looked up behind.

_WHOLE = (
    r"(?:[1-9][0-9]{0,2}(?:[, ][0-9]{3}(?![0-9]))++"
    # 1,00,000 as in India. Counted, as Python 3.11.2 reads on wrongly behind a possessive group.
    r"|[1-9][0-9]?(?:,[0-9]{2}(?![0-9])){1,20},[0-9]{3}(?![0-9])|[0-9]++)"
)
_UNSIGNED = rf"(?:{_WHOLE}(?:\.[0-9]++)?|\.[0-9]++)"
_TO_THE = r"10\ ?(?:\^|\*\*)\ ?\{?\ ?"
_NUMBER = re.compile(
    rf"""(?=[-+.0-9])(?<![A-Za-z0-9_])(?P<sign>(?<![)\]}}%])[-+])?
    (?: (?P<whole>{_WHOLE})\ (?:and\ )?(?P<over>[0-9]++)\ ?/\ ?(?P<under>[0-9]++)  # 1 1/2
      | (?P<top>{_UNSIGNED})\ ?/\ ?(?P<bottom>{_UNSIGNED})                          # 1/2
      | {_TO_THE}(?P<ten>[-+]?[0-9]++)\ ?\}}?                                       # 10^5
      | (?P<decimal>{_UNSIGNED})                                                    # 1,000.5
        (?: [eE](?P<exponent>[-+]?[0-9]++)(?![0-9A-Za-z])                           # 1.5e3
          | \ ?(?:[×·⋅*x]|\\times|\\cdot)\ ?{_TO_THE}(?P<power>[-+]?[0-9]++)\ ?\}}? )?  # 1.5 x 10^3
    )
    (?P<percent>\ ?%|\ per\ ?cent\b|\ pct\b)?
    (?P<scale>(?:\ ?(?i:hundred|thousand|million|billion|trillion|mn|bn)\b){{1,3}})?""",
    re.VERBOSE,
)
_SCALES = {
    "hundred": 2, "thousand": 3, "million": 6, "mn": 6, "billion": 9, "bn": 9, "trillion": 12,
}  # fmt: skip
_SCALE = re.compile("[a-z]+")
_DIGIT = re.compile(r"[0-9]")
_GROUPING = re.compile(r"[, ]")
_LATEX_FRACTION = re.compile(
    rf"\\frac ?(?:\{{ ?(-?{_UNSIGNED}) ?\}}|([0-9])) ?(?:\{{ ?({_UNSIGNED}) ?\}}|([0-9]))"
)
_CURRENCY = re.compile(
    r"[RUEGIAC€£¥₹](?:(?<=\bR)s\.?|(?<=\bU)SD?|(?<=\bE)UR|(?<=\bG)BP|(?<=\bI)NR"
    r"|(?<=\bC)AD|(?<=\bA)UD|(?<=[€£¥₹]))(?= ?[0-9.])"
)
_AND_A_HALF = re.compile(r"(?<=[0-9]) and (?:a|one) (half|quarter|third|fourth)\b")
_PART = {"half": " 1/2", "quarter": " 1/4", "third": " 1/3", "fourth": " 1/4"}
_NEGATIVE = re.compile(r"[-mMnN](?:(?<=^-)|(?i:(?<=\bm)inus|(?<=\bn)egative)) +(?=[0-9.])")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])\^\{?-?[0-9]\}?")
_UNIT_ONLY = re.compile(r" ?[a-z°/]*(?: [a-z]+){0,2} ?[.!]?")
EQUALS = re.compile(
    r"[=≈\\eE](?:(?<==)(?<![<>!=]=)=*+|(?<=≈)|(?<=\\)approx(?![A-Za-z])"
    r"|(?<=\b[eE])quals?\b(?: to\b)?)"
)
_NEXT_EQUATION = re.compile(r";|, ?[A-Za-z\\]|\b(?:and|or)\b")
_WORD = re.compile(r"[^\W\d_]{2}")
_JOINING = re.compile(r"\b(?:and|or|to|plus|minus|times|divided)\b|^ ?(?:over|by)\b|[:+*×^=]")
# One word between two numbers that does not relate them: "5 feet 6 inches" is not 5.
_COMPOUND = re.compile(
    r" ?(?!(?:in|of|for|per|at|from|on|over|every|each|out|after|by|with|than|as)\b)[a-z]+,? "
)
# Words that make of a number another one, or none: "not 5", "more than 5", "5 or more".
_CHANGING = re.compile(
    r"(?i:\bnot|n't|\bwrong|\bincorrect|\b(?:more|less|fewer|greater|larger|smaller) than"
    r"|\bat (?:least|most)|\bup to"
    r"|\bor (?:more|less|fewer)|\band (?:a|one) [a-z]+)\b"
)
# What may not stand beside a number that is to count for itself: signs, LaTeX, variables.
_MATHEMATICS = re.compile(
    r"[+*^_<>=×÷·±√∛∞π≤≥≠|~{}\\]|[-/](?! ?[A-Za-z])"
    r"|(?<![A-Za-z'.])[b-fi-kn-rt-zXYZ](?![A-Za-z']|\.[A-Za-z])"
    r"|^[KMB]\b|\b(?:sqrt|pi|root|squared|cubed|factorial|log|ln|sin|cos|tan)\b|[A-Za-z]{3}[0-9]"
)
_BULLET = re.compile(r"[-*•] |^[0-9]{1,2}[.)] (?=[^ ])")  # also "2." before a step


def read_number(plain: str, choices: Choices = ()) -> Reading | None:
    """The number a text states; unusable (no keys) if there is more to it than one number.

    Words may stand around it, a second number only after words ("72 clips in 2 months").
    """
    text = _result(_number_syntax(plain))
    first = _NUMBER.search(text)
    if first is None:
        spelled = with_digits(text)
        return read_number(spelled) if spelled else None
    second = _NUMBER.search(text, first.end())
    before = text[: first.start()]
    after = text[first.end() : second.start() if second else len(text)]
    if before.count(" ") > 5:
        return None  # so far from the cue it is more likely a step than the answer
    if (second and _is_joined(after)) or _is_changed(before) or _is_changed(after):
        return Reading(shorten(plain))
    return _number_reading(first) or Reading(shorten(plain))


def _is_joined(between: str) -> bool:
    """Whether what stands between two numbers makes them one value or two answers."""
    return bool(
        not _WORD.search(between) or _JOINING.search(between) or _COMPOUND.fullmatch(between)
    )


def _is_changed(beside: str) -> bool:
    return bool(beside) and bool(_MATHEMATICS.search(beside) or _CHANGING.search(beside))


def _number_syntax(plain: str) -> str:
    """Rewrite fractions, powers of units and signed words so that one pattern can read them."""
    if "\\" in plain:
        plain = _LATEX_FRACTION.sub(_slashed, plain)
    plain = _NEGATIVE.sub("-", _CURRENCY.sub(" ", plain).strip())
    if " and " in plain:
        plain = _AND_A_HALF.sub(lambda found: _PART[found[1]], plain)
    return _UNIT_POWER.sub("", plain).strip("{} ")


def _slashed(fraction: re.Match[str]) -> str:
    """`\frac{1}{2}` as `1/2`, kept apart from a whole number before it."""
    before = fraction.string[fraction.start() - 1 : fraction.start()]
    top, bottom = fraction[1] or fraction[2], fraction[3] or fraction[4]
    return f"{' ' if before.isalnum() else ''}{top}/{bottom}"


def _result(text: str) -> str:
    """What stands after the last equals sign, unless that is one of several equations."""
    result = text
    if any(sign in text for sign in ("=", "≈", "\\", "qual")):  # most texts hold none of them
        parts = EQUALS.split(text)
        if len(parts) > 2 and any(_NEXT_EQUATION.search(part) for part in parts[1:-1]):
            return text
        result = next((part for part in reversed(parts) if _DIGIT.search(part)), text).strip()
    bracket = result.find(" (")
    return result[:bracket] if bracket > 0 and _DIGIT.search(result, 0, bracket) else result


def _number_reading(number: re.Match[str]) -> Reading | None:
    """The value of a match of `_NUMBER`; None if it is too large to handle or has no value."""
    value = _value(number)
    if value is None:
        return None
    shown = shown_number(value)
    if number["percent"] is None:
        return Reading(shown, frozenset([value]))
    # Whether the truth counts in percent or in shares is for the data set to say: take both.
    return Reading(f"{shown}%", frozenset([value, Fraction(value) / 100]))


def shown_number(value: Fraction | int) -> str:
    """The finite decimal where there is one, else `1/3`."""
    return _decimal(value) or f"{value.numerator}/{value.denominator}"


def _value(number: re.Match[str]) -> Fraction | int | None:
    if len(number[0]) > MAX_NUMBER_LENGTH:
        return None
    exponent = int(number["exponent"] or number["power"] or number["ten"] or 0)
    if number["scale"]:
        exponent += sum(_SCALES[name] for name in _SCALE.findall(number["scale"].casefold()))
    bottom = number["bottom"] or number["under"]
    if abs(exponent) > MAX_EXPONENT or (bottom and not _unsigned(bottom)):
        return None
    if " and " in number[0] and int(number["over"]) >= int(number["under"]):
        return None  # "5 and 3/2": two answers, no mixed number
    value = _unsigned(number["over"] or number["top"] or number["decimal"] or "1")
    if bottom:
        value = Fraction(value) / _unsigned(bottom)
    if number["whole"]:
        value += _unsigned(number["whole"])
    if exponent:
        value *= Fraction(10) ** exponent
    return -value if number["sign"] == "-" else value


def _unsigned(digits: str) -> Fraction | int:
    # An integer equals its fraction, also as a key, and is made ten times faster.
    whole, _, decimals = _GROUPING.sub("", digits).partition(".")
    return Fraction(int(whole + decimals), 10 ** len(decimals)) if decimals else int(whole)


def _decimal(value: Fraction | int) -> str | None:
    """The finite decimal of a value, None if it has none."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, places = value.denominator, 0
    while rest % 10 == 0:
        rest, places = rest // 10, places + 1
    for prime in (2, 5):
        while rest % prime == 0:
            rest, places = rest // prime, places + 1
    if rest != 1 or places > 2 * MAX_NUMBER_LENGTH:
        return None
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[:-places]}.{digits[-places:].rstrip('0')}"


def exact_number(plain: str) -> Reading | None:
    """The number that is the whole of a text."""
    number = _NUMBER.fullmatch(_number_syntax(plain).removesuffix("."))
    return _number_reading(number) if number else None


def last_number(line: str, choices: Choices) -> Reading | None:
    """The last number of a line, whatever stands beside it."""
    text = _number_syntax(_BULLET.sub("", plain_text(line), count=1))
    numbers = deque(_NUMBER.finditer(text), maxlen=1)
    return (_number_reading(numbers[0]) or Reading(shorten(numbers[0][0]))) if numbers else None


def canonical_number(answer: str, choices: Choices = ()) -> str:
    """`12.5`, or `1/3` where there is no finite decimal; ValueError for what is no number."""
    reading = exact_number(plain_text(answer))
    if reading is None:
        raise ValueError(f"the number {answer!r} cannot be read: write digits only, such as 12.5")
    return reading.shown.rstrip("%")


def number_keys(canonical: str, choices: Choices = ()) -> Keys:
    """What an answer must equal to be this number."""
    value = Fraction(canonical)
    return frozenset([value.numerator if value.denominator == 1 else value])


def is_lone_number(plain: str, choices: Choices, after: str) -> bool:
    """Whether a line is a number with a unit at most: "72 clips", and not "1. Set up the sum"."""
    text = _result(_number_syntax(plain))
    number = _NUMBER.match(text)
    return number is not None and _UNIT_ONLY.fullmatch(text, number.end()) is not None
