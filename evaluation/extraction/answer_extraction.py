r"""Locate the answer in a model's text: outside its thinking, in a box, or after a phrase.

The first of these that contains something decides: the last filled box, the last `<answer>` tag,
the last clear phrase ("the answer is X", "Answer: X", "#### X"), and, only if requested, the last
value of the wanted type. If a box or phrase is supposed or denied by its own sentence, or taken
back by the next one, it is skipped, and nothing else is read from it. Nothing here looks at the
truth.
"""

from __future__ import annotations

import enum
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from evaluation.extraction import residue
from evaluation.extraction.normalize import (
    MAX_LINE_LENGTH,
    Choices,
    Keys,
    Reading,
    plain_text,
    shorten,
)

MAX_TAIL = 20_000  # characters that are searched for phrases
MAX_TRIED = 50  # boxes, phrases or lines, from the end
MAX_CONTEXT = 200  # characters around a phrase or box that may deny it
MAX_BETWEEN = 80  # characters between two boxes of the same list


class ReadAs(enum.StrEnum):
    """Where in the text the answer was found."""

    BOXED = "boxed"
    PHRASE = "phrase"
    LAST = "last"
    NOTHING = "nothing"


class AnswerReader(NamedTuple):
    """How answers of one type are read and compared."""

    name: str
    clean: Callable[[str], str]
    """Cleans a text before anything is read from it."""
    read: Callable[[str, Choices], Reading | None]
    """Reads the answer that a cleaned text states."""
    read_last: Callable[[str, Choices], Reading | None]
    """Reads the last answer in an uncleaned line."""
    canonical: Callable[[str, Choices], str]
    """The canonical form of a truth; ValueError for a truth that is invalid for the type."""
    keys: Callable[[str, Choices], Keys]
    """The keys that a right answer shares with a canonical truth."""
    stands_alone: Callable[[str, Choices, str], bool]
    """Whether a line that is separate from its phrase is an answer, not a heading or a step."""
    same: Callable[[str, str], bool] | None = None
    """Whether truth and answer, as texts, have the same meaning although their keys differ."""
    last_lines: Callable[[list[str]], list[str]] | None = None
    """The lines that may contain a last answer; None means all."""


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
      (?:[ ]\([^()\n]{1,40}\))?(?:[ ](?:to|for)[ ](?:\$[^$\n]{1,40}\$|[^$.,:\n]){1,60}?)?
      (?:,?[ ](?:therefore|thus|then|hence|here|now|so),?)?[ \t*_"')\]}]{0,8}
      (?:(?:is|was|are|were|equals|(?:would|should|must|will|has[ ]to)[ ]be)\b(?![ ]not\b)
        |[=:：]))""",
    re.VERBOSE | re.MULTILINE,
)
# Letters that every phrase contains, and how many of them the pattern only checks by look-behind.
_CUES = (("answer", 1), ("option", 1), ("choice", 1), ("####", 0))
_FORMULA = re.compile(
    r"\$\$((?:[^$\\]|\\.)++)\$\$|(?<!\\)\$((?:[^$\\]|\\.)++)\$|\\[(\[]((?:[^\\]|\\(?![)\]]))++)\\[)\]]"
)
_AND_OR = re.compile(r",? ?(?:and|or|,)? ?")
# "Answer:" in the languages of MGSM and some others.
_PHRASE_ELSEWHERE = re.compile(
    r"(?i:r[ée]ponse|antwort|l[öo]sung|respuesta|risposta|resposta|jibu|cevap|odpowiedź|đáp án"
    r"|ответ|答案|答え|回答|解答|答|정답|답|الإجابة|الجواب|উত্তর|คำตอบ|సమాధానం|जवाब|उत्तर)"
    r"(?: (?i:finale?|final|correcta?))? ?[:：]"
)
_TIMES = re.compile(r" (?:times|plus|minus|divided by|multiplied by)\b")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,} [A-Za-z]{2,}")
_TEXT_IN_FORMULA = re.compile(r"\\(?:text[a-z]*|mbox|mathrm|begin|end) ?\{[^{}]*\}")
_COPULA = r"\b(?i:is|are|was|were|be|equals?|equal to|get|gives?|obtain|have|yields?)\b|[:：]"
_STATES = re.compile(
    rf"^\W*$|(?:{_COPULA})(?:\W|\b(?i:that|then|simply|just|exactly|equal|to|also)\b)*$"
)
_STATED_LATER = re.compile(
    rf"^(?!\W*(?i:because|since|as|where|which|when|for|if)\b)[^.;]*?(?:{_COPULA})\W*(?:\$|[-+]?[0-9])"
)
_MANY_LINES = re.compile(
    r"\\begin\{([a-z]{1,10}\*?)\}(?s:.{0,2000}?)\\end\{\1\}|\$\$[^$]{0,2000}\$\$"
    r"|\\\[(?s:.{0,2000}?)\\\]"
)
_CLOSERS = re.compile(r"(?:[ \t]*[\])}>])*[ \t]*\}")
_LISTING_LOOKS = re.compile(r"\\(?:q?quad|text|mbox|textrm|mathrm|[,;: !()\[\]])|[${}*~]")
_LISTING = re.compile(
    r"[ \t]*(?:[,;/|&+][ \t]*)?(?:(?i:for )\w+ ?\(?\w\)?[ \t,]*)?(?:(?i:and|or|to|as well as|versus"
    r"|vs)\b[ \t]*)?(?:(?<=\bor[ \t])[ \t]*[A-Za-z][ \t]*=)?"
    r"(?:(?i:also|maybe|perhaps|possibly|else|even)\b)?[ \t,]*"
)
# Also what begins on the next line: the opening of a display, or a quotation mark.
_PHRASE_GAP = re.compile(r"(?:[\s:：*`]|(?<=\n)>|(?<=\n )>|(?:\\\[|\$\$)(?=[ \t]*\n))*+")
_SENTENCE_END = re.compile(r"[.!?](?=[ \"')]|$)")
_SENTENCE_OVER = re.compile(r"[.!?][*\"')]*\s")
_ABBREVIATIONS = frozenset(["mr", "mrs", "ms", "dr", "prof", "st", "rs", "no", "vs", "approx"])
_REASON = re.compile(r"[,;:]? (?:because|since|which|due to|as (?:it|he|she|they|we|the|shown))\b")
_COMPUTED = re.compile(r",? which (?:is|equals|gives|makes|comes to)\b")
_REASONING = re.compile(
    r"(?i:let(?:'s| us| me)|step [0-9]|first,|firstly|to [a-z]+ (?:the|this|out|how|it|we)"
    r"|we (?:need|have|can|start|know|first|are|will)|if|because|since)\b"
)
_IF = re.compile(r"\b(?:if|had|unless)\b")
_POINTER = re.compile(
    r"(?i:as (?:follows|shown|given)|(?:shown|given|found|obtained) (?:by|below|above|in|as)"
    r"|the following)\b|(?i:below|above|here)\W*$"
)


Span = tuple[int, int]
"""The start and end of a piece of text."""


class Located(NamedTuple):
    """An answer that was found, and the place of the text that states it."""

    reading: Reading
    place: Span


class _Box(NamedTuple):
    start: int
    end: int
    content: str


def read_answer(
    text: str, kind: AnswerReader, choices: Choices, *, last: bool, finished: bool
) -> tuple[ReadAs, Reading | None]:
    """The first way of reading that finds something, with what it finds."""
    read_as, found = locate_answer(text, kind, choices, last=last, finished=finished)
    return read_as, found.reading if found else None


def locate_answer(
    text: str, kind: AnswerReader, choices: Choices, *, last: bool, finished: bool
) -> tuple[ReadAs, Located | None]:
    """The same with the place of what it finds: the boxes, the tag, the phrase up to the end of its
    sentence, or the line of a last value; for `math`, a place in `on_one_line` of the text."""
    if kind.name == "math":
        text = on_one_line(text)
    denied: list[Span] = []
    found = _read_boxes(text, kind, choices, denied)
    if found is not None:
        return ReadAs.BOXED, found
    found = _read_tag(text, kind, choices)
    if found is None:
        found = _read_phrase(text, kind, choices, denied, finished=finished)
    if found is not None:
        return ReadAs.PHRASE, found
    return ReadAs.LAST, _read_last(_without(text, denied), kind, choices) if last else None


def find_answer(text: str, *, last: bool, finished: bool) -> tuple[ReadAs, str | None]:
    """The unchanged answer, with line breaks, for graders that know its format."""
    for box in reversed(_boxes(text, loose=True)):
        if plain_text(box.content) and not _denies(text, (box.start, box.end)):
            return ReadAs.BOXED, box.content.strip()
    found = tagged(text) or _text_behind_phrase(text, finished=finished)
    if found:
        return ReadAs.PHRASE, found
    lines = text.strip().splitlines()
    return ReadAs.LAST, lines[-1].strip() if last and lines else None


def _read_boxes(
    text: str, kind: AnswerReader, choices: Choices, denied: list[Span]
) -> Located | None:
    """The last filled box, or all boxes of its list: `\\boxed{1} and \\boxed{-2}`."""
    found = [box for box in _boxes(text, loose=kind.name == "text") if kind.clean(box.content)]
    while found:
        group = _last_group(text, found)
        span = (group[0].start, group[-1].end)
        if not _denies(text, span):
            return Located(_read_group(group, kind, choices), span)
        denied.append(span)
        found = found[: -len(group)]
    return None


def _read_group(group: list[_Box], kind: AnswerReader, choices: Choices) -> Reading:
    contents = list(dict.fromkeys(box.content for box in group))
    whole = ", ".join(contents)
    if kind.name == "math":
        contents = [whole]
    readings = []
    for content in contents:
        fits = len(content) <= MAX_LINE_LENGTH
        reading = kind.read(kind.clean(content), choices) if fits else None
        readings.append(reading or Reading(shorten(content)))
    same = all(reading.keys == readings[0].keys for reading in readings)
    return readings[0] if same and readings[0].settles else Reading(shorten(whole))


def _last_group(text: str, boxes: list[_Box]) -> list[_Box]:
    first = len(boxes) - 1
    while first > 0:
        between = text[boxes[first - 1].end : boxes[first].start]
        if len(between) > MAX_BETWEEN or not _LISTING.fullmatch(_LISTING_LOOKS.sub(" ", between)):
            break
        first -= 1
    return boxes[first:]


def _denies(text: str, span: Span) -> bool:
    """Whether the words directly before or after a box say that it is not the answer."""
    start, end = span
    before = text[max(start - MAX_CONTEXT, 0) : start]
    return residue.denies_next(before) or residue.is_retracted(text[end : end + MAX_CONTEXT])


def _boxes(text: str, *, loose: bool = False) -> list[_Box]:
    """The closed outermost boxes in order, without the boxes inside them.

    With `loose`, closing braces after a box belong to its content: `\\boxed{] ) }}`.
    """
    if "box" not in text:
        return []
    starts = [at - 1 for at in _backwards(text, "oxed")]
    starts += [at + 1 for at in _backwards(text, "\\fbox")]
    tried = (_BOX.match(text, max(start, 0)) for start in sorted(starts, reverse=True))
    found = list(itertools.islice((box for box in tried if box), MAX_TRIED))[::-1]
    if not found:
        return []
    closing = _closing_braces(text, found[0].start())
    boxes: list[_Box] = []
    inside: list[tuple[int, int]] = []
    for box in found:
        start, at = box.start() - (text[box.start() - 1 : box.start()] == "\\"), box.end()
        if boxes and start < boxes[-1].end:
            if at in closing:
                inside += [(start, at + 1), (closing[at], closing[at] + 1)]
        elif text[at] != "{":
            content = text[at : at + MAX_LINE_LENGTH].split(maxsplit=1)[0].rstrip("$")
            boxes.append(_Box(start, at + len(content), content))
        elif at in closing:
            end = _loose_end(text, start, closing[at]) if loose else closing[at]
            boxes.append(_Box(start, end + 1, text[at + 1 : end]))
    return [_unboxed(text, box, inside) for box in boxes] if inside else boxes


def _unboxed(text: str, box: _Box, inside: list[Span]) -> _Box:
    """The box without the commands and braces of the boxes inside it."""
    cuts = sorted(cut for cut in inside if box.start < cut[0] < box.end)
    if not cuts:
        return box
    start = box.end - 1 - len(box.content)
    edges = [start, *(edge for cut in cuts for edge in cut), box.end - 1]
    pieces = [text[one:other] for one, other in zip(edges[::2], edges[1::2], strict=True)]
    if len(cuts) == 2 and pieces[0].rstrip().endswith("="):
        return box._replace(content=pieces[1])  # \\boxed{3 + 4 = \\boxed{7}}
    return box._replace(content="".join(pieces))


def _loose_end(text: str, start: int, end: int) -> int:
    """Where a box ends whose content may contain unmatched closing braces."""
    line = text[text.rfind("\n", 0, start) + 1 : start]
    more = _CLOSERS.match(text, end + 1)
    if more is None or line.count("{") > line.count("}"):
        return end
    return more.end() - 1


def on_one_line(text: str) -> str:
    """The text with each display and matrix on one line, so that a line has a complete formula."""
    if "\n" not in text or not ("\\begin{" in text or "\\[" in text or "$$" in text):
        return text
    tail = max(len(text) - MAX_TAIL, 0)
    return text[:tail] + _MANY_LINES.sub(lambda found: " ".join(found[0].split()), text[tail:])


def _without(text: str, spans: list[Span]) -> str:
    """The text with some pieces replaced by spaces."""
    for start, end in spans:
        text = text[:start] + re.sub(r"[^\n]", " ", text[start:end]) + text[end:]
    return text


def _closing_braces(text: str, start: int) -> dict[int, int]:
    """Where each open brace is closed; a single pass, so that nested boxes are not slower."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    for brace in _BRACE.finditer(text, start):
        if brace[1] == "{":
            opened.append(brace.start())
        elif brace[1] == "}" and opened:
            pairs[opened.pop()] = brace.start()
    return pairs


