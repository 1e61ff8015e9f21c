"""The ledger of a step: one row a question, written at least once, read exactly once.

A step's folder holds::

    parts/<execution>/<chunk>/part-*.parquet   as the workers finish questions, never changed
    rows-*.parquet                             the same rows, compacted: fewer and larger files
    manifest.json                              when every question has its row

A crash may leave a row twice, or tear the last part. The reader keeps one row for each question
and fingerprint: the latest attempt, and of equal attempts the one written first, so that what was
once read stays what is read. Names hold the time, so their order is the order of writing.

Every row has `LEDGER_FIELDS`; the rest is the step's own.
"""

from __future__ import annotations

import itertools
import posixpath
import secrets
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.storage import Folder

LEDGER_FIELDS = [
    pa.field("question_id", pa.string()),
    pa.field("question_fingerprint", pa.string()),
    pa.field("attempt", pa.int32()),
    pa.field("dataset", pa.string()),
    pa.field("error", pa.string()),  # why the whole question was given up
    pa.field("num_paths", pa.int32()),  # reasoning paths; a prediction is none
    pa.field("num_accepted", pa.int32()),
    pa.field("num_failed", pa.int32()),
    pa.field("num_truncated", pa.int32()),
    pa.field("num_tokens", pa.int64()),  # generated
    pa.field("num_prompt_tokens", pa.int64()),
]
_COLUMNS = [field.name for field in LEDGER_FIELDS]
SUMMED = [name for name in _COLUMNS if name.startswith("num_")]
_INDEX_SCHEMA = pa.schema([*LEDGER_FIELDS, ("file", pa.int32()), ("row", pa.int32())])

PARTS = "parts"
ROWS_PER_FILE = 2048
BYTES_PER_FILE = 256 * 2**20
"""In memory. Long reasoning fills a file sooner; Arrow sorts no column of 2 GiB of text."""
READ_THREADS = 16


def ledger_schema(fields: Iterable[pa.Field]) -> pa.Schema:
    """The schema of a ledger's rows: `LEDGER_FIELDS`, and those of a step that are not in it."""
    return pa.schema([*LEDGER_FIELDS, *(field for field in fields if field.name not in _COLUMNS)])


