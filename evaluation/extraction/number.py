"""Numbers, exactly: `1,000.50`, `1\\frac{1}{2}`, `50\\%`, `1.5 \\times 10^3`, `$5 million`, `five`.

Two numbers are equal if their values, as fractions, are equal without any tolerance. A text with
more than one number, or with one that something else changes (`5x`, `2^8`, `5 to 10`), equals none.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction

from evaluation.extraction import residue
from evaluation.extraction.normalize import NO_READING, Choices, Keys, Reading, plain_text, shorten
from evaluation.extraction.number_words import NUMBER_WORDS, with_digits

MAX_NUMBER_LENGTH = 1_000  # far below the 4,300 digits at which Python's int() and str() refuse
MAX_EXPONENT = 400

# Patterns. Possessive repeats (`++`) keep each search linear on adversarial text. Patterns that run
# over complete texts begin with a plain set of characters, since `re` skips to those ten times
# faster than it tries a pattern; what must come before is then checked by a look-behind.

_WHOLE = (
    r"(?:[1-9][0-9]{0,2}(?:[, ][0-9]{3}(?![0-9]))++"
    # 1,00,000 as in India. Bounded, since Python 3.11.2 mishandles a possessive group here.
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
    (?P<percent>\ ?%|\ per\ ?cent\b|\ percentage\b|\ pct\b)?
    (?P<scale>(?:\ ?(?i:hundreds?|thousands?|millions?|billions?|trillions?|mn|bn|lakhs?|crores?
      |tenths|hundredths|thousandths|millionths)\b){{1,3}})?""",
    re.VERBOSE,
)
_SCALES = {
    "hundred": 2, "thousand": 3, "million": 6, "mn": 6, "billion": 9, "bn": 9, "trillion": 12,
    "lakh": 5, "crore": 7, "tenth": -1, "hundredth": -2, "thousandth": -3, "millionth": -6,
}  # fmt: skip
_SCALE = re.compile("[a-z]{2,}?(?=s?(?![a-z]))")
_DIGIT = re.compile(r"[0-9]")
_GROUPING = re.compile(r"[, ]")
_LATEX_FRACTION = re.compile(
    rf"\\frac ?(?:\{{ ?(-?{_UNSIGNED}) ?\}}|([0-9])) ?(?:\{{ ?({_UNSIGNED}) ?\}}|([0-9]))"
)
_CURRENCY = re.compile(
    r"[RUEGIAC€£¥₹](?:(?<=\bR)s\.?|(?<=\bU)SD?|(?<=\bE)UR|(?<=\bG)BP|(?<=\bI)NR"
    r"|(?<=\bC)AD|(?<=\bA)UD|(?<=[€£¥₹]))(?= ?[0-9.])"
)
_TIMES = re.compile(r"(?<=[0-9] )x(?= [0-9])")
_AND_A_HALF = re.compile(r"(?<=[0-9]) and (?:a|one) (half|quarter|third|fourth)\b")
_PART = {"half": " 1/2", "quarter": " 1/4", "third": " 1/3", "fourth": " 1/4"}
# A sign separated from its number, where nothing before it could be subtracted from.
_NEGATIVE = re.compile(
    r"(?:(?P<lead>^|[=≈:(<>{\[,]|\b(?i:is|are|was|were|be|equals|equal to|to|of|at|gives?|gets?|got"
    r"|have|has|had|so|thus|hence|then|therefore|yields?|obtain|find|by|than|from|exactly|about|only"
    r"|and|or))(?P<gap> ?)(?:- +|-(?=\()|(?i:minus) +)|(?i:\bnegative) +)(?=[0-9.])"
)
_POSITIVE = re.compile(r"(^|[=≈:(] ?)\+ +(?=[0-9.])")
_UNIT_POWER = re.compile(
    r"(?:(?<=[A-Za-z]{2})|(?<=[0-9] [A-Za-z])|(?<=[0-9][A-Za-z])|(?<=/[A-Za-z]))\^\{?-?[0-9]\}?"
)
_UNIT_ONLY = re.compile(r" ?[a-z°/]*(?: [a-z]+){0,2} ?[.!]?")
_COPULA_BEFORE_NUMBER = re.compile(
    r"(?<!which )(?<!that )(?<!there )(?<!who )\b(?:is|are|was|were|be|becomes|gives|yields)\b"
    r"(?! (?:given|shown|found) )(?=[^0-9=]{0,30}[0-9])"
)
EQUALS = re.compile(
    r"[=≈\\eE](?:(?<==)(?<![<>!=]=)=*+|(?<=≈)|(?<=\\)approx(?![A-Za-z])"
    r"|(?<=\b[eE])quals?\b(?: to\b)?)"
)
_OPERATED = re.compile(
    r"[+*/^!√|<>·×÷]|(?:^|\s)-|[0-9] ?\(|[0-9] ?(?![Aa] )[A-Za-z](?![A-Za-z])"
    r"|\b[A-Za-z]-[A-Za-z0-9]\b"
    r"|\\(?:frac|sqrt|times|cdot|div|pm|log|ln|sin|cos|tan)|\b(?:sqrt|log|ln|sin|cos|tan|half|twice"
    r"|double|triple|squared?|cubed?|roots?|of [a-z]$|plus|minus|times|divided|percent)\b|%",
)
_LONE_LETTER = re.compile(r"(?<![A-Za-z'\\])[A-Za-z](?![A-Za-z'])")
_ARTICLE = re.compile(r"(?<![^\s(])[Aa](?= [A-Za-z]{2})")
_PRODUCT = re.compile(r"[a-z]{2}")  # two variables
_POWER_OF_NAME = re.compile(r"[A-Za-z)}] ?\^|\\(?:[a-z]*theta|alpha|beta|gamma|lambda|mu|phi)\b")
_CHANGING_BRACKET = re.compile(
    r" \((?i:(?:or|and|but|maybe|perhaps|possibly|not|wrong|incorrect|if|times|in|to the|plus|minus"
    r"|×|\*|\?)\b[^)]*(?:[0-9]|wrong|right|sure|hundred|thousand|million|billion|dozen)|not\)"
    r"|wrong|incorrect|\?|hundreds?\b|thousands?\b|millions?\b|billions?\b|dozens?\b|maybe|×)"
)
_COMPARED = re.compile(r"\b(?:or|not|than|less|greater|more)\W*$")  # "less than or equal to"
_NEXT_EQUATION = re.compile(r";|, ?[A-Za-z\\]|\b(?:and|or)\b")
_WORD = re.compile(r"[^\W\d_]{2}")
_JOINING = re.compile(
    r"\b(?:and|or|(?<!according )(?<!due )(?<!thanks )to|plus|minus|times|divided)\b"
    r"|^ ?(?:over|by)\b|[:+*×^=]"
)
# One word between two numbers that does not relate them: "5 feet 6 inches" is not 5.
_COMPOUND = re.compile(
    r" ?(?!(?:in|of|for|per|at|from|on|over|every|each|out|after|by|with|than|as)\b)[a-z]+,? "
)
# Words that turn a number into another one: "more than 5", "5 or more".
_CHANGING = re.compile(
    r"(?i:\b(?:more|less|fewer|greater|larger|smaller) than|\bat (?:least|most)|\bup to"
    r"|\bor (?:more|less|fewer)|\band (?:a|one) [a-z]+)\b"
)
_SECOND = re.compile(
    rf"\b(?:or|and|to|plus|minus|times)\b[ ,]*(?:(?:maybe|perhaps|possibly|even|else)[ ,]+)?"
    rf"(?:{NUMBER_WORDS})\b|\bor\b\W*(?:(?:[a-z]+ )?[-+]?\.?[0-9]|$)",
    re.IGNORECASE,
)
_BUT = re.compile(r"\bbut\b")
_GLUED = re.compile(
    r"[A-Za-z]{1,3}[0-9]{2}|^ ?(?:h|hrs?|min|m|s)[0-9]|^[!‰‱]|^[aA](?![A-Za-z])"
    r"|^ ?(?:per (?:mill?e|thousand|hundred|million)|bps)\b"
)
# What may not be next to a number that counts by itself: signs, LaTeX, variables.
_MATHEMATICS = re.compile(
    r"[+*^_<>=×÷·±√∛∞π≤≥≠|~{}\\]|[-/](?! ?[A-Za-z])"
    r"|(?<![A-Za-z'.])[b-fi-kn-rt-zXYZ](?![A-Za-z']|\.[A-Za-z])"
    r"|^[KMB]\b|\b(?:sqrt|pi|root|squared|cubed|factorial|log|ln|sin|cos|tan|mod)\b|[A-Za-z]{3}[0-9]"
)
_BEHIND = re.compile(
    r"\s*(?:[\^_*×÷·+<>≤≥\\{}|√±π∞]|/(?! *[A-Za-z]{2}))|\s+-\s*[0-9(]|\s+- [A-Za-z]\b|[:'’][0-9]|!"
    r"|[b-fi-kn-rt-zA-FI-KM-RT-Z](?![A-Za-z])|(?:h|hrs?|m|min|s)[0-9]|-[A-Za-z]|\s*‰"
)
_COPULA = re.compile(r"\b(?:is|are|was|were|be|equals?|get|got|comes|becomes|left)\b")
_LIST_BEFORE = re.compile(
    r"(?:[0-9.]+, ?){2}(?:and |or )?$|[0-9],$|(?:^|[=:({\[]) ?[-+]?[0-9.]+, ?$"
    r"|[0-9][%)]? ?,? (?:and|or) (?:[A-Za-z] ?= ?)?$"
)
_QUESTIONED = re.compile(r"[^.!?;\n]{0,40}\?")
_EQUATION_BEFORE = re.compile(r"[=≈] ?$")
_RUN_BEFORE = re.compile(
    r"(?:(?<![A-Za-z'])[a-z]{2}(?= ?[=≈])|(?<![A-Za-z'])[A-Za-z](?![A-Za-z])|\\[A-Za-z]+"
    r"|[^A-Za-z;])*$"
)
_RANGE = re.compile(r"(?:^|\s)[0-9.,]+-$")
_LETTER_OPERAND = re.compile(
    r"\\(?!therefore|implies|[Rr]ightarrow|to\b)[A-Za-z]+$"
    r"|(?:sqrt|log|ln|sin|cos|tan|exp)(?:_\{?[A-Za-z0-9]{1,5}\}?)?$|(?<![A-Za-z'])[B-HJ-Zb-hj-z]$(?<![0-9]m)"
)
_BULLET = re.compile(r"^[-*•] |^[0-9]{1,2}[.)] (?=[^ ])")  # also "2." before a step