def escape_loose_braces(answer: str) -> str:
    """The answer in a form that fits in a box, which a loose brace or final backslash would
    break."""
    braces = [found[1] for found in _BRACE.finditer(answer) if found[1]]
    if len(braces) != 2 * len(_closing_braces(answer, 0)):
        answer = _BRACE.sub(lambda brace: "\\" * bool(brace[1]) + brace[0], answer)
    return f"{answer} " if answer.endswith("\\") else answer


def tagged(text: str) -> str | None:
    """The content of the last `<answer>...</answer>`; None if there is none."""
    start, end = _tag(text)
    return text[start:end].strip() or None if start >= 0 else None


def _tag(text: str) -> Span:
    """The place of the content of the last tag; it begins at -1 if there is none."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    return (start + len("<answer>"), end) if start >= 0 else (-1, -1)


def _read_tag(text: str, kind: AnswerReader, choices: Choices) -> Located | None:
    content = tagged(text)
    cleaned = kind.clean(content) if content and len(content) <= MAX_LINE_LENGTH else ""
    if not cleaned:
        return None
    return Located(kind.read(cleaned, choices) or Reading(shorten(cleaned)), _tag(text))


def _phrases(text: str, tail: int) -> Iterator[re.Match[str]]:
    """The phrases after `tail`, the last one first; foreign ones only if there are no others."""
    lowered = text.lower()
    if len(lowered) != len(text):  # a capital with a dot becomes two letters
        found = list(_PHRASE.finditer(text, tail))[::-1]
    else:
        # A search for a word is a hundred times faster than one for its pattern.
        starts = [
            at
            for word, skip in _CUES
            for at in (found + skip for found in _backwards(lowered, word, tail))
        ]
        tried = (_PHRASE.match(text, start) for start in sorted(starts, reverse=True))
        found = list(itertools.islice((phrase for phrase in tried if phrase), MAX_TRIED))
    if not found and (":" in text or "：" in text):
        found = list(_PHRASE_ELSEWHERE.finditer(text, tail))[-MAX_TRIED:][::-1]
    yield from found


def _backwards(text: str, word: str, start: int = 0) -> Iterator[int]:
    """The positions of a word in a text, the last one first."""
    at = text.rfind(word, start)
    while at >= 0:
        yield at
        at = text.rfind(word, start, at)


class _Remainder(NamedTuple):
    """The text after a phrase: its line, its start and end, and whether it is on another line."""

    line: str
    phrase: int
    start: int
    end: int
    apart: bool


def _remainders(text: str, *, finished: bool) -> Iterator[_Remainder]:
    """The text after each phrase, the last one first."""
    tail = max(len(text) - MAX_TAIL, 0)
    for phrase in _phrases(text, tail):
        start = _PHRASE_GAP.match(text, phrase.end()).end()  # type: ignore[union-attr]
        line = text[start : start + MAX_LINE_LENGTH].partition("\n")[0]
        if not finished and _is_cut(line, at_end=start + len(line) == len(text)):
            continue
        apart = phrase.lastgroup == "mark" or "\n" in text[phrase.end() : start]
        yield _Remainder(line, phrase.start(), start, start + len(line), apart)


def _is_cut(line: str, *, at_end: bool) -> bool:
    r"""Whether a truncated text ended inside this answer: `\boxed{7` or "The answer is 7"."""
    return bool(_BOX.search(line)) or (at_end and not _SENTENCE_OVER.search(line))


def _read_phrase(
    text: str, kind: AnswerReader, choices: Choices, denied: list[Span], *, finished: bool
) -> Located | None:
    """The last clear phrase that is followed by a value of the wanted type."""
    for rest in _remainders(text, finished=finished):
        cleaned = kind.clean(rest.line)
        if not cleaned or (kind.name != "choice" and _REASONING.match(cleaned)):
            continue
        if kind.name in ("text", "math") and _POINTER.match(cleaned):
            continue
        if rest.apart and not kind.stands_alone(cleaned, choices, text[rest.end :]):
            continue
        end = rest.start + len(_first_sentence(rest.line))
        if _is_supposed(text, rest.phrase, rest.start, end) or text[end : end + 1] == "?":
            clause = residue.first_clause(text[rest.start : end])
            denied.append((rest.phrase, rest.start + len(clause)))
            continue
        reading = _read_remainder(rest.line, cleaned, kind, choices)
        if reading is None:
            if kind.name in ("number", "math"):  # the others handle denial themselves
                denied.append((rest.phrase, end))
        elif residue.is_retracted(text[end : end + MAX_CONTEXT]) or _denies_itself(rest.line):
            denied.append((0, end))
            return None
        else:
            return Located(reading, (rest.phrase, end))
    return None


def _denies_itself(line: str) -> bool:
    """Whether a phrase ends in ", which is wrong"."""
    reason = _REASON.search(line)
    return reason is not None and residue.is_retracted(line[reason.start() :])


def _is_supposed(text: str, phrase: int, start: int, end: int) -> bool:
    """Whether its sentence supposes or denies a phrase: "the answer would be 5 if" also does."""
    if text[phrase:start].rstrip().endswith("would be") and _IF.search(text, start, end):
        return True
    before = text[max(phrase - MAX_CONTEXT, 0) : phrase].rpartition("\n")[2]
    over = deque(_SENTENCE_OVER.finditer(before), maxlen=1)
    return residue.is_supposed(before[over[0].end() if over else 0 :])


def _text_behind_phrase(text: str, *, finished: bool) -> str | None:
    """Everything after a phrase that ends its line, otherwise the rest of the phrase's line."""
    for rest in _remainders(text, finished=finished):
        cleaned = plain_text(rest.line)
        if not cleaned or _REASONING.match(cleaned) or _POINTER.match(cleaned):
            continue
        if not _is_supposed(text, rest.phrase, rest.start, rest.end):
            whole = (rest.line + text[rest.end :]).strip()
            return whole if rest.apart else cleaned.removesuffix(".")
    return None


