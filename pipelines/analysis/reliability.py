"""Whether the yields of the guidelines say something beyond these questions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.grader import Verdict
from evaluation.statistics import split_half_reliability

_RELIABILITY = pa.schema(
    [
        ("round", pa.int32()),
        ("dataset", pa.string()),
        ("num_questions", pa.int64()),
        ("num_guidelines", pa.int64()),
        ("reliability", pa.float64()),
    ]
)


def guideline_reliability(paths: pa.Table) -> pa.Table:
    """For each round and dataset, the split-half reliability of the guidelines' yields: 1 if other
    questions of this kind would rank them alike, 0 if the ranks are chance, and null where it is
    not defined. `paths` are rows of `PATHS_TABLE`, of which only the first pass counts.
    """
    given = paths.filter(pc.invert(paths.column("is_retry")))
    given = given.filter(pc.is_valid(given.column("guideline_id")))
    rows: list[dict[str, Any]] = []
    groups = given.group_by(["round", "dataset"]).aggregate([]).to_pylist()
    for key in sorted(groups, key=lambda group: (group["round"], group["dataset"])):
        is_own = pc.and_(
            pc.equal(given.column("round"), key["round"]),
            pc.equal(given.column("dataset"), key["dataset"]),
        )
        right, tries = _counts(given.filter(is_own))
        value = split_half_reliability(right, tries)
        sizes = {"num_questions": tries.shape[0], "num_guidelines": tries.shape[1]}
        rows.append(key | sizes | {"reliability": value})
    return pa.Table.from_pylist(rows, _RELIABILITY)


def _counts(paths: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Right paths and all paths, each questions x guidelines."""
    ids = paths.column("question_id").combine_chunks().dictionary_encode()
    names = paths.column("guideline_id").combine_chunks().dictionary_encode()
    place = (ids.indices.to_numpy(), names.indices.to_numpy())
    right = pc.equal(paths.column("verdict"), str(Verdict.CORRECT)).to_numpy().astype(np.int64)
    shape = (len(ids.dictionary), len(names.dictionary))
    counts, tries = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    np.add.at(counts, place, right)
    np.add.at(tries, place, 1)
    return counts, tries
