"""The schedule of a job: which questions are still open, in what order, and in which chunks.

Everything is in Arrow columns, since there may be millions of questions. The order interleaves the
datasets by weight, so that every dataset advances from the start and a short one can end early.
Chunks are large at first, to keep the number of tasks low, and small at the end, so that all
workers finish together. A plan is a Parquet file with a row group for each chunk: workers read
their questions from storage, and the driver only handles chunk numbers.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.store.folder import Folder, parquet_bytes
from cluster.store.ledger import PARTS, Ledger, compact, load_file, open_ledger

PLAN_FILE = "plan.parquet"
LARGEST_CHUNK = 256
_RETRY_COLUMNS = ("attempt", "previous_file", "previous_row")
COMPACT_AT = 256
"""The number of part files of earlier executions from which they are compacted first."""


@dataclass(frozen=True)
class Questions:
    """The questions of some splits, in the Parquet files of a folder."""

    folder: Folder
    splits: tuple[str, ...]

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """Read the columns of `QUESTION_SCHEMA` and `question_fingerprint`."""
        needed = None if columns is None else sorted({*columns, "split"})
        table = self.folder.read_table(needed)
        return table.filter(pc.is_in(table.column("split"), pa.array(self.splits, pa.string())))

    def keys(self) -> pa.Table:
        """Read only what links a question to its row: id, fingerprint and dataset."""
        return self.read(["question_id", "question_fingerprint", "dataset"])


@dataclass(frozen=True)
class DatasetQuota:
    """The limits of a dataset in a job; they are checked when a question is begun."""

    weight: float = 1.0
    max_tokens: int | None = None
    max_accepted: int | None = None

    @property
    def is_limited(self) -> bool:
        return self.max_tokens is not None or self.max_accepted is not None

    def is_used_up(self, num_tokens: float, num_accepted: float) -> bool:
        """Whether no further question of the dataset may begin."""
        return (self.max_tokens is not None and num_tokens >= self.max_tokens) or (
            self.max_accepted is not None and num_accepted >= self.max_accepted
        )


def used_up(
    totals: Mapping[str, Mapping[str, int]],
    shares: Mapping[str, DatasetQuota],
    max_tokens: int | None = None,
) -> list[str]:
    """The datasets of a job from which no further question may begin: those that have used up their
    quota, and all of them once they have used `max_tokens` together."""
    if max_tokens is not None and num_tokens(totals) >= max_tokens:
        return list(totals)
    return [
        name
        for name, total in totals.items()
        if shares.get(name, DatasetQuota()).is_used_up(total["num_tokens"], total["num_accepted"])
    ]


def num_tokens(totals: Mapping[str, Mapping[str, int]]) -> int:
    """Tokens generated for all datasets together."""
    return sum(total["num_tokens"] for total in totals.values())


@dataclass(frozen=True)
class OpenWork:
    """The open work of a job for one execution."""

    execution: str
    num_chunks: int
    num_open: int
    totals: dict[str, dict[str, int]]
    """Earlier totals by dataset; see `Ledger.totals`."""


def open_questions(questions: pa.Table, ledger: Ledger, max_attempts: int) -> pa.Table:
    """The questions without a valid row, and those whose failed answers may be retried.

    Adds the column `attempt` and, for a retry, `previous_file` and `previous_row`, which locate the
    row of the previous attempt.
    """
    place = ledger.find(questions)
    found = ledger.index.take(place)
    attempts = pc.add(found.column("attempt"), 1)
    failed = pc.greater(found.column("num_failed"), 0)
    again = pc.and_(failed, pc.less(attempts, max_attempts))
    is_open = pc.or_kleene(pc.is_null(place), pc.fill_null(again, False))
    files = pa.array(ledger.files, pa.string()).take(found.column("file").combine_chunks())
    retried = questions.append_column("attempt", pc.fill_null(attempts, 0).cast(pa.int32()))
    retried = retried.append_column("previous_file", files)
    return retried.append_column("previous_row", found.column("row")).filter(is_open)


def interleave(questions: pa.Table, shares: Mapping[str, DatasetQuota]) -> pa.Table:
    """Order the questions by stride scheduling over the datasets.

    The i-th question of a dataset of weight w comes at virtual time (i + 1/2) / w.
    """
    datasets = questions.column("dataset").combine_chunks().dictionary_encode()
    codes = datasets.indices.to_numpy(zero_copy_only=False)
    times = np.empty(len(codes), dtype=np.float64)
    for code, dataset in enumerate(datasets.dictionary.to_pylist()):
        own = np.flatnonzero(codes == code)
        times[own] = (np.arange(len(own)) + 0.5) / shares.get(dataset, DatasetQuota()).weight
    return questions.take(pa.array(np.argsort(times, kind="stable")))


def chunk_sizes(num_questions: int, num_slots: int, smallest: int) -> list[int]:
    """The sizes of the chunks for `num_slots` chunks in flight over all workers.

    Guided self-scheduling (Polychronopoulos and Kuck, 1987): each chunk is a fraction of what is
    left, but never so large that a slot would get none at the start.
    """
    sizes: list[int] = []
    left = num_questions
    while left:
        even = math.ceil(left / max(1, num_slots - len(sizes)))
        size = min(even, LARGEST_CHUNK, max(smallest, left // (2 * num_slots)))
        sizes.append(size)
        left -= size
    return sizes


def plan_job(
    folder: Folder,
    schema: pa.Schema,
    questions: Questions,
    shares: Mapping[str, DatasetQuota],
    *,
    execution: str,
    num_slots: int,
    smallest: int,
    max_attempts: int,
    max_tokens: int | None = None,
    limit: int | None = None,
) -> OpenWork:
    """Find the open questions of a job and write its plan file; at most `limit` questions.

    Runs as a task and not on the driver, because its work grows with the number of questions.
    """
    asked = questions.read()
    ledger = _ledger_to_go_on(folder, schema, asked, max_attempts)
    totals = ledger.totals(asked)
    closed = pa.array(used_up(totals, shares, max_tokens), pa.string())
    still = asked.filter(pc.invert(pc.is_in(asked.column("dataset"), closed)))
    ordered = interleave(open_questions(still, ledger, max_attempts), shares)
    ordered = ordered.slice(0, limit)
    sizes = chunk_sizes(ordered.num_rows, num_slots, smallest)
    _write_plan(folder.child(posixpath.join(PARTS, execution)), ordered, sizes)
    return OpenWork(execution, len(sizes), ordered.num_rows, totals)


def _ledger_to_go_on(
    folder: Folder, schema: pa.Schema, asked: pa.Table, max_attempts: int
) -> Ledger:
    """The ledger of a job, opened for writing if there is work; a finished step is left closed."""
    if folder.manifest() is not None:
        ledger = Ledger.read(folder)
        if not open_questions(asked, ledger, max_attempts).num_rows:
            return ledger
    ledger = open_ledger(folder, schema)
    return compact(folder, schema) if len(ledger.files) >= COMPACT_AT else ledger


def _write_plan(folder: Folder, questions: pa.Table, sizes: list[int]) -> None:
    if not sizes:
        return
    folder.write_bytes(PLAN_FILE, parquet_bytes(questions, sizes))


def chunk_folder(execution: str, number: int) -> str:
    """The folder for the parts of a chunk, relative to the step's folder."""
    return posixpath.join(PARTS, execution, f"{number:06d}")


