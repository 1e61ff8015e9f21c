"""How alike two texts are: by their words in a row, or by the equations that they work out.

shingles("Add 3 and 4.") -> {"add 3 and", "3 and 4"}
equations("So 3 + 4 = 7, and $7 \\times 2 = 14$.") -> ("3+4=7", "7*2=14")
"""

from __future__ import annotations

import re
from collections.abc import Sequence

SHINGLE_WORDS = 3
"""Words in a row that are compared. Solutions of one question share nearly all single words."""

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
    """Each three words in a row, without case and punctuation; of a shorter text all its words."""
    words = _WORD.findall(text.casefold())
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    return frozenset(" ".join(words[start : start + SHINGLE_WORDS]) for start in range(last))


def similarity(first: frozenset[str], second: frozenset[str]) -> float:
    """The Jaccard index: what both have over what either has, in [0, 1]."""
    either = len(first | second)
    return len(first & second) / either if either else 1.0


def equations(text: str) -> tuple[str, ...]:
    """The equations of a solution, in their order: a sum of numbers, its sign and its value.

    What tells two solutions apart in RFT (arXiv 2308.01825, section 3.3).
    """
    for written, sign in _SIGNS:
        text = text.replace(written, sign)
    found = []
    for left, right in _EQUATION.findall(text):
        # Of prose before it there may be left a comma or a full stop.
        sides = [re.sub("[ ,]", "", side).strip(".") for side in (left, right)]
        if _OPERATION.search(sides[0]) and any(char.isdigit() for char in sides[1]):
            found.append("=".join(sides))
    return tuple(found)


def most_diverse(texts: Sequence[str], number: int) -> list[int]:
    """Positions of so many texts that are unlike each other, the first text first.

    Greedy: each next one is that whose most similar neighbour among those taken is least similar;
    of equals the first.
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
