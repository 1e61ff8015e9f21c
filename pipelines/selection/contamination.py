"""Contamination: training questions that share many consecutive words with an evaluation question.

Equal questions are never in two splits (`pipelines.questions.loading`); this finds partial
overlaps. A run of words that is in more than ten evaluation questions is a template and does not
count, as in Brown et al. (arXiv 2005.14165, appendix C, with 13 words).

    EvaluationWords.of(table, 13).datasets_sharing(question)  ->  ["asdiv"]
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from cluster.settings import Settings
from evaluation.question import Question

TEMPLATE_QUESTIONS = 10
ROWS_AT_ONCE = 1_000

_WORD = re.compile(r"\w+|[-+*/^=<>%]")  # includes signs: 3 + 5 is not 3 * 5
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that no power of it loses a bit modulo 2^64


class ContaminationSettings(Settings):
    """Count, and optionally drop, training questions that overlap with evaluation questions."""

    num_words: Annotated[int, Field(ge=5)] = 13
    """Number of consecutive words that must be shared with an evaluation question."""
    drop: bool = False
    """Whether training questions that overlap with held-out ones are dropped, not only counted."""


@dataclass(frozen=True)
class EvaluationWords:
    """The hashes of all runs of words in evaluation questions, without templates."""

    num_words: int
    by_dataset: dict[str, NDArray[np.uint64]]
    """Sorted and distinct."""

    @classmethod
    def of(cls, questions: pa.Table, num_words: int) -> EvaluationWords:
        """Compute them from rows of `QUESTION_SCHEMA`, all of which are for evaluation."""
        runs: dict[str, list[NDArray[np.uint64]]] = {}
        for batch in questions.to_batches(max_chunksize=ROWS_AT_ONCE):
            for question in map(Question.from_row, batch.to_pylist()):
                own = np.unique(word_runs(question.text, num_words))
                runs.setdefault(question.dataset, []).append(own)
        every = [run for own in runs.values() for run in own]
        known, counts = np.unique(_joined(every), return_counts=True)
        templates = known[counts > TEMPLATE_QUESTIONS]
        by_dataset = {
            name: np.setdiff1d(_joined(own), templates) for name, own in sorted(runs.items())
        }
        return cls(num_words, by_dataset)

    def datasets_sharing(self, question: Question) -> list[str]:
        """The datasets with an evaluation question that shares a run of words with this one."""
        own = word_runs(question.text, self.num_words)
        return [name for name, runs in self.by_dataset.items() if _share_one(own, runs)]


def word_runs(text: str, num_words: int) -> NDArray[np.uint64]:
    """A hash of each run of this many words; for a shorter text, one of all its words."""
    words = np.array([_word_hash(word) for word in _WORD.findall(text.casefold())], np.uint64)
    if not len(words):
        return words
    size = min(num_words, len(words))
    # A polynomial of the words modulo 2^64, all runs at once.
    powers = np.array([pow(_FACTOR, power, 2**64) for power in range(size)], np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(words, size)
    runs: NDArray[np.uint64] = (windows * powers).sum(axis=1, dtype=np.uint64)
    return runs


def _share_one(own: NDArray[np.uint64], known: NDArray[np.uint64]) -> bool:
    """Whether one of a few hashes is among many sorted ones."""
    places = np.searchsorted(known, own)
    inside = places < len(known)
    return bool((known[places[inside]] == own[inside]).any())


def _joined(arrays: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    return np.concatenate([np.empty(0, np.uint64), *arrays])


@lru_cache(maxsize=1 << 16)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