def _read_remainder(
    line: str, cleaned: str, kind: AnswerReader, choices: Choices
) -> Reading | None:
    """Read the text after a phrase; an option's text may contain a full stop or a "because"."""
    if kind.name == "math":
        formula = stated_formula(line)
        if formula:
            return kind.read(kind.clean(formula), choices)
    sentence = _first_sentence(cleaned)
    clause = _REASON.split(sentence, maxsplit=1)[0]
    if kind.name != "choice":
        reading = kind.read(clause, choices)
        computed = _COMPUTED.match(sentence, len(clause)) if reading is None else None
        return kind.read(sentence[computed.end() :].strip(), choices) if computed else reading
    for extent in (cleaned, sentence, clause):
        reading = kind.read(extent, choices)
        if reading is not None:
            return reading
    return None


def last_formula(line: str) -> tuple[str, str, str] | None:
    """The last formula of a line with others of its list, and the text before and after."""
    found = [formula for formula in _FORMULA.finditer(line) if _is_formula(formula)]
    if not found:
        return None
    first = len(found) - 1
    while first and _AND_OR.fullmatch(line[found[first - 1].end() : found[first].start()]):
        first -= 1
    listed = ", ".join(map(_inside, found[first:]))
    return line[: found[first].start()], listed, line[found[-1].end() :]


