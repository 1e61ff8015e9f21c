"""Yes and no, including true and false."""

from __future__ import annotations

import re

from evaluation.extraction import residue
from evaluation.extraction.normalize import NO_READING, Choices, Keys, Reading, plain_text, shorten

_TRUTH_WORDS = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_NO_WORDS = frozenset(["no", "No", "NO"])
_LETTERS = {"y": "yes", "t": "yes", "n": "no", "f": "no"}
# "No" before a noun is a determiner: "no one", "no more than 5". A sentence may begin after it.
_NO = (
    r"(?i:no)(?![\w'-])(?!\. ?[0-9])(?=\W*$|\W{0,3}[^\w\s]|\s+(?i:because|since|as|for|it|its|he"
    r"|she|they|we|you|i|this|that|these|those|there|the)\b)"
)
_WORD = rf"(?P<word>(?i:yes|true|false)\b|{_NO})"
_FILLERS = (
    r"(?:(?i:it|this|that|is|was|would|be|a|the|statement|expression|result|therefore|thus|most"
    r"|likely|probably|clearly|definitely|simply|indeed|actually|so|answer|final|correct)\b[ ,:]*)"
)
_BOOLEAN_HEAD = re.compile(rf"[\W_]{{0,3}}{_WORD}")
_BOOLEAN_INNER = re.compile(rf"{_FILLERS}{{1,6}}[\W_]{{0,3}}{_WORD}")
_CLAUSES = re.compile(r"[.,;:!/|()—–\n]|(?i:\b(?:and|or|but|also|rather|because|since)\b)")
_CLAUSE_WORD = re.compile(
    rf"\W*{_FILLERS}{{0,6}}(?P<not>(?i:not|n't)\s+)?(?P<word>(?i:yes|no|true|false))\W*"
)
_HEDGE = re.compile(
    r"\W*(?i:maybe|perhaps|possibly|probably not|(?:i am |i'm )?(?:not sure|unsure))\W*"
)
_QUESTION_WORD = re.compile(r"^[^.!;]*\?")
_NEITHER = re.compile(r"(?i:neither|both|either)\b")
_BOOLEAN_WORD = re.compile(r"\b(?:(?i:yes|true|false)|No|NO|no(?! [a-z]))\b(?!\. ?[0-9]|-)")
_NO_DETERMINER = re.compile(
    r"[Nn][Oo] (?!because|since|as|it|he|she|they|we|I |this|that|the)[a-z]"
)
_CONDITION = re.compile(
    r" (?:only )?(?i:if|unless|provided|when|whenever)\b"
    r"|, (?i:(?:but )?only if|if|unless|provided)\b[^,]*$"
)
_EITHER_OR = re.compile(r"\W*(?i:or|and|/)\W*(?i:not)?\W*|/")


def read_boolean(plain: str, choices: Choices) -> Reading | None:
    """The yes or no with which a text begins, after at most a few words such as "it is"."""
    result = plain.rpartition("=")[2].strip() or plain
    if _NEITHER.match(result):
        return Reading(shorten(plain))
    found = _BOOLEAN_HEAD.match(result) or _BOOLEAN_INNER.match(result)
    if found is None:
        letter = _LETTERS.get(result.strip("().").casefold())
        return Reading(letter, frozenset([letter])) if letter else None
    answer = _TRUTH_WORDS[found["word"].casefold()]
    after = result[found.end() :]
    if (
        _contradicts(answer, after)
        or _CONDITION.match(after)
        or residue.is_hedged(_first_part(after))
        or any(map(_HEDGE.fullmatch, _CLAUSES.split(after)))
    ):
        return Reading(shorten(plain))
    return _boolean_reading(found["word"])


def _first_part(after: str) -> str:
    return _CLAUSES.split(after, maxsplit=1)[0] if after[:1] == " " else after[:2]


def _contradicts(answer: str, after: str) -> bool:
    """Whether a later clause is just the other truth value: "Yes. No.", "true or false"."""
    for clause in _CLAUSES.split(after):
        said = _CLAUSE_WORD.fullmatch(clause)
        if said and (_TRUTH_WORDS[said["word"].casefold()] == answer) == bool(said["not"]):
            return True
    return False


def _boolean_reading(word: str) -> Reading:
    canonical = _TRUTH_WORDS[word.casefold()]
    return Reading(canonical, frozenset([canonical]))


def last_boolean(line: str, choices: Choices) -> Reading | None:
    """The last yes, no, true or false of a line that is neither denied nor asked."""
    plain = plain_text(line)
    words = list(_BOOLEAN_WORD.finditer(plain))
    if not words:
        return None
    if plain.rstrip(" *_\"')").endswith("?") and _QUESTION_WORD.search(plain[words[-1].start() :]):
        return NO_READING
    for index in range(len(words) - 1, -1, -1):
        word = words[index]
        start = words[index - 1].end() if index else 0
        between = plain[start : word.start()]
        if index and _EITHER_OR.fullmatch(between):
            return NO_READING  # "true or false"
        if plain[word.end() : word.end() + 1] == "?":
            return NO_READING
        clause, after = residue.last_clause(between), plain[word.end() :]
        if residue.is_guess(clause) or _CONDITION.match(after):
            return NO_READING
        takes_back = residue.is_reconsidered if word[0] in _NO_WORDS else residue.is_retracted
        denied = residue.NEGATION.search(clause) or (after[:1] == " " and takes_back(after))
        if not denied and not _NO_DETERMINER.match(plain, word.start()):
            return _boolean_reading(word[0])
    return NO_READING


def canonical_boolean(answer: str, choices: Choices = ()) -> str:
    """`yes` or `no`; ValueError for anything else."""
    word = answer.strip(" .!\"'\n\t").casefold()
    if word not in _TRUTH_WORDS:
        raise ValueError(f"the boolean answer {answer!r} is invalid: write yes, no, true or false")
    return _TRUTH_WORDS[word]


def boolean_keys(canonical: str, choices: Choices = ()) -> Keys:
    """The keys that an answer must have to equal this truth value."""
    return frozenset([canonical])