def read_number(plain: str, choices: Choices = ()) -> Reading | None:
    """The number that a text states; unusable (no keys) if there is more than one number.

    Words may surround it, and a second number may only come after words ("72 clips in 2 months").
    None if the text names a number that is not its answer ("the same as in step 5").
    """
    whole = _number_syntax(plain)
    text = _stated(whole)
    result = _result(text)
    if result is None:
        return Reading(shorten(plain))
    first = _NUMBER.search(result)
    if first is None:
        spelled = with_digits(result)
        return read_number(spelled) if spelled else None
    before, after = result[: first.start()], result[first.end() :]
    if residue.ends_in_guess(whole.removesuffix(text)):
        return None
    if before and (
        before.count(" ") > 5  # this far from the cue it is probably a step
        or residue.NEGATION.search(before)
        or residue.governs(before)
        or residue.is_guess(before)
        or residue.operates(before)
    ):
        return None
    if residue.labels(after):
        return None
    if _is_changed(before) or (after and _is_another(result, first)):
        return Reading(shorten(plain))
    return _number_reading(first) or Reading(shorten(plain))


def _is_another(text: str, number: re.Match[str]) -> bool:
    """Whether the text after a number changes it or names a second answer."""
    second = _NUMBER.search(text, number.end())
    after = text[number.end() :]
    between = text[number.end() : second.start()] if second else after
    if second and residue.is_contrast(between):  # "5, not 6"
        return False
    return bool(
        (second and _is_joined(between))
        or (second and number["percent"] and re.match(r" ?of\b", between))
        or _is_changed(between)
        or _GLUED.search(after)
        or _SECOND.search(after)
        or (second and _BUT.search(between))
        or residue.scales(after)
        or _CHANGING_BRACKET.search(after)
        or residue.is_hedged(after)
        or residue.NEGATION.search(between)
    )


