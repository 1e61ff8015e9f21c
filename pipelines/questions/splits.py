"""One split of one dataset as it was loaded: rows of a table, an order, and comparison keys.

A question is a Python object only while its batch of ten thousand is read. Then it is a row of the
table and two numbers of 8 bytes, one that orders it and one that it is compared by. Among a million
questions, the chance that any two share such a number by accident is one in 37 million.
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
    """All loaded rows of the dataset, shared by its splits."""
    chosen: NDArray[np.int64]
    """The indices of the questions in `rows`."""
    identities: NDArray[np.uint64]
    """The key by which each question is compared; the same length."""

    def distinct(self) -> LoadedSplit:
        """The first of each set of equal questions."""
        _, first = np.unique(self.identities, return_index=True)
        first.sort()
        return replace(self, chosen=self.chosen[first], identities=self.identities[first])

    def for_comparison(self) -> LoadedSplit:
        """The same questions with only their ids and texts, without the rest of the dataset."""
        columns = self.rows.select(["question_id", "question"])
        rows = pa.concat_tables([columns.slice(length=0), *pieces(columns, self.chosen)])
        return replace(self, rows=rows, chosen=np.arange(len(self.chosen)))

    def texts(self) -> Iterator[list[str]]:
        """The questions without their options, in order, batch by batch."""
        for piece in pieces(self.rows.select(["question"]), self.chosen):
            yield piece.column("question").to_pylist()

    def ids(self, places: NDArray[np.int64]) -> pa.Array:
        """The ids of the questions at some positions in the order."""
        column = self.rows.column("question_id").take(pa.array(self.chosen[places]))
        return pa.array(column.to_pylist(), pa.string())


def identity(question: Question) -> int:
    """The same for equal questions: a hash of the text with the options sorted."""
    if question.choices:
        question = replace(question, choices=tuple(sorted(question.choices)))
    return stable_hash(question.normalized_text)


def pieces(rows: pa.Table, chosen: NDArray[np.int64]) -> Iterator[pa.Table]:
    """The chosen rows, in the order of `chosen`, as several tables.

    `Table.take` copies all chunks that it uses into one, which doubles the memory and fails at 2
    GiB of text; `filter` works chunk by chunk.
    """
    size = max(ROWS_PER_BATCH, -(-len(chosen) // MAX_PIECES))
    for start in range(0, len(chosen), size):
        wanted = chosen[start : start + size]
        mask = np.zeros(rows.num_rows, bool)
        mask[wanted] = True
        piece = rows.filter(pa.array(mask))  # in the order of `rows`
        yield piece.take(np.searchsorted(np.sort(wanted), wanted))
