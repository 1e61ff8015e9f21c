r"""The words next to an answer in a sentence or box, and whether they change the answer.

The words that matter are closed classes of English, not a list of possible sentences: negations,
suppositions, operations ("half of", "twice"), scales ("dozen", "fifths"), and words that turn a
number into a name ("step 5", "a multiple of 5"). Every other word is assumed to be harmless.
"""

from __future__ import annotations

import re

NEGATION = re.compile(
    r"\b(?i:not|none|nobody|no one|no longer|cannot"
    r"|never|neither|nor|hardly|wrong|incorrect|mistaken|wrongly|falsely|incorrectly|mistakenly|impossible|unlikely"
    r"|rather than|instead of|except|exclud(?:e[sd]?|ing)"
    r"|(?:is|are|was|were|be|seems?|looks?) (?:much |far )?too"
    r"|eliminat(?:e[sd]?|ing)|discard(?:ed)?|ruled? out|far from|(?:any|every)thing but|all but|non"
    r"|nicht|kein|pas)\b"
    r"|n't\b|不是|并非"
)
_CONTRAST = re.compile(
    r"(?i:[\s,;(]*(?:and |but )?(?:not|rather than|instead of|non|nor)\b|[\s,;(]*不是)[\s(]*"
)
# "B, not A", but not "B, not right".
_OTHER_SET_ASIDE = re.compile(
    r"[\s,;(]+(?i:(?:and |but )?(?:not|rather than|instead of))\s"
    r"(?!(?i:right|correct|true|valid|possible|the (?:right|correct)|it|that|this|an? answer)\b)\S"
)
# "7, since 6 is even": what a clause of reason at the end of a sentence holds only supports it.
_REASON_CLAUSE = re.compile(r"(?P<said>[^.!?:]*[^\s.!?:,;])[\s,;]+(?i:because|since)\b[^.,;:]*$")
_SUPPOSITION = re.compile(
    r"\b(?i:if|whether|unless|suppos(?:e|ed|ing)|assum(?:e|ed|ing)|imagine|pretend"
    r"|let(?:'s| us) (?:just )?say|(?:mistaken?|wrong|incorrect|error|foolish|absurd) to"
    r"|might|may|could|maybe|perhaps|possibly|tempt(?:ed|ing)|wonder(?:ing)?|guess(?:ed)?"
    r"|claim(?:s|ed)?|(?:some|one|you|people|many) (?:would|will|think|say|believe)s?"
    r"|first thought|looks like it|(?<!no )(?<!without )(?<!without a )doubt(?:s|ed|ful)?)\b"
)
_DENIAL = re.compile(
    NEGATION.pattern + r"|\b(?i:false|unlike|every|each|another|other|alternative|possible|previous"
    r"|tentative|initial|wrong)\b(?=\W*(?:\w+\W+)?$)"
)
_CLAUSE = re.compile(
    r"[,;:!?\n(]|\.(?=\s)|\b(?i:then|so|therefore|thus|hence|but|because|since|finally)\b"
)
_DENIES_NEXT = re.compile(
    r"(?:\b(?i:not|never|cannot be|can't be|rather than|instead of|wrong answer (?:is|was|would be)"
    r"|(?:if|suppose|assum\w+|whether|say|pretend|imagine)(?: that)? (?:the|our|my|it|this)"
    r"(?: (?:final|correct|right))?(?: answer)? (?:is|was|were|be)"
    r"|(?:might|may|could|would) (?:think|say|guess|be|believe)[^.\n]{0,40})|n't)[\s$:*\\(\[{]*$"
)
_HEDGED = re.compile(
    r"(?i:\b(?:maybe|perhaps|possibly|or (?:rather|maybe|perhaps|possibly)|i guess|no wait|wait"
    r"|oops|sorry|unsure|not sure|actually|i mean)\b|\bno,)|\?"
)
_GUESS = re.compile(
    r"\b(?i:(?:could|might|may) (?:also )?be"
    r"|(?:thought|believed|supposed|assumed|claimed|said|expected) to be|perhaps|maybe|possibly"
    r"|(?<!no )(?<!without )(?<!without a )doubt(?:s|ed|ful)?)\b"
)
_GUESS_BEFORE = re.compile(_GUESS.pattern + r"\W*$")
_AFTER = r"[\s.,;:!?*_\"')…$\]}–—-]*(?:(?:but|oh|hmm+|and)\b[\s,.]*)?"
_RECONSIDERED = (
    r"no[,.:!—-]+ |no wait\b|wait\b|hold on\b|actually\b|oops\b|sorry\b|scratch that\b"
    r"|correction\b|i made a mistake|let me (?:re)?(?:check|think|consider|do that) again"
)
_CALLED_WRONG = (
    r"(?:that|this|it|which)(?:'s| is| was| seems| cannot| can't| isn't| must be)? ?"
    r"(?:be )?(?:not|wrong|incorrect|false|impossible|a mistake|isn't)\b"
    r"|(?:is|was) (?:wrong|incorrect|not|false|impossible|(?:much |far )?too)\b"
    r"|(?:isn't|wasn't|can't|cannot)\b|(?:does not|doesn't) (?:work|fit|hold|match|satisfy)\b"
)
_RETRACTED = re.compile(rf"(?i:{_AFTER}(?:{_RECONSIDERED}|{_CALLED_WRONG}))")
_TAKEN_BACK = re.compile(rf"(?i:{_AFTER}(?:{_RECONSIDERED}))")
_PARTS = (
    r"hal(?:f|ves)|thirds?|quarters?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?"
    r"|elevenths?|twelfths?|hundredths?|thousandths?|millionths?"
)
# Words after a number that multiply it.
_SCALE = re.compile(
    r"[ -]?(?i:[a-z]+ths|halves|thirds|quarters|dozens?|scores?|gross|pairs?|couples?|grand"
    r"|hundreds?|thousands?|millions?|billions?|trillions?|squared|cubed|factorial"
    r"|times (?!as|more|a|per|each|in|the|larger|bigger)|(?:plus|minus|less the)(?= [a-z])"
    r"|(?:increased|decreased|reduced|raised|divided|multiplied) (?:by|to)|to the"
    r"|and (?:a|one) (?:half|quarter|third|fourth|bit))(?![A-Za-z])|‰"
)
# "2 decimal places", "a 3-digit number": the number only describes another.
_LABELLED = re.compile(
    r"\W*(?i:decimals?|significant|sig\.? figs?|d\.p\.|dp|s\.f\.)\b|-[A-Za-z]{2,}"
)
_OPERATION = re.compile(
    rf"\b(?i:{_PARTS}|twice|thrice|doubled?|tripled?|triple|quadruple|squared?|cubed?|cube|roots?"
    r"|multiples?|factors?|divisors?|powers?|products?|quotients?|ratio|reciprocal|inverse|opposite"
    r"|negative of|percent(?:age)?|remainder|modulo|mod|logarithm|log|ln|factorial|function"
    r"|the (?:sum|difference)(?= (?:of|between))|plus|minus|times|divided|multiplied|divisible"
    r"|less|more|fewer|greater|larger|smaller|bigger"
    r"|at (?:least|most)|up|under|over|between|increased?|decreased?|reduced"
    r"|one|two|three|four|five"
    r"|out|add(?:ing|ed)?|subtract(?:ing|ed)?)\b"
    r"(?: (?:of|by|than|to|the|a|an|as|from|that|in|all|both|these|those|number|value|about"
    r"|exactly))*\W*$|%(?: of)?\W*$"
)
# "step 5", "as in 5", "by 5", "rounded to 2": the number belongs to the word before it. "To" may
# also introduce a result ("equal to 5", "comes to 5").
_PLACES = (
    r"steps?|options?|choices?|cases?|equations?|eqs?\.?|parts?|questions?|sections?|problems?"
    r"|figures?|tables?|methods?|statements?|examples?|exercises?|paragraphs?|formulas?|expressions?|hints?|notes?"
    r"|lines?|rows?|columns?|pages?|lemmas?|theorems?|rules?"
)
_FILLED = r"(?: (?:the|a|an|number|no\.?|nearest|first|last|next))*[\s(#]*$"
_PLACE = re.compile(rf"\b(?i:{_PLACES}){_FILLED}")
_GOVERNED = re.compile(
    r"^\W*(?i:on|from|under|behind|inside|see|in(?! (?:total|all|fact|sum|short|conclusion)\b))\b|"
    rf"\b(?i:{_PLACES}|base|by|in|than|from|as|with|on|within|after|before|until|above|below|per"
    r"|near|into|through|modulo|mod|for|like"
    r"|(?<!equal )(?<!equals )(?<!equivalent )(?<!comes )(?<!amounts )(?<!up )(?<!simplifies )"
    r"(?<!reduces )(?<!evaluates )(?<!rounds )(?<!back )(?<!down )(?<!drops )(?<!rises )to)"
    + _FILLED
)
_ALL = re.compile(
    r"\b(?i:all|each of|every|any of|both)(?: of)?"
    r"(?: (?:the|these|those|his|her|its|our|their))? ?$"
)
_COPULA = re.compile(r"(?i:\b(?:is|are|was|were|be|being|equals?(?: to)?|becomes?|remain)\b|[=≈:])")


