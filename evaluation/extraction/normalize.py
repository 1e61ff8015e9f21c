"""Plain text without markdown, without LaTeX that only affects the layout, in plain characters.

    plain_text(r"**\\text{72}** km")  ->  "72 km"

Answers of every type are read from such a text, and so is the truth, so both are treated equally.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

MAX_LINE_LENGTH = 2_000

Choices = tuple[str, ...]
Keys = frozenset[Fraction | int | str]


class Reading(NamedTuple):
    """An answer that was found: its text, and every truth that it would equal (possibly none)."""

    shown: str
    keys: Keys = frozenset()

    @property
    def settles(self) -> bool:
        """Whether it is an answer at all; `NO_READING` only ends the search for one."""
        return bool(self.shown)


NO_READING = Reading("")
"""The text is not an answer, and nothing before it may count as one: "it is not 5"."""


_FRACTIONS = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5",
    "⅗": "3/5", "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8",
}  # fmt: skip
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("−﹣－–", "-"),
        **dict.fromkeys("\u00a0\u2009\u202f\u2007\u3000", " "),
        **dict.fromkeys("“”„", '"'),
        **dict.fromkeys("‘’", "'"),
        **dict.fromkeys("\u200b\ufeff", None),
        **{sign: f" {value}" for sign, value in _FRACTIONS.items()},
        "⁄": "/",
        "，": ",",
        "٬": ",",
        "٫": ".",
        "％": "%",
        "：": ":",
        "＝": "=",
        "（": "(",
        "）": ")",
    }
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_RAISED = re.compile(r"[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")  # such as Arabic digits
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|tt|sf|normal)?|math(?:bf|it|rm|tt|sf)|mbox|emph|operatorname|underline"
    r"|boldsymbol|boxed|fbox)\s*+\{([^{}]*+)\}"
)
_LATEX_NOTHING = re.compile(
    r"\\! *|\\(?:left|right|displaystyle)(?![A-Za-z])|\\(?:boxed|fbox)(?![A-Za-z])\s*+\{?"
)
_DEGREES = re.compile(r"\^? ?\{? ?\\(?:circ|degree)(?![A-Za-z]) ?\}?")
_LATEX_SPACE = re.compile(r"\\(?:[,;: ()\[\]]|q?quad(?![A-Za-z]))")
_ESCAPED = re.compile(r"\\([$%&#_{}])")
_FRACTION_NAME = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_BOLD = re.compile(
    r"(?<![\w)*])(?<![0-9)] )\*{1,3}(?=[^\s*])|\*{2,3}(?! ?[0-9])|(?<=\S)\*(?=[.,;:!?)]|$)"
)
_EMPHASIS = re.compile(r"(?<![\w\\])_{1,3}(?=[^\s_])|(?<=[^\s_\\])_{1,3}(?![\w{\\])")
_SYMBOL_SPACE = re.compile(r"(?<=[a-z])\.(?= )|(?<=[^\w\s.]) | (?=[^\w\s])")
_OUTER = " .,;:?!\"'_¡¿…"
_ARTICLE = re.compile(r"\b(?:an?|the) (?=[^\W\d_])")


def plain_text(text: str) -> str:
    """The text without markdown and without LaTeX that only affects the layout."""
    text = text[:MAX_LINE_LENGTH].replace("`", "").replace("~", " ")
    if not text.isascii():
        text = unicode_signs(text)
    if "\\" in text:
        text = _DEGREES.sub("", text)  # before `\text{C}` becomes a part of its name
        for _ in range(3):  # \textbf{\text{B}}
            text = _WRAPPER.sub(r"\1", text)
        text = _LATEX_SPACE.sub(" ", _LATEX_NOTHING.sub("", text))
        text = _FRACTION_NAME.sub(r"\\frac", _ESCAPED.sub(r"\1", text))
    if "*" in text:
        text = _BOLD.sub("", text)
    if "_" in text:
        text = _EMPHASIS.sub("", text)
    text = text.replace("{,}", ",").replace("-$", "-").replace("$", " ")
    return " ".join(text.split()).rstrip("\\")


def normalize(plain: str) -> str:
    """The form that equal texts share; brackets are kept, since an answer may consist of them."""
    text = _ARTICLE.sub("", _SYMBOL_SPACE.sub("", plain.casefold()))
    inner = text.strip(_OUTER)
    if inner[-1:].isdigit() and f"{inner}!" in text:
        inner += "!"  # a factorial
    return inner.replace(";", ",") or text


def unicode_signs(text: str) -> str:
    """Signs and digits outside ASCII as their ASCII equivalents: `10⁻³` as `10^{-3}`."""
    text = _OTHER_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text)
    return _RAISED.sub(_caret, text).translate(_SIGNS)


def _caret(raised: re.Match[str]) -> str:
    digits = raised[0].translate(_SUPERSCRIPTS)
    return f"^{digits}" if len(digits) == 1 else f"^{{{digits}}}"


def shorten(text: str) -> str:
    """The excerpt that is shown of a text that could not be read."""
    return text.strip()[:MAX_LINE_LENGTH]
