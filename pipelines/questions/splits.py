"""One split of one dataset as it was read: rows of a table, an order, and what to compare by.

A question is a Python object only until the ten thousand of its batch are read; then it is a row of
the table and two numbers of 8 bytes, one to order it by and one to compare it by. Two of a million
questions share such a number by accident once in 37 million runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluation.question import Question, Split
from pipelines.questions.sources.source import stable_hash

ROWS_PER_BATCH = 10_000
MAX_PIECES = 64


@dataclass(frozen=True)
class LoadedSplit:
    """Distinct questions, in the order in which a limit takes them."""

    dataset: str
    split: Split
    limit: int | None
    num_read: int
    is_generated: bool
    rows: pa.Table
    """All rows of the dataset as they were read, shared by its splits."""
    chosen: NDArray[np.int64]
    """Where in `rows` the questions are."""
    identities: NDArray[np.uint64]
    """The same length: what each question is compared by."""

    def distinct(self) -> LoadedSplit:
        """The first of each set of questions that are the same one."""
        _, first = np.unique(self.identities, return_index=True)
        first.sort()
        return replace(self, chosen=self.chosen[first], identities=self.identities[first])

    def for_comparison(self) -> LoadedSplit:
        """The same questions with their ids and texts alone, without the rest of the dataset."""
        columns = self.rows.select(["question_id", "question"])
        rows = pa.concat_tables([columns.slice(length=0), *pieces(columns, self.chosen)])
        return replace(self, rows=rows, chosen=np.arange(len(self.chosen)))

    def texts(self) -> Iterator[list[str]]:
        """The questions without their options, in order, batch by batch."""
        for piece in pieces(self.rows.select(["question"]), self.chosen):
            yield piece.column("question").to_pylist()

    def ids(self, places: NDArray[np.int64]) -> pa.Array:
        """The ids of the questions at some places of the order."""
        column = self.rows.column("question_id").take(pa.array(self.chosen[places]))
        return pa.array(column.to_pylist(), pa.string())


def identity(question: Question) -> int:
    """What is the same for the same question: a hash of its text with the options sorted."""
    if question.choices:
        question = replace(question, choices=tuple(sorted(question.choices)))
    return stable_hash(question.normalized_text)


def pieces(rows: pa.Table, chosen: NDArray[np.int64]) -> Iterator[pa.Table]:
    """The chosen rows, in the order of `chosen`, as several tables.

    `Table.take` copies every chunk that it takes from into one, which doubles the table and ends at
    2 GiB of text; `filter` goes chunk by chunk.
    """
    size = max(ROWS_PER_BATCH, -(-len(chosen) // MAX_PIECES))
    for start in range(0, len(chosen), size):
        wanted = chosen[start : start + size]
        mask = np.zeros(rows.num_rows, bool)
        mask[wanted] = True
        piece = rows.filter(pa.array(mask))  # in the order of `rows`
        yield piece.take(np.searchsorted(np.sort(wanted), wanted))