def _stated(text: str) -> str:
    """The text after the last "is" of a sentence that does not begin with its number.

    "when x = 3 the value is 7" states 7; "the length is 5 and the width is 6" is unchanged.
    """
    first = _NUMBER.search(text)
    if first is None or not _WORD.search(text, 0, first.start()):
        return text
    found = deque(_COPULA_BEFORE_NUMBER.finditer(text), maxlen=1)
    if not found:
        return text
    before = text[: found[0].start()]
    numbers = deque(_NUMBER.finditer(before), maxlen=1)
    if numbers and re.search(r"\b(?:and|or|but|while)\b|[;:]", before[numbers[0].end() :]):
        return text
    return text[found[0].end() :]


def _is_joined(between: str) -> bool:
    """Whether the text between two numbers makes them one value or two answers."""
    return bool(
        not _WORD.search(between) or _JOINING.search(between) or _COMPOUND.fullmatch(between)
    )


def _is_changed(beside: str) -> bool:
    return bool(beside) and bool(_MATHEMATICS.search(beside) or _CHANGING.search(beside))


def _number_syntax(plain: str) -> str:
    """Rewrite fractions, powers of units and signed words so that one pattern can read them."""
    if "\\" in plain:
        plain = plain.replace("\\approx", "≈")
        plain = " ".join(_LATEX_FRACTION.sub(_slashed, plain).split())
    plain = _CURRENCY.sub(" ", plain).strip()
    if "-" in plain or "egative" in plain or "inus" in plain:
        plain = _NEGATIVE.sub(lambda sign: f"{sign['lead'] or ''}{sign['gap'] or ''}-", plain)
    if "+ " in plain:
        plain = _POSITIVE.sub(r"\1", plain)
    if " x " in plain:
        plain = _TIMES.sub("×", plain)
    if " and " in plain:
        plain = _AND_A_HALF.sub(lambda found: _PART[found[1]], plain)
    return _UNIT_POWER.sub("", plain).strip("{} ")


