r"""The grader: reads an answer out of a model's text and judges it against the truth.

The training filter and the reported score both call `grade`, so the two can never disagree.
Model text is data: nothing in it raises, whatever it holds, and every search is linear or bounded.

    grade(r"48 + 24 = 72, so \boxed{72}.", question, read_last=False)
    -> Grade(predicted="72", verdict=Verdict.CORRECT, read_as=ReadAs.BOXED)

A text is read in three steps, and the first that finds something decides: the last filled box, the
last clear phrase ("the answer is X", "Answer: X", "#### X"), and, only where `read_last` asks for
it, the last value of the wanted type. Reading never looks at the truth, so `predicted` may be
counted as a vote on questions that have none.
"""

from __future__ import annotations

import enum
import re
import string
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from evaluation.question import AnswerType, Question

GRADER_VERSION = "1"

# Far below the 4,300 digits at which Python's own int() and str() refuse.
MAX_NUMBER_LENGTH = 1_000
MAX_EXPONENT = 400
MAX_LINE_LENGTH = 2_000
MAX_TAIL = 20_000  # characters in which phrases are looked for
MAX_TRIED = 50  # boxes, phrases or lines, from the end


class Verdict(enum.StrEnum):
    """How an answer was judged. `error`: the truth itself is none its type can hold."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    TRUNCATED = "truncated"
    ERROR = "error"


class ReadAs(enum.StrEnum):
    """Where in the text the answer was found."""

    BOXED = "boxed"
    PHRASE = "phrase"
    LAST = "last"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Grade:
    """`predicted` is canonical where the answer could be read as its type, else the text found.

    A number with a percent sign keeps it, and one without a finite decimal is given as `1/3`.
    """

    predicted: str | None
    verdict: Verdict
    read_as: ReadAs


class _Reading(NamedTuple):
    """An answer that was found: how to show it, and every truth it would equal (maybe none)."""

    shown: str
    keys: frozenset[Fraction | str] = frozenset()


class _Option(NamedTuple):
    letter: str
    text: str
    normalized: str
    values: frozenset[Fraction | str]


# Patterns. Possessive repeats (`++`) keep each search linear on text made to be slow. Those that
# run over whole texts open with a plain set of characters, since `re` skips to those ten times
# faster than it tries a pattern; what must stand before is then looked up behind.

_WHOLE = r"(?:[1-9][0-9]{0,2}(?:[, ][0-9]{3}(?![0-9]))++|[0-9]++)"
_UNSIGNED = rf"(?:{_WHOLE}(?:\.[0-9]++)?|\.[0-9]++)"
_TO_THE = r"10\ ?\^\ ?\{?\ ?"
_NUMBER = re.compile(
    rf"""(?=[-+.0-9])(?<![A-Za-z0-9_])(?P<sign>(?<![)\]}}%])[-+])?
    (?: (?P<whole>{_WHOLE})\ (?P<over>[0-9]++)\ ?/\ ?(?P<under>[0-9]++)            # 1 1/2
      | (?P<top>{_UNSIGNED})\ ?/\ ?(?P<bottom>{_UNSIGNED})                          # 1/2
      | {_TO_THE}(?P<ten>[-+]?[0-9]++)\ ?\}}?                                       # 10^5
      | (?P<decimal>{_UNSIGNED})                                                    # 1,000.5
        (?: [eE](?P<exponent>[-+]?[0-9]++)(?![0-9A-Za-z])                           # 1.5e3
          | \ ?(?:×|\*|x|\\times|\\cdot)\ ?{_TO_THE}(?P<power>[-+]?[0-9]++)\ ?\}}? )?  # 1.5 x 10^3
    )
    (?P<percent>\ ?%|\ per\ ?cent\b)?
    (?P<scale>\ (?i:hundred|thousand|million|billion|trillion)\b)?""",
    re.VERBOSE,
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_DIGIT = re.compile(r"[0-9]")
_GROUPING = re.compile(r"[, ]")
_LATEX_FRACTION = re.compile(
    rf"\\frac ?(?:\{{ ?(-?{_UNSIGNED}) ?\}}|([0-9])) ?(?:\{{ ?({_UNSIGNED}) ?\}}|([0-9]))"
)
_CURRENCY = re.compile(r"[RU€£¥₹](?:(?<=\bR)s\.?|(?<=\bU)SD|(?<=[€£¥₹]))(?= ?[0-9.])")
_NEGATIVE = re.compile(r"[-mMnN](?:(?<=^-)|(?i:(?<=\bm)inus|(?<=\bn)egative)) +(?=[0-9.])")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])\^\{?-?[0-9]\}?")
_UNIT_ONLY = re.compile(r" ?[a-z°/]*(?: [a-z]+){0,2} ?[.!]?")
_EQUALS = re.compile(
    r"[=≈\\eE](?:(?<==)(?<![<>!=]=)=*+|(?<=≈)|(?<=\\)approx(?![A-Za-z])"
    r"|(?<=\b[eE])quals?\b(?: to\b)?)"
)
_NEXT_EQUATION = re.compile(r";|, ?[A-Za-z\\]|\b(?:and|or)\b")
_WORD = re.compile(r"[^\W\d_]{2}")
_JOINING = re.compile(r"\b(?:and|or|to|plus|minus|times|divided)\b|^ ?(?:over|by)\b|[:+*×^=]")
# What may not stand beside a number that is to count for itself: signs, LaTeX, variables.
_MATHEMATICS = re.compile(
    r"[+*^_<>=×÷·±√∛∞π≤≥≠|~{}\\]|[-/](?! ?[A-Za-z])"
    r"|(?<![A-Za-z'.])[b-fi-kn-rt-zXYZ](?![A-Za-z']|\.[A-Za-z])"
    r"|\b(?:sqrt|pi|root|squared|cubed|factorial|log|ln|sin|cos|tan)\b|[A-Za-z]{3}[0-9]"
)
_BULLET = re.compile(r"[-*•] ")

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
_FILLER = re.compile(
    r"(?i:(?:therefore|thus|then|hence|either|likely|most|probably|clearly|simply|that)\b[ ,:]*)+"
)

_TRUTH_WORDS = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_BOOLEAN_HEAD = re.compile(r"[\W_]{0,3}(?P<word>(?i:yes|no|true|false))\b")
_BOOLEAN_INNER = re.compile(
    r"(?i:(?:it|this|that|is|was|would|be|a|the|statement|expression|result|therefore|thus|most"
    r"|likely|probably|clearly|definitely|simply|indeed)\b[ ,:]*){1,6}"
    r"[\W_]{0,3}(?P<word>(?i:yes|true|false|no(?! ?\w)))\b"
)
_BOOLEAN_SECOND = re.compile(r" ?(?:/|\||or\b|and\b) ?(?i:yes|no|true|false)\b")
_BOOLEAN_WORD = re.compile(r"(?<!not )\b(?:(?i:yes|true|false)|No|NO|no(?! [a-z]))\b")

_THINK_TAG = re.compile(r"</?think>")
_BRACE = re.compile(r"\\.|([{}])", re.DOTALL)
_BOX = re.compile(
    r"[bf](?:(?:(?<=\\b)oxed|(?<=\\f)box)"
    r"(?:\s*+(?=\{)| *(?=[-+$(]?[0-9]|\\frac|[A-Z]\b|(?i:yes|no|true|false)\b))"
    r"|(?<![A-Za-z\\]b)oxed(?=\{))"
)
_PHRASE = re.compile(
    r"""[\#nNpPhH](?i:
      (?P<mark>(?<=^\#)\#{3}(?!\#))
    | (?<=\bfinal[ ]an)swer[*_ \t]*(?=\n)
    | (?: (?<=\ban)swer(?:[ ]choice|[ ]option)?
        | (?:(?<=correct[ ]op)|(?<=right[ ]op)|(?<=best[ ]op))tion
        | (?:(?<=correct[ ]ch)|(?<=right[ ]ch)|(?<=best[ ]ch))oice )
      (?:[ ]\([^()\n]{1,40}\))?(?:[ ](?:to|for)[ ][^.:\n]{1,60}?)?
      (?:,?[ ](?:therefore|thus|then|hence|here|now|so),?)?[ \t*_"')\]}]{0,8}
      (?:(?:is|was|are|equals|(?:would|should|must|will|has[ ]to)[ ]be)\b(?![ ]not\b)|[=:：]))""",
    re.VERBOSE | re.MULTILINE,
)
_PHRASE_GAP = re.compile(r"[\s:：*>`]*")
_SENTENCE_END = re.compile(r"[.!?](?=[ \"')]|$)")
_ABBREVIATIONS = frozenset(["mr", "mrs", "ms", "dr", "prof", "st", "rs", "no", "vs", "approx"])
_REASON = re.compile(r"[,;:]? (?:because|since|which|due to|as (?:it|he|she|they|we|the|shown))\b")
_REASONING = re.compile(
    r"(?i:let(?:'s| us| me)|step [0-9]|first,|firstly|to [a-z]+ (?:the|this|out|how|it|we)"
    r"|we (?:need|have|can|start|know|first|are|will)|if|because|since)\b"
)
_POINTER = re.compile(
    r"(?i:as (?:follows|shown|given)|(?:shown|given|found|obtained) (?:by|below|above|in|as)"
    r"|the following)\b|(?i:below|above|here)\W*$"
)

_SIGNS = str.maketrans(
    {
        **dict.fromkeys("−﹣－–", "-"),
        **dict.fromkeys("\u00a0\u2009\u202f\u2007\u3000", " "),
        **dict.fromkeys("“”„", '"'),
        **dict.fromkeys("‘’", "'"),
        **dict.fromkeys("\u200b\ufeff", None),
        "½": " 1/2",
        "¼": " 1/4",
        "¾": " 3/4",
        "⁄": "/",
        "％": "%",
        "：": ":",
        "＝": "=",
        "（": "(",
        "）": ")",
    }
)
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|tt|sf|normal)?|math(?:bf|it|rm|tt|sf)|mbox|emph|operatorname|underline"
    r"|boldsymbol|boxed|fbox)\s*+\{([^{}]*+)\}"
)
_LATEX_NOTHING = re.compile(
    r"\\!|\\(?:left|right|displaystyle)(?![A-Za-z])|\\(?:boxed|fbox)(?![A-Za-z])\s*+\{?"
    r"|\^? ?\{? ?\\(?:circ|degree)(?![A-Za-z]) ?\}?"
)
_LATEX_SPACE = re.compile(r"\\(?:[,;: ()\[\]]|q?quad(?![A-Za-z]))")
_ESCAPED = re.compile(r"\\([$%&#_{}])")
_FRACTION_NAME = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_BOLD = re.compile(
    r"(?<![\w)*])(?<![0-9)] )\*{1,3}(?=[^\s*])|\*{2,3}(?! ?[0-9])|(?<=\S)\*(?=[.,;:!?)]|$)"
)
_SYMBOL_SPACE = re.compile(r"(?<=[a-z])\.(?= )|(?<=[^\w\s.]) | (?=[^\w\s])")
_ARTICLE = re.compile(r"\b(?:an?|the) (?=[^\W\d_])")


def grade(text: str, question: Question, *, read_last: bool, finished: bool = True) -> Grade:
    """Judge one completion; `finished` is false where the token limit cut it off.

    A box or a phrase counts even in an unfinished text; the last value in it would be chance.
    """
    visible = _without_thinking(text)
    if visible is None:
        return Grade(None, Verdict.TRUNCATED, ReadAs.NOTHING)
    choices = tuple(question.choices)
    last = read_last and finished
    read_as, reading = _read(visible, question.answer_type, choices, last=last, finished=finished)
    if reading is None:
        nothing = Verdict.NO_ANSWER if finished else Verdict.TRUNCATED
        return Grade(None, nothing, ReadAs.NOTHING)
    truth = _truth_keys(question.answer, question.answer_type, choices)
    if not truth:
        return Grade(reading.shown, Verdict.ERROR, read_as)
    verdict = Verdict.WRONG if truth.isdisjoint(reading.keys) else Verdict.CORRECT
    return Grade(reading.shown, verdict, read_as)


def canonical_answer(answer: str, answer_type: AnswerType, choices: Sequence[str] = ()) -> str:
    """The one way to write this truth: `1000.5`, `B`, `yes`, or the stripped text.

    Raises ValueError, with the mend, for a truth its type cannot hold. A percent sign is dropped.
    """
    if not _plain(answer):
        raise ValueError(f"the answer {answer!r} is empty: give every question a truth")
    if answer_type == "number":
        return _canonical_number(answer)
    if answer_type == "choice":
        return _canonical_choice(answer, tuple(choices))
    if answer_type == "boolean":
        word = answer.strip(" .!\"'\n\t").casefold()
        if word not in _TRUTH_WORDS:
            raise ValueError(f"the boolean answer {answer!r} is none: write yes, no, true or false")
        return _TRUTH_WORDS[word]
    return answer.strip()


def boxed_answer(question: Question) -> str:
    r"""The truth as the prompt asks for it, `\boxed{72}`; `grade` calls it correct."""
    answer = canonical_answer(question.answer, question.answer_type, question.choices)
    if question.answer_type == "text":
        if _has_loose_brace(answer):
            answer = _BRACE.sub(lambda brace: "\\" * bool(brace[1]) + brace[0], answer)
        if answer.endswith("\\"):
            answer += " "  # or the backslash would take the closing brace with it
    return f"\\boxed{{{answer}}}"


# ---------------------------------------------------------------------------- where to look


def _without_thinking(text: str) -> str | None:
    """The text outside `<think>` blocks; None where one never ends.

    A closing tag without an opening one ends a block that the chat template opened in the prompt.
    """
    if "think>" not in text:
        return text
    kept: list[str] = []
    start, inside = 0, False
    for tag in _THINK_TAG.finditer(text):
        closing = tag[0] == "</think>"
        if not inside and not closing:
            kept.append(text[start : tag.start()])
        elif not inside:
            kept.clear()
        if closing:
            start = tag.end()
        inside = not closing
    return None if inside else "".join([*kept, text[start:]])


def _read(
    text: str, kind: AnswerType, choices: tuple[str, ...], *, last: bool, finished: bool
) -> tuple[ReadAs, _Reading | None]:
    """The first of the three ways of reading that finds something, and what it finds."""
    for content in _boxes(text):
        plain = _plain(content)
        if plain:
            fits = len(content) <= MAX_LINE_LENGTH
            reading = _READERS[kind](plain, choices) if fits else None
            return ReadAs.BOXED, reading or _Reading(_shorten(content))
    found = _read_phrase(text, kind, choices, finished=finished)
    if found is not None:
        return ReadAs.PHRASE, found
    return ReadAs.LAST, _read_last(text, kind, choices) if last else None


def _boxes(text: str) -> Iterator[str]:
    """The contents of all closed boxes, the last one first."""
    if "box" not in text:
        return
    found = deque(_BOX.finditer(text), maxlen=MAX_TRIED)
    if not found:
        return
    closing = _closing_braces(text, found[0].start())
    for box in reversed(found):
        at = box.end()
        if text[at] != "{":
            yield text[at : at + MAX_LINE_LENGTH].split(maxsplit=1)[0].rstrip("$")
        elif at in closing:
            yield text[at + 1 : closing[at]]


def _closing_braces(text: str, start: int) -> dict[int, int]:
    """Where each opened brace is closed; one pass, so that nested boxes cost no more."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    for brace in _BRACE.finditer(text, start):
        if brace[1] == "{":
            opened.append(brace.start())
        elif brace[1] == "}" and opened:
            pairs[opened.pop()] = brace.start()
    return pairs


def _has_loose_brace(text: str) -> bool:
    braces = [found[1] for found in _BRACE.finditer(text) if found[1]]
    return len(braces) != 2 * len(_closing_braces(text, 0))


def _read_phrase(
    text: str, kind: AnswerType, choices: tuple[str, ...], *, finished: bool
) -> _Reading | None:
    """The last clear phrase that is followed by a value of the wanted type."""
    tail = max(len(text) - MAX_TAIL, 0)
    for phrase in reversed(deque(_PHRASE.finditer(text, tail), maxlen=MAX_TRIED)):
        start = _PHRASE_GAP.match(text, phrase.end()).end()  # type: ignore[union-attr]
        line = text[start : start + MAX_LINE_LENGTH].partition("\n")[0]
        if not finished and _BOX.search(line):
            continue  # a box that was cut off: `\boxed{7` may have been about to say 72
        plain = _plain(line)
        apart = phrase["mark"] is not None or "\n" in text[phrase.end() : start]
        if not plain or (kind != "choice" and _REASONING.match(plain)):
            continue
        if kind == "text" and _POINTER.match(plain):
            continue
        if apart and not _stands_alone(plain, kind, choices, text[start + len(line) :]):
            continue
        reading = _read_remainder(plain, kind, choices)
        if reading is not None:
            return reading
    return None


def _stands_alone(plain: str, kind: AnswerType, choices: tuple[str, ...], after: str) -> bool:
    """Whether a line is an answer and no heading or first step; needed where it stands apart.

    "#### 72" answers and "#### 1. Set up the sum" does not, nor does "Answer:" above a derivation.
    """
    if kind == "text":
        return not after.strip(" \n*$#")
    if kind == "number":
        result = _result(_number_syntax(plain))
        number = _NUMBER.match(result)
        return number is not None and _UNIT_ONLY.fullmatch(result, number.end()) is not None
    if kind == "choice":
        letter = _LETTERED.match(plain)
        rest = plain[letter.end() if letter else 0 :]
        return not rest or _match_option(rest, choices) is not None
    return True


def _read_remainder(plain: str, kind: AnswerType, choices: tuple[str, ...]) -> _Reading | None:
    """Read what follows a phrase; an option's text may hold a full stop or a "because"."""
    sentence = _first_sentence(plain)
    clause = _REASON.split(sentence, maxsplit=1)[0]
    if kind != "choice":
        return _READERS[kind](clause, choices)
    for extent in (plain, sentence, clause):
        reading = _read_choice(extent, choices)
        if reading is not None:
            return reading
    return None


def _first_sentence(text: str) -> str:
    for stop in _SENTENCE_END.finditer(text):
        word = text[: stop.start()].rpartition(" ")[2]
        if word.casefold() not in _ABBREVIATIONS:
            return text[: stop.start()]
    return text


def _read_last(text: str, kind: AnswerType, choices: tuple[str, ...]) -> _Reading | None:
    """The last value of the wanted type in the last line that holds one."""
    lines = (line for line in reversed(text.splitlines()[-MAX_TRIED:]) if line.strip())
    for line in lines if kind in _LAST_READERS else ():
        reading = _LAST_READERS[kind](_plain(line[-MAX_LINE_LENGTH:]), choices)
        if reading is not None:
            return reading
    return None


# ---------------------------------------------------------------------------- plain text


def _plain(text: str) -> str:
    """The text without markdown and without the LaTeX that only changes how it looks."""
    text = text[:MAX_LINE_LENGTH].replace("`", "").replace("~", " ")
    if not text.isascii():
        text = text.translate(_SIGNS)
    if "\\" in text:
        for _ in range(3):  # \textbf{\text{B}}
            text = _WRAPPER.sub(r"\1", text)
        text = _LATEX_SPACE.sub(" ", _LATEX_NOTHING.sub("", text))
        text = _FRACTION_NAME.sub(r"\\frac", _ESCAPED.sub(r"\1", text))
    if "*" in text:
        text = _BOLD.sub("", text)
    text = text.replace("{,}", ",").replace("-$", "-").replace("$", " ")
    return " ".join(text.split()).rstrip("\\")


def _normalize(plain: str) -> str:
    """What equal texts share; brackets are kept, as they may be all there is to an answer."""
    text = _ARTICLE.sub("", _SYMBOL_SPACE.sub("", plain.casefold()))
    return text.strip(" .,;:?\"'_") or text


def _shorten(text: str) -> str:
    return text.strip()[:MAX_LINE_LENGTH]


# ---------------------------------------------------------------------------- numbers


def _read_number(plain: str, choices: tuple[str, ...] = ()) -> _Reading | None:
    """The number a text states; unusable (no keys) if there is more to it than one number.

    Words may stand around it, a second number only after words ("72 clips in 2 months").
    """
    text = _result(_number_syntax(plain))
    first = _NUMBER.search(text)
    if first is None:
        return None
    second = _NUMBER.search(text, first.end())
    before = text[: first.start()]
    after = text[first.end() : second.start() if second else len(text)]
    if before.count(" ") > 5:
        return None  # so far from the cue it is more likely a step than the answer
    joined = second is not None and (not _WORD.search(after) or _JOINING.search(after))
    if joined or _MATHEMATICS.search(before) or _MATHEMATICS.search(after):
        return _Reading(_shorten(plain))
    return _number_reading(first) or _Reading(_shorten(plain))


def _number_syntax(plain: str) -> str:
    """Rewrite fractions, powers of units and signed words so that one pattern can read them."""
    if "\\" in plain:
        plain = _LATEX_FRACTION.sub(_slashed, plain)
    plain = _NEGATIVE.sub("-", _CURRENCY.sub(" ", plain).strip())
    return _UNIT_POWER.sub("", plain).strip("{} ")


def _slashed(fraction: re.Match[str]) -> str:
    """`\frac{1}{2}` as `1/2`, kept apart from a whole number before it."""
    before = fraction.string[fraction.start() - 1 : fraction.start()]
    top, bottom = fraction[1] or fraction[2], fraction[3] or fraction[4]
    return f"{' ' if before.isalnum() else ''}{top}/{bottom}"


def _result(text: str) -> str:
    """What stands after the last equals sign, unless that is one of several equations."""
    parts = _EQUALS.split(text)
    if len(parts) > 2 and any(_NEXT_EQUATION.search(part) for part in parts[1:-1]):
        return text
    result = next((part for part in reversed(parts) if _DIGIT.search(part)), text).strip()
    bracket = result.find(" (")
    return result[:bracket] if _DIGIT.search(result, 0, max(bracket, 0)) else result


def _number_reading(number: re.Match[str]) -> _Reading | None:
    """The value of a match of `_NUMBER`; None if it is too large to handle or has no value."""
    value = _value(number)
    if value is None:
        return None
    shown = _decimal(value) or f"{value.numerator}/{value.denominator}"
    if number["percent"] is None:
        return _Reading(shown, frozenset([value]))
    # Whether the truth counts in percent or in shares is for the data set to say: take both.
    return _Reading(f"{shown}%", frozenset([value, value / 100]))


def _value(number: re.Match[str]) -> Fraction | None:
    if len(number[0]) > MAX_NUMBER_LENGTH:
        return None
    exponent = int(number["exponent"] or number["power"] or number["ten"] or 0)
    if number["scale"]:
        exponent += _SCALES[number["scale"].strip().casefold()]
    bottom = _unsigned(number["bottom"] or number["under"] or "1")
    if abs(exponent) > MAX_EXPONENT or not bottom:
        return None
    value = _unsigned(number["over"] or number["top"] or number["decimal"] or "1")
    if bottom != 1:
        value /= bottom
    if number["whole"]:
        value += _unsigned(number["whole"])
    if exponent:
        value *= Fraction(10) ** exponent
    return -value if number["sign"] == "-" else value


def _unsigned(digits: str) -> Fraction:
    whole, _, decimals = _GROUPING.sub("", digits).partition(".")
    return (
        Fraction(int(whole + decimals), 10 ** len(decimals)) if decimals else Fraction(int(whole))
    )


def _decimal(value: Fraction) -> str | None:
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


def _exact_number(plain: str) -> _Reading | None:
    """The number that is the whole of a text."""
    number = _NUMBER.fullmatch(_number_syntax(plain).removesuffix("."))
    return _number_reading(number) if number else None


def _last_number(plain: str, choices: tuple[str, ...]) -> _Reading | None:
    numbers = deque(_NUMBER.finditer(_number_syntax(_BULLET.sub("", plain, count=1))), maxlen=1)
    return (_number_reading(numbers[0]) or _Reading(_shorten(numbers[0][0]))) if numbers else None


def _canonical_number(answer: str) -> str:
    reading = _exact_number(_plain(answer))
    if reading is None:
        raise ValueError(f"the number {answer!r} cannot be read: write digits only, such as 12.5")
    if "/" in reading.shown:
        raise ValueError(
            f"the number {answer!r} has no finite decimal: make its answer_type 'text'"
        )
    return reading.shown.rstrip("%")


# ---------------------------------------------------------------------------- choices


@lru_cache(maxsize=4096)
def _options(choices: tuple[str, ...]) -> tuple[_Option, ...]:
    options = []
    for letter, text in zip(string.ascii_uppercase, choices, strict=False):
        plain = _plain(text)
        number = _read_number(plain)
        values = number.keys if number else frozenset()
        options.append(_Option(letter, plain, _normalize(plain), values))
    return tuple(options)


def _read_choice(plain: str, choices: tuple[str, ...]) -> _Reading | None:
    """The letter, or the option whose text stands there; the letter wins where both do."""
    options = _options(choices)
    if len(plain) > 2:  # before letters: "A. Lincoln" and "a - b" may be the text of an option
        by_text = _match_option(plain, choices)
        if by_text is not None:
            return by_text
    filler = _FILLER.match(plain)
    plain = plain[filler.end() if filler else 0 :].strip("\"' ")
    letter = _leading_letter(plain, options)
    if letter is None:
        return _match_option(plain, choices)
    second = _SECOND_LETTER.match(plain)
    if second and second[1].upper() in {option.letter for option in options} - {letter}:
        return _Reading(_shorten(plain))
    return _Reading(letter, frozenset([letter]))


def _leading_letter(plain: str, options: Sequence[_Option]) -> str | None:
    """The option's letter a text begins with; "A dog" and "a dog" begin with an article."""
    found = _LETTERED.match(plain) or _LOOSE_LETTER.match(plain)
    if found is None:
        return None
    letter = found["letter"].upper()
    return letter if any(option.letter == letter for option in options) else None


def _match_option(plain: str, choices: tuple[str, ...]) -> _Reading | None:
    """The option a text equals: exactly, else normalised, else as a bare number."""
    options = _options(choices)
    same = [option for option in options if option.text == plain]
    if not same:
        normalized = _normalize(plain)
        same = [option for option in options if option.normalized == normalized]
    if not same:
        number = _exact_number(plain)
        same = [option for option in options if number and number.keys & option.values]
    if not same:
        return None
    if len({option.text for option in same}) > 1:  # as "Cc or cc" and "CC or Cc" for "cc or cc"
        return _Reading(_shorten(plain))
    return _Reading(same[0].letter, frozenset(option.letter for option in same))


def _last_choice(plain: str, choices: tuple[str, ...]) -> _Reading | None:
    """The last clear letter of a line, else the option's text that ends last in it."""
    options = _options(choices)
    letters = {option.letter for option in options}
    found = [match[match.lastindex or 0].upper() for match in _STANDALONE_LETTER.finditer(plain)]
    for letter in reversed(found):
        if letter in letters:
            return _Reading(letter, frozenset([letter]))
    line = _normalize(plain)
    best = max(options, key=lambda option: _end_and_length(option.normalized, line), default=None)
    if best is None or _end_and_length(best.normalized, line)[0] < 0:
        return None
    return _match_option(best.text, choices)


def _end_and_length(part: str, line: str) -> tuple[int, int]:
    """Where the last whole-word occurrence of a part ends in a line, -1 if there is none."""
    at = line.rfind(part)
    while at >= 0:
        end = at + len(part)
        if not (line[at - 1 : at].isalnum() or line[end : end + 1].isalnum()):
            return end, len(part)
        at = line.rfind(part, 0, end - 1)
    return -1, 0


def _canonical_choice(answer: str, choices: tuple[str, ...]) -> str:
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


# ---------------------------------------------------------------------------- booleans and texts


def _read_boolean(plain: str, choices: tuple[str, ...]) -> _Reading | None:
    """The yes or no a text opens with, behind a few words such as "it is" at most."""
    result = plain.rpartition("=")[2].strip() or plain
    found = _BOOLEAN_HEAD.match(result) or _BOOLEAN_INNER.match(result)
    if found is None:
        return None
    if _BOOLEAN_SECOND.match(result, found.end()):
        return _Reading(_shorten(plain))
    return _boolean_reading(found["word"])


def _boolean_reading(word: str) -> _Reading:
    canonical = _TRUTH_WORDS[word.casefold()]
    return _Reading(canonical, frozenset([canonical]))


def _last_boolean(plain: str, choices: tuple[str, ...]) -> _Reading | None:
    words = _BOOLEAN_WORD.findall(plain)
    return _boolean_reading(words[-1]) if words else None


def _read_text(plain: str, choices: tuple[str, ...]) -> _Reading | None:
    """The whole text; "y = 5" is also right where the truth is 5."""
    keys = _text_keys(plain)
    parts = _EQUALS.split(plain)
    if len(parts) == 2 and parts[1].strip():
        keys |= _text_keys(parts[1].strip())
    return _Reading(plain.strip(" \"'").removesuffix(".").strip() or plain, keys)


def _text_keys(plain: str) -> frozenset[Fraction | str]:
    number = _exact_number(plain)
    values = number.keys if number else frozenset()
    return values | {_normalize(plain)}


@lru_cache(maxsize=4096)
def _truth_keys(
    answer: str, kind: AnswerType, choices: tuple[str, ...]
) -> frozenset[Fraction | str]:
    """What an answer must equal to be right; empty if the truth is none its type can hold."""
    try:
        truth = canonical_answer(answer, kind, choices)
    except ValueError:
        return frozenset()
    if kind == "number":
        return frozenset([Fraction(truth)])
    return _text_keys(_plain(truth)) if kind == "text" else frozenset([truth])


_Reader = Callable[[str, tuple[str, ...]], _Reading | None]
_READERS: dict[AnswerType, _Reader] = {
    "number": _read_number,
    "choice": _read_choice,
    "boolean": _read_boolean,
    "text": _read_text,
}
_LAST_READERS: dict[AnswerType, _Reader] = {
    "number": _last_number,
    "choice": _last_choice,
    "boolean": _last_boolean,
}