def is_supposed(before: str) -> bool:
    """Whether the words up to a cue suppose, hedge or deny it: "if the", "the wrong"."""
    clauses = _CLAUSE.split(before)
    clause = clauses[-1]
    if clause.lstrip().casefold().startswith("that ") or not clause.strip():
        clause = before
    if _SUPPOSITION.search(clause) or _DENIAL.search(clause):
        return True
    return bool(re.search(r"\b(?i:suppose|assume)\b(?!.*\b(?i:then|so|thus|hence)\b)", before))


def is_retracted(after: str) -> bool:
    """Whether the text after a sentence takes it back: "Wait, that is wrong"."""
    return _RETRACTED.match(after) is not None


def is_reconsidered(after: str) -> bool:
    """Whether the text after a "no" takes it back; "No. That is wrong" confirms it instead."""
    return _TAKEN_BACK.match(after) is not None


def denies_next(before: str) -> bool:
    """Whether a text ends with words that deny or suppose what follows: "it is not"."""
    return _DENIES_NEXT.search(before) is not None


def first_clause(text: str) -> str:
    """The text up to the first comma, semicolon or "but"."""
    return _CLAUSE.split(text, maxsplit=1)[0]


def is_guess(clause: str) -> bool:
    """Whether a clause says what the answer could be, and not what it is."""
    return _GUESS.search(clause) is not None