def _slashed(fraction: re.Match[str]) -> str:
    """`\frac{1}{2}` as `1/2`, separated from a whole number before it."""
    before = fraction.string[fraction.start() - 1 : fraction.start()]
    top, bottom = fraction[1] or fraction[2], fraction[3] or fraction[4]
    return f"{' ' if before.isalnum() else ''}{top}/{bottom}"


def _result(text: str) -> str | None:
    """The side of an equation that is its result; None for an equation that is not solved yet.

    The text itself if it has no equation or several.
    """
    if any(sign in text for sign in ("=", "≈", "\\", "qual")):  # most texts contain none of them
        parts = EQUALS.split(text)
        if len(parts) > 1:
            if any(_COMPARED.search(part) for part in parts[:-1]):
                return None
            if any(_NEXT_EQUATION.search(part) for part in parts[1:-1]):
                return text
            signs = [sign[0] for sign in EQUALS.finditer(text)]
            chosen = _chosen_side(parts, signs)
            if chosen is None:
                return None
            text = chosen.strip()
    bracket = text.find(" (")
    if (
        bracket > 0
        and _DIGIT.search(text, 0, bracket)
        and not _CHANGING_BRACKET.match(text, bracket)
    ):
        return text[:bracket]
    return text


def _chosen_side(parts: list[str], signs: list[str]) -> str | None:
    """The last side that is one number; for `1/3 ≈ 0.33` the first, since it is exact."""
    values = [exact_number(part.strip()) for part in parts]
    numbers = [value.shown for value in values if value]
    approximate = "≈" in signs
    if len(numbers) == len(parts) and len(set(numbers)) > 1 and not approximate:
        return None  # 10 = 5
    with_digits = [index for index, part in enumerate(parts) if _DIGIT.search(part)]
    if not with_digits:
        return parts[-1]
    chosen = with_digits[-1]
    if chosen > 0 and signs[chosen - 1] == "≈" and values[chosen - 1]:
        chosen -= 1
    elif values[chosen] is None and any(values):
        chosen = max(index for index, value in enumerate(values) if value)
    if _is_name(parts[0]) or (chosen < len(parts) - 1 and _is_name(parts[-1])):
        return parts[chosen]
    others = [part for index, part in enumerate(parts) if index != chosen]
    return None if any(_is_unknown(part, parts[chosen]) for part in others) else parts[chosen]


