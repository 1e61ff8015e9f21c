"""The similarity of two texts, by runs of consecutive words or by the equations they contain.

shingles("Add 3 and 4.") -> {"add 3 and", "3 and 4"}
equations("So 3 + 4 = 7, and $7 \\times 2 = 14$.") -> ("3+4=7", "7*2=14")
"""

from __future__ import annotations

import re
from collections.abc import Sequence

SHINGLE_WORDS = 3
"""Length of the runs of words. Solutions of one question share nearly all single words."""

_WORD = re.compile(r"\w+(?:\.\d+)?")
_SIGNS = (
    ("\\times", "*"),
    ("\\cdot", "*"),
    ("\\div", "/"),
    ("×", "*"),
    ("·", "*"),
    ("÷", "/"),
    ("−", "-"),
    ("\\$", ""),
    ("$", ""),
    ("\\%", "%"),
    ("\\(", " "),
    ("\\)", " "),
)
_EQUATION = re.compile(r"([-+*/()\d.,% ]{1,200})=([-()\d.,% ]{1,40})")
_OPERATION = re.compile(r"\d[)%]*[-+*/]")


def shingles(text: str) -> frozenset[str]:
    """Every run of three words, without case and punctuation; for a shorter text all its words."""
    words = _WORD.findall(text.casefold())
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    return frozenset(" ".join(words[start : start + SHINGLE_WORDS]) for start in range(last))


def similarity(first: frozenset[str], second: frozenset[str]) -> float:
    """The Jaccard index, the intersection over the union, in [0, 1]."""
    either = len(first | second)
    return len(first & second) / either if either else 1.0


def equations(text: str) -> tuple[str, ...]:
    """The equations of a solution in order, each with its left side and its value.

    RFT distinguishes solutions in this way (arXiv 2308.01825, section 3.3).
    """
    for written, sign in _SIGNS:
        text = text.replace(written, sign)
    found = []
    for left, right in _EQUATION.findall(text):
        # A comma or a full stop of the prose before it may be left.
        sides = [re.sub("[ ,]", "", side).strip(".") for side in (left, right)]
        if _OPERATION.search(sides[0]) and any(char.isdigit() for char in sides[1]):
            found.append("=".join(sides))
    return tuple(found)


def most_diverse(texts: Sequence[str], number: int) -> list[int]:
    """Positions of this many texts that are unlike each other, beginning with the first text.

    This is greedy: the next text is the one whose most similar chosen text is least similar; among
    equals it is the first.
    """
    sets = [shingles(text) for text in texts]
    taken: list[int] = []
    nearest = [-1.0] * len(sets)
    while len(taken) < min(number, len(sets)):
        left = (position for position in range(len(sets)) if position not in taken)
        best = min(left, key=lambda position: (nearest[position], position))
        taken.append(best)
        nearest = [
            max(near, similarity(own, sets[best])) for near, own in zip(nearest, sets, strict=True)
        ]
    return taken
