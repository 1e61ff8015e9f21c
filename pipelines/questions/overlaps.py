"""Find training questions that partly overlap with a held-out one, by hashes of runs of words.

There are two rules, each applied to the question without its options:

* `words`: 13 consecutive words are the same (Brown et al., arXiv 2005.14165, appendix C)
* `masked`: of the runs of 8 words that contain a number, at least a third are the same once numbers
  are masked, counted in the shorter question. A single run proves nothing: "0 dollars how much
  money does he have" is in hundreds of unrelated problems.

Words that many questions share are a template and do not count: a run that, with numbers masked, is
in more than 10 held-out questions, or in more than a tenth of a dataset's training questions. If
there are few training questions, a tenth would be too few: `words` requires more than 10 or more
than half of them, and `masked` more than 2.

Questions with fewer words than a run are only compared as a whole (`pipelines.questions.held_out`),
and so are generated ones, because they all share their words.

    indices = [HeldOutRuns.of(rule, [batch_of_texts, ...]) for rule in RULES]
    find_overlaps(indices, [batch_of_texts, ...])[1]  ->  Overlaps("masked", [17], [3], [0.8])

Memory: 24 bytes per run of the held-out questions and per run that training questions share.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TEMPLATE_QUESTIONS = 10
TEMPLATE_SHARE = 0.1
MASKED_SHARE = 1 / 3
WORDS_IN_RUN = 4
"""A masked run is compared if at least this many of its words have letters: formulas look alike."""

_WORD = re.compile(r"\d+(?:[.,]\d+)*(?!\w)|\w+|[-+*/^=<>%×÷]")  # includes signs: 3 + 5 is not 3 * 5
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that no power of it loses a bit modulo 2^64
_NUMBER_BIT, _LETTER_BIT = np.uint64(1 << 63), np.uint64(1 << 62)
_KNOWN_WORDS = 1 << 18  # limit on cached hashes; the cache is then cleared

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]


class Rule(NamedTuple):
    """The condition under which two questions overlap."""

    name: str
    size: int
    """Number of consecutive words."""
    masked: bool
    share: float
    """The share of the shorter question's runs that must match; 0 means that one is enough."""
    few: int
    """This many training questions are never a template, however few there are in all."""

    def most(self, number: int) -> float:
        """The number of training questions above which a shared run is a template."""
        return min(max(self.few, TEMPLATE_SHARE * number), max(2, number / 2))


RULES = (Rule("words", 13, False, 0.0, few=10), Rule("masked", 8, True, MASKED_SHARE, few=2))


class _WordHashes(dict[str, int]):
    """Caches the hash of each word; its first two bits tell numbers from words."""

    def __missing__(self, word: str) -> int:
        if len(self) > _KNOWN_WORDS:
            self.clear()
        digest = hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest()
        low = int.from_bytes(digest, "big") >> 2
        if word[0].isdigit() and word[-1].isdigit() and not re.search(r"[^\W\d_]", word):
            low |= 1 << 63
        elif word[0].isalpha():
            low |= 1 << 62
        self[word] = low
        return low


_HASHES = _WordHashes()


class Runs(NamedTuple):
    """Runs of words as hashes, each with the index of its question; each pair occurs once."""

    hashes: Hashes
    """The hashes in the order of the runs."""
    forms: Hashes
    """The hashes of the same runs with numbers masked, which identify templates."""
    owners: Places

    def where(self, chosen: NDArray[np.bool_]) -> Runs:
        return Runs(self.hashes[chosen], self.forms[chosen], self.owners[chosen])

    def at(self, places: Places) -> Runs:
        return Runs(self.hashes[places], self.forms[places], self.owners[places])

    @classmethod
    def joined(cls, runs: Iterable[Runs]) -> Runs:
        """Combine several; no question is in two of them."""
        none = Runs(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64))
        every = [none, *runs]
        whole = cls(
            np.concatenate([each.hashes for each in every]),
            np.concatenate([each.forms for each in every]),
            np.concatenate([each.owners for each in every]),
        )
        return whole.at(np.argsort(whole.hashes, kind="stable"))

    def without_templates(self, most: float) -> Runs:
        """The runs whose form is in at most this many questions."""
        order, is_new = _distinct(self.forms, self.owners)
        forms, counts = np.unique(self.forms[order][is_new], return_counts=True)
        return self.where(~_is_among(self.forms, forms[counts > most]))


class Words(NamedTuple):
    """The words of some questions one after another, as hashes."""

    hashes: Hashes
    owners: Places
    """The index of each word's question."""

    @classmethod
    def of(cls, texts: Sequence[str], first: int = 0) -> Words:
        """The words of texts whose indices start at `first`."""
        found = [[_HASHES[word] for word in _WORD.findall(text.casefold())] for text in texts]
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        chained = itertools.chain.from_iterable(found)
        hashes = np.fromiter(chained, np.uint64, int(lengths.sum()))
        return cls(hashes, np.repeat(np.arange(first, first + len(found)), lengths))