def _is_name(side: str) -> bool:
    """Whether a side only names the value of the other: `x`, `f(3)`, `Cost of 3 books`, nothing."""
    operated = _OPERATED.search(side) or _PRODUCT.fullmatch(side.strip())
    return not operated and exact_number(side.strip()) is None


def _is_unknown(side: str, result: str) -> bool:
    """Whether a side contains a variable; a letter on both sides is a unit."""
    letters = set(_LONE_LETTER.findall(_ARTICLE.sub("", side)))
    return bool(
        _POWER_OF_NAME.search(side)
        or _PRODUCT.fullmatch(side.strip())
        or letters - set(_LONE_LETTER.findall(result))
    )


def _number_reading(number: re.Match[str]) -> Reading | None:
    """The value of a match of `_NUMBER`; None if it is too large to handle or has no value."""
    value = _value(number)
    if value is None:
        return None
    shown = shown_number(value)
    if number["percent"] is None:
        return Reading(shown, frozenset([value, f"={shown}"]))
    # The data set decides whether a truth without the sign is in percent or in shares, so both
    # are accepted.
    return Reading(f"{shown}%", frozenset([value, Fraction(value) / 100, f"{shown}%"]))


def shown_number(value: Fraction | int) -> str:
    """The finite decimal if there is one, otherwise `1/3`."""
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
        return None  # "5 and 3/2" is two answers, not a mixed number
    value = _unsigned(number["over"] or number["top"] or number["decimal"] or "1")
    if bottom:
        value = Fraction(value) / _unsigned(bottom)
    if number["whole"]:
        value += _unsigned(number["whole"])
    if exponent:
        value *= Fraction(10) ** exponent
    return -value if number["sign"] == "-" else value


def _unsigned(digits: str) -> Fraction | int:
    # An integer equals its fraction, also as a key, and is created ten times faster.
    whole, _, decimals = _GROUPING.sub("", digits).partition(".")
    return Fraction(int(whole + decimals), 10 ** len(decimals)) if decimals else int(whole)


def _decimal(value: Fraction | int) -> str | None:
    """The finite decimal of a value; None if there is none."""
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
    """The number that makes up the whole text."""
    number = _NUMBER.fullmatch(_number_syntax(plain).removesuffix("."))
    return _number_reading(number) if number else None


