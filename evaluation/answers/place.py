r"""Where in a model's text the answer stands: outside its thinking, in a box, behind a phrase.

    boxes(r"\boxed{3}, no, \boxed{72}")  ->  "72", "3"

The first of these that holds something decides: the last filled box, the last `<answer>` tag, the
last clear phrase ("the answer is X", "Answer: X", "#### X"), and, only where it is asked for, the
last value of the wanted kind. Nothing here looks at the truth.
"""

from __future__ import annotations

import enum
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from evaluation.answers.plain import MAX_LINE_LENGTH, Choices, Keys, Reading, plain_text, shorten

MAX_TAIL = 20_000  # characters in which phrases are looked for
MAX_TRIED = 50  # boxes, phrases or lines, from the end


class ReadAs(enum.StrEnum):
    """Where in the text the answer was found."""

    BOXED = "boxed"
    PHRASE = "phrase"
    LAST = "last"
    NOTHING = "nothing"


class Kind(NamedTuple):
    """How answers of one type are read and compared."""

    name: str
    clean: Callable[[str], str]
    """What is done to a text before anything is read from it."""
    read: Callable[[str, Choices], Reading | None]
    """The answer that a cleaned text states."""
    read_last: Callable[[str, Choices], Reading | None]
    """The last answer in a line as it stands."""
    canonical: Callable[[str, Choices], str]
    """The one way to write a truth; ValueError for one that its type cannot hold."""
    keys: Callable[[str, Choices], Keys]
    """What the keys of a right reading share with a canonical truth."""
    stands_alone: Callable[[str, Choices, str], bool]
    """Whether a line that stands apart from its phrase is an answer, and no heading or step."""
    same: Callable[[str, str], bool] | None = None
    """Whether truth and reading, as texts, mean the same though their keys differ."""
    last_lines: Callable[[list[str]], list[str]] | None = None
    """The lines in which a last answer may stand; None: all."""


_THINK_TAG = re.compile(r"(?i:</?think(?:ing)?>)")
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
    | (?: (?<=\ban)swers?(?:[ ]choice|[ ]option)?
        | (?:(?<=correct[ ]op)|(?<=right[ ]op)|(?<=best[ ]op))tion
        | (?:(?<=correct[ ]ch)|(?<=right[ ]ch)|(?<=best[ ]ch))oice )
      (?:[ ]\([^()\n]{1,40}\))?(?:[ ](?:to|for)[ ][^.,:\n]{1,60}?)?
      (?:,?[ ](?:therefore|thus|then|hence|here|now|so),?)?[ \t*_"')\]}]{0,8}
      (?:(?:is|was|are|equals|(?:would|should|must|will|has[ ]to)[ ]be)\b(?![ ]not\b)|[=:：]))""",
    re.VERBOSE | re.MULTILINE,
)
_FORMULA = re.compile(
    r"\$\$([^$]++)\$\$|(?<!\\)\$([^$]++)\$|\\[(\[]((?:[^\\]|\\(?![)\]]))++)\\[)\]]"
)
_AND_OR = re.compile(r",? ?(?:and|or|,)? ?")
# Also the opening of a display whose formula begins on the next line.
_PHRASE_GAP = re.compile(r"(?:[\s:：*>`]|(?:\\\[|\$\$)(?=[ \t]*\n))*+")
_SENTENCE_END = re.compile(r"[.!?](?=[ \"')]|$)")
_SENTENCE_OVER = re.compile(r"[.!?][*\"')]*\s")
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


def without_thinking(text: str) -> str | None:
    """The text outside `<think>` blocks; None where one never ends.

    A closing tag without an opening one ends a block that the chat template opened in the prompt.
    """
    if ">" not in text or not _THINK_TAG.search(text):
        return text
    kept: list[str] = []
    start, inside = 0, False
    for tag in _THINK_TAG.finditer(text):
        closing = tag[0][1] == "/"
        if not inside and not closing:
            kept.append(text[start : tag.start()])
        elif not inside:
            kept.clear()
        if closing:
            start = tag.end()
        inside = not closing
    return None if inside else "".join([*kept, text[start:]])


def read_answer(
    text: str, kind: Kind, choices: Choices, *, last: bool, finished: bool
) -> tuple[ReadAs, Reading | None]:
    """The first way of reading that finds something, and what it finds."""
    for content in boxes(text):
        cleaned = kind.clean(content)
        if cleaned:
            fits = len(content) <= MAX_LINE_LENGTH
            reading = kind.read(cleaned, choices) if fits else None
            return ReadAs.BOXED, reading or Reading(shorten(content))
    found = _read_tag(text, kind, choices) or _read_phrase(text, kind, choices, finished=finished)
    if found is not None:
        return ReadAs.PHRASE, found
    return ReadAs.LAST, _read_last(text, kind, choices) if last else None


def find_answer(text: str, *, last: bool, finished: bool) -> tuple[ReadAs, str | None]:
    """The answer as it stands in the text, line breaks and all, for graders that know its form."""
    for content in boxes(text):
        if plain_text(content):
            return ReadAs.BOXED, content.strip()
    found = tagged(text) or _text_behind_phrase(text, finished=finished)
    if found:
        return ReadAs.PHRASE, found
    lines = text.strip().splitlines()
    return ReadAs.LAST, lines[-1].strip() if last and lines else None


def boxes(text: str) -> Iterator[str]:
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


def escape_loose_braces(answer: str) -> str:
    """The answer as it can stand in a box, which a loose brace or a last backslash would break."""
    braces = [found[1] for found in _BRACE.finditer(answer) if found[1]]
    if len(braces) != 2 * len(_closing_braces(answer, 0)):
        answer = _BRACE.sub(lambda brace: "\\" * bool(brace[1]) + brace[0], answer)
    return f"{answer} " if answer.endswith("\\") else answer


def tagged(text: str) -> str | None:
    """What stands in the last `<answer>...</answer>`, None where nothing does."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    return text[start + len("<answer>") : end].strip() or None if start >= 0 else None