def word_runs(words: Words, rule: Rule) -> Runs:
    """The runs of a rule's length, each once per question."""
    hashes, owners = words
    number = len(hashes) - rule.size + 1
    if number <= 0:
        return Runs.joined([])
    within = owners[:number] == owners[rule.size - 1 :]
    is_number = (hashes & _NUMBER_BIT) > 0
    if rule.masked:
        within &= _counts(is_number, rule.size) > 0
        within &= _counts((hashes & _LETTER_BIT) > 0, rule.size) >= WORDS_IN_RUN
    forms = _hashes_of_runs(np.where(is_number, _NUMBER_BIT, hashes), rule.size)
    whole = forms if rule.masked else _hashes_of_runs(hashes, rule.size)
    runs = Runs(whole, forms, owners[:number]).where(within)
    order, is_new = _distinct(runs.hashes, runs.owners)
    return runs.at(order[is_new])


def _hashes_of_runs(words: Hashes, size: int) -> Hashes:
    """A polynomial of the words modulo 2^64, for all runs at once."""
    number = len(words) - size + 1
    hashes = np.zeros(number, np.uint64)
    for place in range(size):
        factor = np.uint64(pow(_FACTOR, place + 1, 2**64))
        hashes += words[place : place + number] * factor
    return hashes


def _counts(flags: NDArray[np.bool_], size: int) -> Places:
    """The number of flags that are set in each run."""
    sums = np.concatenate([[0], np.cumsum(flags)])
    return np.asarray(sums[size:] - sums[:-size], np.int64)


def _distinct(hashes: Hashes, owners: Places) -> tuple[Places, NDArray[np.bool_]]:
    """The order by both arrays, and which elements differ from the one before."""
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    is_new = np.ones(len(hashes), bool)
    is_new[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    return order, is_new


def _is_among(hashes: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """Which hashes are among many sorted ones."""
    places = np.searchsorted(known, hashes)
    found = np.zeros(len(hashes), bool)
    inside = places < len(known)
    found[inside] = known[places[inside]] == hashes[inside]
    return found


def matches(hashes: Hashes, known: Hashes) -> tuple[Places, Places]:
    """All pairs of indices, into the first and into the sorted others, with equal hashes."""
    first = np.searchsorted(known, hashes, "left")
    each = np.searchsorted(known, hashes, "right") - first
    offsets = np.arange(int(each.sum())) - np.repeat(np.cumsum(each) - each, each)
    return np.repeat(np.arange(len(hashes)), each), np.repeat(first, each) + offsets


class Overlaps(NamedTuple):
    """Pairs of overlapping questions; all arrays have the same length."""

    rule: str
    places: Places
    """Indices of the training questions."""
    held_out: Places
    """Indices of the held-out questions."""
    shares: NDArray[np.float64]
    """The share of the shorter question's runs that both have."""


@dataclass(frozen=True)
class HeldOutRuns:
    """The runs of the held-out questions for one rule, without templates."""

    rule: Rule
    runs: Runs
    """Sorted by their hashes."""
    num_runs: Places
    """The number of runs in each held-out question, including templates."""

    @classmethod
    def of(cls, rule: Rule, texts: Iterable[Sequence[str]]) -> HeldOutRuns:
        """Compute them from the texts of all held-out questions, batch by batch."""
        batches, number = [], 0
        for batch in texts:
            batches.append(word_runs(Words.of(batch, number), rule))
            number += len(batch)
        runs = Runs.joined(batches)
        num_runs = np.bincount(runs.owners, minlength=number)
        return cls(rule, runs.without_templates(TEMPLATE_QUESTIONS), num_runs)

    def pairs(self, hits: Runs, num_runs: Places) -> Overlaps:
        """Every pair of a training question, given its runs that are among these, and a held-out
        question.

        `num_runs` is the number of runs in each training question.
        """
        hit, run = matches(hits.hashes, self.runs.hashes)
        own, held_out = hits.owners[hit], self.runs.owners[run]
        # One number per pair, because sorting rows of two is ten times slower.
        pairs = own * len(self.num_runs) + held_out
        pairs, num_shared = np.unique(pairs, return_counts=True)
        places, others = np.divmod(pairs, max(1, len(self.num_runs)))
        shares = num_shared / np.minimum(num_runs[places], self.num_runs[others])
        enough = shares >= self.rule.share
        return Overlaps(self.rule.name, places[enough], others[enough], shares[enough])


def find_overlaps(indices: Sequence[HeldOutRuns], texts: Iterable[Sequence[str]]) -> list[Overlaps]:
    """Find the pairs by each rule, for the training questions of one dataset, batch by batch."""
    hits: list[list[Runs]] = [[] for _ in indices]
    counts = [[np.empty(0, np.int64)] for _ in indices]
    number = 0
    for batch in texts:
        words = Words.of(batch, number)
        for index, found, each in zip(indices, hits, counts, strict=True):
            own = word_runs(words, index.rule)
            each.append(np.bincount(own.owners - number, minlength=len(batch)))
            found.append(own.where(_is_among(own.hashes, index.runs.hashes)))
        number += len(batch)
    return [
        index.pairs(
            Runs.joined(found).without_templates(index.rule.most(number)), np.concatenate(each)
        )
        for index, found, each in zip(indices, hits, counts, strict=True)
    ]