def read_chunk(folder: Folder, execution: str, number: int) -> list[dict[str, Any]]:
    """The questions of one chunk of a plan.

    They have `attempt` and `previous`, the complete row of the previous attempt or None.
    """
    plan = folder.child(posixpath.join(PARTS, execution)).open_parquet(PLAN_FILE)
    return with_previous(folder, plan.read_row_group(number))


def read_chunk_again(
    folder: Folder, execution: str, number: int, max_attempts: int
) -> list[dict[str, Any]]:
    """The same for a chunk whose worker died; the rows that this worker saved are kept."""
    plan = folder.child(posixpath.join(PARTS, execution)).open_parquet(PLAN_FILE)
    chunk = plan.read_row_group(number)
    written = Ledger.read(folder, chunk_folder(execution, number))
    own = chunk.select([name for name in chunk.column_names if name not in _RETRY_COLUMNS])
    failed = open_questions(own.filter(pc.is_valid(written.find(own))), written, max_attempts)
    return with_previous(folder, pa.concat_tables([written.missing(chunk), failed]))


def with_previous(folder: Folder, chunk: pa.Table) -> list[dict[str, Any]]:
    """The rows of a chunk with `previous` in place of its location."""
    rows: list[dict[str, Any]] = chunk.drop_columns(list(_RETRY_COLUMNS[1:])).to_pylist()
    places = zip(*(chunk.column(name).to_pylist() for name in _RETRY_COLUMNS[1:]), strict=True)
    tables: dict[str, pa.Table] = {}
    for row, (file, number) in zip(rows, places, strict=True):
        row["previous"] = None
        if file is not None:
            if file not in tables:
                tables[file] = load_file(folder, file)
            row["previous"] = tables[file].slice(number, 1).to_pylist()[0]
    return rows


def summarize(ledger: Ledger, wanted: pa.Table) -> dict[str, Any]:
    """The facts about the rows for a step's manifest: totals by dataset and overall."""
    totals = ledger.totals(wanted)
    over_all = {
        name: sum(total[name] for total in totals.values())
        for name in next(iter(totals.values()), {})
    }
    attempts = pc.value_counts(ledger.of(wanted).index.column("attempt")).to_pylist()
    return {
        **over_all,
        "attempts": {str(c["values"] + 1): c["counts"] for c in attempts},
        "datasets": totals,
    }