def ends_in_guess(before: str) -> bool:
    """Whether a text ends with words such as "was supposed to be"."""
    return _GUESS_BEFORE.search(before) is not None


def is_hedged(after: str) -> bool:
    """Whether the rest of a phrase doubts its answer: "5, or maybe 6", "5?"."""
    return _HEDGED.search(after) is not None


def is_contrast(before: str) -> bool:
    """Whether the words before a second answer only reject it: "5, not" before "6"."""
    return _CONTRAST.fullmatch(before) is not None


def sets_another_aside(after: str) -> bool:
    """Whether what follows an answer denies another one and not it: ", not A"."""
    return _OTHER_SET_ASIDE.match(after) is not None


def reasoned(before: str) -> str | None:
    """What a text gives a reason for, if it ends within the clause of that reason."""
    found = _REASON_CLAUSE.search(before)
    return found["said"] if found else None


def scales(after: str) -> bool:
    """Whether the words after a number change its value: "5 dozen", "2 decimal places"."""
    return _SCALE.match(after) is not None


def operates(before: str) -> bool:
    """Whether the words before a number compute with it: "half of 10", "twice 5"."""
    return _OPERATION.search(_COPULA.split(before)[-1]) is not None


def governs(before: str) -> bool:
    """Whether the word before a number means that it is no answer: "step 5", "divisible by 5"."""
    return _GOVERNED.search(before) is not None


def names_a_place(before: str) -> bool:
    """Whether a number belongs to a place in the text: "step 5"."""
    return _PLACE.search(before) is not None


def counts_all(before: str) -> bool:
    """Whether the word before a number takes all of something that is known: "all 3 jobs"."""
    return _ALL.search(before) is not None


def labels(after: str) -> bool:
    """Whether a number only describes another: "2 decimal places", "a 3-digit number"."""
    return _LABELLED.match(after) is not None


def last_clause(before: str) -> str:
    """The clause with which a text ends."""
    return _CLAUSE.split(before)[-1]