def _read_tag(text: str, kind: Kind, choices: Choices) -> Reading | None:
    content = tagged(text)
    cleaned = kind.clean(content) if content and len(content) <= MAX_LINE_LENGTH else ""
    return (kind.read(cleaned, choices) or Reading(shorten(cleaned))) if cleaned else None


def _remainders(text: str, *, finished: bool) -> Iterator[tuple[str, int, bool]]:
    """What follows each phrase, the last one first: a line, its end, and whether it is apart."""
    tail = max(len(text) - MAX_TAIL, 0)
    for phrase in reversed(deque(_PHRASE.finditer(text, tail), maxlen=MAX_TRIED)):
        start = _PHRASE_GAP.match(text, phrase.end()).end()  # type: ignore[union-attr]
        line = text[start : start + MAX_LINE_LENGTH].partition("\n")[0]
        if not finished and _is_cut(line, at_end=start + len(line) == len(text)):
            continue
        apart = phrase["mark"] is not None or "\n" in text[phrase.end() : start]
        yield line, start + len(line), apart


def _is_cut(line: str, *, at_end: bool) -> bool:
    r"""Whether a text that ended early ended in this answer: `\boxed{7` or "The answer is 7"."""
    return bool(_BOX.search(line)) or (at_end and not _SENTENCE_OVER.search(line))


def _read_phrase(text: str, kind: Kind, choices: Choices, *, finished: bool) -> Reading | None:
    """The last clear phrase that is followed by a value of the wanted type."""
    for line, end, apart in _remainders(text, finished=finished):
        cleaned = kind.clean(line)
        if not cleaned or (kind.name != "choice" and _REASONING.match(cleaned)):
            continue
        if kind.name in ("text", "math") and _POINTER.match(cleaned):
            continue
        if apart and not kind.stands_alone(cleaned, choices, text[end:]):
            continue
        reading = _read_remainder(line, cleaned, kind, choices)
        if reading is not None:
            return reading
    return None


def _text_behind_phrase(text: str, *, finished: bool) -> str | None:
    """All that follows a phrase that ends its line, else the rest of the phrase's own line."""
    for line, end, apart in _remainders(text, finished=finished):
        cleaned = plain_text(line)
        if cleaned and not _REASONING.match(cleaned) and not _POINTER.match(cleaned):
            return (line + text[end:]).strip() if apart else cleaned.removesuffix(".")
    return None


def _read_remainder(line: str, cleaned: str, kind: Kind, choices: Choices) -> Reading | None:
    """Read what follows a phrase; an option's text may hold a full stop or a "because"."""
    if kind.name == "math":
        formula = formulas(line)
        if formula:
            return kind.read(kind.clean(formula), choices)
    sentence = _first_sentence(cleaned)
    clause = _REASON.split(sentence, maxsplit=1)[0]
    if kind.name != "choice":
        return kind.read(clause, choices)
    for extent in (cleaned, sentence, clause):
        reading = kind.read(extent, choices)
        if reading is not None:
            return reading
    return None


def last_formula(line: str) -> str | None:
    """The last formula of a line, without its delimiters."""
    found = deque(_FORMULA.finditer(line), maxlen=1)
    return found[0][found[0].lastindex or 0].strip() if found else None


def formulas(line: str) -> str | None:
    """The first formula of a line, with those that "and", "or" or a comma join to it."""
    found = list(_FORMULA.finditer(line))
    if not found:
        return None
    parts = [found[0]]
    for formula in found[1:]:
        if not _AND_OR.fullmatch(line[parts[-1].end() : formula.start()]):
            break
        parts.append(formula)
    return ", ".join(part[part.lastindex or 0].strip() for part in parts)


def _first_sentence(text: str) -> str:
    for stop in _SENTENCE_END.finditer(text):
        word = text[: stop.start()].rpartition(" ")[2]
        if word.casefold() not in _ABBREVIATIONS:
            return text[: stop.start()]
    return text


def _read_last(text: str, kind: Kind, choices: Choices) -> Reading | None:
    """The last value of the wanted type in the last line that holds one."""
    lines = [line for line in text.splitlines()[-MAX_TRIED:] if line.strip()]
    for line in reversed(kind.last_lines(lines) if kind.last_lines else lines):
        reading = kind.read_last(line[-MAX_LINE_LENGTH:], choices)
        if reading is not None:
            return reading
    return None
