"""Find questions that overlap with held-out ones, by three rules, and count them by dataset.

`exact`: the normalized texts are equal, or differ only in the order of their options. It applies
between all splits: a question is kept in test before dev, and in dev before train. `words` and
`masked` find partial overlaps of training questions with held-out ones
(`pipelines.questions.overlaps`). A row of the table that the `questions` step stores::

    {"question_id": "numglue/train/t8/00248", "dataset": "numglue", "split": "train",
     "held_out_id": "asdiv/test/nluds-0557", "held_out_dataset": "asdiv", "rule": "masked",
     "share": 0.8}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.questions.overlaps import RULES, HeldOutRuns, Overlaps, find_overlaps, matches
from pipelines.questions.splits import LoadedSplit

OVERLAP_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("dataset", pa.string()),
        ("split", pa.string()),
        ("held_out_id", pa.string()),
        ("held_out_dataset", pa.string()),
        ("rule", pa.string()),
        ("share", pa.float32()),
    ]
)
EXACT = "exact"


@dataclass(frozen=True)
class Compared:
    """The overlaps of one split of one dataset."""

    table: pa.Table
    """Every pair, as rows of `OVERLAP_SCHEMA`."""
    places: Mapping[str, NDArray[np.int64]]
    """By rule, the questions that overlap by it and by no earlier rule."""


class HeldOut:
    """All held-out questions of a run."""

    def __init__(self, parts: Iterable[LoadedSplit]) -> None:
        every = [part.for_comparison() for part in parts if part.split != "train"]
        test = [part for part in every if part.split == "test"]
        dev = [part for part in every if part.split == "dev"]
        self._before: dict[str, list[LoadedSplit]] = {"train": dev + test, "dev": test, "test": []}
        self._worded = [part for part in dev + test if not part.is_generated]

    @cached_property
    def _runs(self) -> list[HeldOutRuns]:
        return [
            HeldOutRuns.of(rule, (batch for part in self._worded for batch in part.texts()))
            for rule in RULES
        ]

    def compare(self, part: LoadedSplit) -> Compared:
        """The overlaps of the questions of one split with those that take precedence.

        Generated questions are only compared as a whole, because a family's questions share words.
        """
        found = [(_equal(part, self._before[part.split]), self._before[part.split])]
        if part.split == "train" and not part.is_generated and self._worded:
            partial = find_overlaps(self._runs, part.texts())
            found += [(overlaps, self._worded) for overlaps in partial]
        tables = [_pairs(part, overlaps, held_out) for overlaps, held_out in found]
        places: dict[str, NDArray[np.int64]] = {}
        seen = np.empty(0, np.int64)
        for overlaps, _ in found:
            places[overlaps.rule] = np.setdiff1d(overlaps.places, seen)
            seen = np.union1d(seen, overlaps.places)
        return Compared(pa.concat_tables(tables), places)


def _equal(part: LoadedSplit, held_out: Sequence[LoadedSplit]) -> Overlaps:
    """The pairs of equal questions."""
    known = np.concatenate([np.empty(0, np.uint64), *(other.identities for other in held_out)])
    order = np.argsort(known, kind="stable")
    own, others = matches(part.identities, known[order])
    return Overlaps(EXACT, own, order[others], np.ones(len(own)))


def _pairs(part: LoadedSplit, overlaps: Overlaps, held_out: Sequence[LoadedSplit]) -> pa.Table:
    """The pairs as rows; held-out questions are given by their index over all their splits."""
    tables = [OVERLAP_SCHEMA.empty_table()]
    start = 0
    for other in held_out:
        is_its = (overlaps.held_out >= start) & (overlaps.held_out < start + len(other.chosen))
        if is_its.any():
            ids = part.ids(overlaps.places[is_its])
            columns = {
                "question_id": ids,
                "dataset": pa.repeat(part.dataset, len(ids)),
                "split": pa.repeat(part.split, len(ids)),
                "held_out_id": other.ids(overlaps.held_out[is_its] - start),
                "held_out_dataset": pa.repeat(other.dataset, len(ids)),
                "rule": pa.repeat(overlaps.rule, len(ids)),
                "share": pa.array(overlaps.shares[is_its], pa.float32()),
            }
            tables.append(pa.table(columns, schema=OVERLAP_SCHEMA))
        start += len(other.chosen)
    return pa.concat_tables(tables)