def last_number(line: str, choices: Choices) -> Reading | None:
    """The last number of a line; `NO_READING` if it is denied or part of an expression."""
    plain = plain_text(line).lstrip("> ")
    text = _number_syntax(_BULLET.sub("", plain, count=1))
    numbers = deque(_NUMBER.finditer(text), maxlen=1)
    if not numbers:
        return exact_number(with_digits(plain) or "")
    if plain[:2] == "- " and not _WORD.search(plain):
        return NO_READING  # a bullet or a sign
    number = numbers[0]
    before, after = text[: number.start()], text[number.end() :]
    if _BEHIND.match(after) or residue.scales(after) or residue.labels(after):
        return NO_READING
    said = residue.reasoned(before)
    if said is not None and number[0].strip() not in said:
        return NO_READING  # "7, since 6 is even"
    if _says_something_else(before) or _LIST_BEFORE.search(before):
        return NO_READING
    if _is_denied(before, after) or residue.operates(before) or residue.names_a_place(before):
        return NO_READING
    if residue.counts_all(before) and _NUMBER.search(residue.last_clause(before)):
        return NO_READING  # "14 days to finish all 3 jobs"
    if _EQUATION_BEFORE.search(before):
        run = _RUN_BEFORE.search(before)
        equation = read_number(f"{run[0] if run else ''}{number[0]}".strip())
        return equation if equation and equation.keys else NO_READING
    if _is_operand(before, number[0], after):
        return NO_READING
    return _number_reading(number) or Reading(shorten(number[0]))


def _is_denied(before: str, after: str) -> bool:
    """Whether the clause with a last number says that it is not the answer."""
    clause = residue.last_clause(before)
    return bool(
        residue.NEGATION.search(_after_number(clause))
        or ("answer" in clause and residue.is_guess(clause))
        or residue.is_retracted(after)
        or residue.denies_next(before)
        or _QUESTIONED.match(after)
    )


def _says_something_else(before: str) -> bool:
    """Whether a clause only describes the answer: "it has 5 digits", "lies between 4 and 5"."""
    clause = re.split(r"[.:=,]", before)[-1]
    _, cue, rest = clause.rpartition("answer")
    described = bool(cue) and _WORD.search(rest) is not None and not _COPULA.search(rest)
    return described or "between" in clause.split()[-4:]


def _after_number(clause: str) -> str:
    """The text after the last number of a clause, unless "or" extends its negation to both."""
    numbers = deque(_NUMBER.finditer(clause), maxlen=1)
    if not numbers or re.fullmatch(r"\W*(?:or|nor|and)\W*", clause[numbers[0].end() :]):
        return clause
    return clause[numbers[0].end() :]


def _is_operand(before: str, number: str, after: str) -> bool:
    """Whether a last number is an operand, or part of a time, a pair or a formula."""
    left = before.rstrip()
    if _RANGE.search(before):
        return False
    if number[0] in "+-" and left and (left[-1].isdigit() or left[-1] in ")}]"):
        return True  # 10 -5
    if left[-1:] in ("(", "["):
        return not (after.lstrip()[:1] in (")", "]") and left[-2:-1] in ("", " "))
    if left.endswith(":"):
        return before.endswith(":") and left[-2:-1].isdigit()
    opened = max(map(before.rfind, "([{"))
    if opened > max(map(before.rfind, ")]}")) and not _WORD.search(before, opened):
        return True  # (3, 5)
    return left[-1:] in tuple("^_*/×÷·+-<>≤≥\\{}|√±≠") or bool(_LETTER_OPERAND.search(left))


def canonical_number(answer: str, choices: Choices = ()) -> str:
    """`12.5`, or `1/3` without a finite decimal; ValueError for a text that is not a number."""
    reading = exact_number(plain_text(answer))
    if reading is None:
        raise ValueError(f"the number {answer!r} cannot be read: write digits only, such as 12.5")
    return reading.shown.rstrip("%")


def number_keys(canonical: str, choices: Choices = ()) -> Keys:
    """The keys that an answer must have to equal this number, which may have a percent sign."""
    shown = canonical.removesuffix("%")
    if shown != canonical:
        return frozenset([canonical, f"={shown}"])
    value = Fraction(canonical)
    return frozenset([value.numerator if value.denominator == 1 else value])


def is_lone_number(plain: str, choices: Choices, after: str) -> bool:
    """Whether a line is a number with at most a unit: "72 clips", but not "1. Set up the sum"."""
    text = _result(_number_syntax(plain)) or ""
    number = _NUMBER.match(text)
    return number is not None and _UNIT_ONLY.fullmatch(text, number.end()) is not None