def stated_formula(line: str) -> str | None:
    """The formula that a line begins with, or that follows an "is", with others of its list.

    In "when $x = 3$ the value is $7$" it is `7`; None if the value is not a formula.
    """
    found = [formula for formula in _FORMULA.finditer(line) if _is_formula(formula)]
    for index, formula in enumerate(found):
        parts = [formula]
        for other in found[index + 1 :]:
            if not _AND_OR.fullmatch(line[parts[-1].end() : other.start()]):
                break
            parts.append(other)
        before, after = line[: formula.start()], line[parts[-1].end() :]
        if _STATES.search(before) and not _STATED_LATER.search(after):
            listed = ", ".join(_inside(part) for part in parts)
            unclear = residue.is_hedged(_first_sentence(after)) or _TIMES.match(after)
            return f"{listed}, ?" if unclear else listed
    only = found[0] if len(found) == 1 else None
    if (
        only
        and not _STATED_LATER.search(line[only.end() :])
        and not residue.operates(line[: only.start()])
        and not _TIMES.match(line, only.end())
        and not re.search(r"[0-9]", line[: only.start()] + line[only.end() :])
    ):
        return _inside(only)
    return None


def _inside(formula: re.Match[str]) -> str:
    return str(formula[formula.lastindex or 0]).strip()


def _is_formula(found: re.Match[str]) -> bool:
    """Whether dollar signs enclose a formula, and not words between two prices."""
    return _PROSE.search(_TEXT_IN_FORMULA.sub("", _inside(found))) is None


def _first_sentence(text: str) -> str:
    for stop in _SENTENCE_END.finditer(text):
        word = text[: stop.start()].rpartition(" ")[2]
        if word.casefold() not in _ABBREVIATIONS:
            return text[: stop.start()]
    return text


def _read_last(text: str, kind: AnswerReader, choices: Choices) -> Located | None:
    """The last value of the wanted type, in the last line that contains one."""
    lines = [line for line in text.splitlines()[-MAX_TRIED:] if line.strip()]
    for line in reversed(kind.last_lines(lines) if kind.last_lines else lines):
        reading = kind.read_last(line[-MAX_LINE_LENGTH:], choices)
        if reading is not None:
            start = text.rfind(line)
            return Located(reading, (start, start + len(line))) if reading.settles else None
    return None