@dataclass(frozen=True)
class Ledger:
    """The index of a ledger folder: where the valid row of each question stands."""

    folder: Folder
    files: list[str]
    """Relative to the folder, in the order of writing."""
    index: pa.Table
    """`LEDGER_FIELDS`, `file` (a position in `files`) and `row`: one for each question and
    fingerprint, about 150 bytes each."""
    num_rows_read: int
    """Rows in all files, superseded and doubled ones included."""
    torn_files: list[str]
    """Cut short by a crash. Their rows were never promised; they are done again."""

    @classmethod
    def read(cls, folder: Folder, below: str = "", without: Collection[str] = ()) -> Ledger:
        """Index the folder, or only what stands below one of its folders; none is no error.

        Leaves the files `without` aside, as if they were gone.
        """
        names = sorted({*_data_files(folder, below)}.difference(without), key=_written_order)
        with ThreadPoolExecutor(READ_THREADS) as threads:
            indices = list(threads.map(lambda name: _read_index(folder, name), names))
        torn = [name for name, index in zip(names, indices, strict=True) if index is None]
        whole = [(name, index) for name, index in zip(names, indices, strict=True) if index]
        tables = [_locate(index, number) for number, (_, index) in enumerate(whole)]
        rows = pa.concat_tables([_INDEX_SCHEMA.empty_table(), *tables])
        return cls(folder, [name for name, _ in whole], _valid(rows), rows.num_rows, torn)

    def find(self, wanted: pa.Table) -> pa.Array:
        """For each wanted `question_id` and fingerprint, its place in `index` or null."""
        return pc.index_in(_keys(wanted), value_set=_keys(self.index))

    def missing(self, wanted: pa.Table) -> pa.Table:
        """The wanted questions that have no valid row, in the order of `wanted`."""
        return wanted.filter(pc.is_null(self.find(wanted)))

    def of(self, wanted: pa.Table) -> Ledger:
        """The same ledger with only those wanted questions that have a row."""
        return replace(self, index=self.index.take(self.find(wanted).drop_null()))

    def split(self) -> list[Ledger]:
        """For each file that holds any valid row a ledger of its rows alone."""
        files = pc.unique(self.index.column("file")).sort().to_pylist()
        file = self.index.column("file")
        return [replace(self, index=self.index.filter(pc.equal(file, one))) for one in files]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The valid rows, file by file, so that memory stays flat."""
        for number, rows in _by_file(self.index):
            table = self.folder.open_parquet(self.files[number]).read()
            yield from table.take(rows).to_pylist()

    def num_bytes(self) -> int:
        """The size on storage of the files that hold any valid row."""
        names = [self.files[n] for n in pc.unique(self.index.column("file")).to_pylist()]
        return self.folder.num_bytes(names)

    def totals(self, wanted: pa.Table) -> dict[str, dict[str, int]]:
        """By dataset: how many wanted questions, how many have a row, and sums of the counts."""
        asked = wanted.group_by("dataset").aggregate([("question_id", "count")])
        done = self.of(wanted).index.group_by("dataset")
        sums = done.aggregate([("question_id", "count"), *((name, "sum") for name in SUMMED)])
        counts = {
            row["dataset"]: {"num_questions": row["question_id_count"], "num_done": 0}
            | dict.fromkeys(SUMMED, 0)
            for row in asked.to_pylist()
        }
        for row in sums.to_pylist():
            summed = {name: row[f"{name}_sum"] or 0 for name in SUMMED}
            counts[row["dataset"]] |= {"num_done": row["question_id_count"], **summed}
        return counts


def _data_files(folder: Folder, below: str) -> list[str]:
    """The Parquet files that hold rows, as paths relative to the folder."""
    return [
        name
        for name in folder.walk(below)
        if posixpath.basename(name).startswith(("part-", "rows-")) and name.endswith(".parquet")
    ]


def _written_order(name: str) -> tuple[bool, str]:
    # What was compacted had won already.
    base = posixpath.basename(name)
    return base.startswith("part-"), base


def _read_index(folder: Folder, name: str) -> pa.Table | None:
    """The ledger columns of one file, or None when a crash cut it short."""
    try:
        return folder.open_parquet(name).read(columns=_COLUMNS, use_threads=False)
    except pa.ArrowInvalid:
        return None


def _locate(index: pa.Table, file: int) -> pa.Table:
    size = index.num_rows
    located = index.append_column("file", pa.array([file] * size, pa.int32()))
    return located.append_column("row", pa.array(range(size), pa.int32())).cast(_INDEX_SCHEMA)


def _valid(rows: pa.Table) -> pa.Table:
    """The latest attempt of each question and fingerprint; of equal ones the first written."""
    ordered = rows.append_column("key", _keys(rows)).sort_by(
        [
            ("key", "ascending"),
            ("attempt", "descending"),
            ("file", "ascending"),
            ("row", "ascending"),
        ]
    )
    keys = ordered.column("key").combine_chunks()
    if len(keys) > 1:
        is_first = pc.not_equal(keys.slice(1), keys.slice(0, len(keys) - 1))
        ordered = ordered.filter(pa.concat_arrays([pa.array([True]), is_first]))
    return ordered.drop_columns("key")


def _keys(table: pa.Table) -> pa.Array:
    """What a row answers: a changed question with an old id is another question."""
    keys = pc.binary_join_element_wise(
        table.column("question_id"), table.column("question_fingerprint"), "\x1f"
    )
    return keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys


def _by_file(index: pa.Table) -> Iterator[tuple[int, pa.Array]]:
    """(file, its rows ascending) of an index, in the order of the files."""
    ordered = index.select(["file", "row"]).sort_by([("file", "ascending"), ("row", "ascending")])
    files = ordered.column("file").to_numpy()
    rows = ordered.column("row").combine_chunks()
    bounds = [0, *(np.flatnonzero(np.diff(files)) + 1).tolist(), len(files)]
    for start, end in itertools.pairwise(bounds):
        if end > start:
            yield int(files[start]), rows.slice(start, end - start)


# --- compaction --------------------------------------------------------------------------------


def compact(folder: Folder, schema: pa.Schema) -> Ledger:
    """Rewrite the parts as few larger files, then remove them; returns the new ledger.

    Only while no worker writes. Killed at any moment it loses nothing: a part goes when the rows
    it held stand in a new file. Compacting what is compact does nothing. Raises `RuntimeError`
    when the files that are to stay do not hold each row exactly once.
    """
    ledger = Ledger.read(folder)
    gone = [*_stale_files(ledger), *ledger.torn_files]
    if gone:
        _rewrite(ledger, gone, schema)
        stay = Ledger.read(folder, without=gone)
        rows, kept = (of.index.select(_COLUMNS) for of in (ledger, stay))
        if stay.num_rows_read != rows.num_rows or not kept.equals(rows):
            raise RuntimeError(f"{folder.uri}: the compacted rows are not those of the parts")
        folder.delete_files(gone)
        ledger = stay
    folder.child(PARTS).delete()
    return ledger


def _stale_files(ledger: Ledger) -> list[str]:
    """All parts, and compacted files of which some rows were superseded by a later attempt."""
    valid = dict.fromkeys(range(len(ledger.files)), 0)
    for file, rows in _by_file(ledger.index):
        valid[file] = len(rows)
    return [
        name
        for number, name in enumerate(ledger.files)
        if posixpath.basename(name).startswith("part-")
        or valid[number] < ledger.folder.open_parquet(name).metadata.num_rows
    ]


def _rewrite(ledger: Ledger, stale: list[str], schema: pa.Schema) -> None:
    """Write the valid rows of the stale files anew."""
    stamp = f"{time.time_ns() // 1_000_000:013d}-{secrets.token_hex(2)}"
    numbers = itertools.count()
    waiting: list[pa.Table] = []
    num_waiting = 0
    wanted = set(stale)
    for file, rows in _by_file(ledger.index):
        if ledger.files[file] not in wanted:
            continue
        waiting.append(ledger.folder.open_parquet(ledger.files[file]).read().take(rows))
        num_waiting += len(rows)
        num_bytes = sum(table.nbytes for table in waiting)
        if num_waiting >= ROWS_PER_FILE or num_bytes >= BYTES_PER_FILE:
            _write_rows(ledger.folder, f"{stamp}-{next(numbers):06d}", waiting, schema)
            waiting, num_waiting = [], 0
    if waiting:
        _write_rows(ledger.folder, f"{stamp}-{next(numbers):06d}", waiting, schema)


def _write_rows(folder: Folder, stamp: str, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    table = pa.concat_tables([_fit(table, schema) for table in tables]).sort_by("question_id")
    folder.write_table(f"rows-{stamp}.parquet", table)


def _fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the schema's columns; those of a later version are null in older rows."""
    for column in schema:
        if column.name not in table.column_names:
            table = table.append_column(column, pa.nulls(table.num_rows, column.type))
    return table.select(schema.names).cast(schema)


# --- writing -----------------------------------------------------------------------------------


@dataclass
class PartWriter:
    """Writes the finished rows of one chunk to parts of its own. Not shared between threads."""

    folder: Folder
    schema: pa.Schema
    _sequence: Iterator[int] = field(default_factory=itertools.count)

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Make the rows durable as one part. Raises `OSError` as the file system does."""
        table = pa.Table.from_pylist(rows, schema=self.schema)
        stamp = f"{time.time_ns() // 1_000_000:013d}"
        name = f"part-{stamp}-{next(self._sequence):04d}-{secrets.token_hex(4)}.parquet"
        self.folder.write_table(name, table)
