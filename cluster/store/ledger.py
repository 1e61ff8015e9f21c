"""The ledger of a step: one row per question, written at least once and read exactly once.

A step's folder contains::

    parts/<execution>/<chunk>/part-*.parquet   written as questions finish, never changed
    rows-*.parquet                             the same rows, compacted: fewer and larger files
    opened-<epoch>.json                        which files of earlier holders count
    manifest.json                              when every question has its row

A crash may leave a row twice, or cut off the last part. The reader keeps one row for each question
and fingerprint: the latest attempt and, of equal attempts, the one that was written first, so that
a row that was read once does not change. The order is given by numbers in the names, never by a
clock: the epoch of the holder (`cluster.store.holder`), the execution within it, and the part
within its chunk.

The last 16 digits of a name are a hash of the file's bytes and of the step's name. A file that was
truncated, changed, or copied from another step is not accepted, and its rows are generated again.

Every row has `LEDGER_FIELDS`; the other columns depend on the step.
"""

from __future__ import annotations

import itertools
import posixpath
import re
import secrets
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from cluster.errors import DamagedFileError, TakenOverError
from cluster.store.folder import (
    BROKEN_PARQUET,
    MANIFEST,
    OPENED,
    STEP_NAME,
    Folder,
    parquet_bytes,
    table_of,
)

LEDGER_FIELDS = [
    pa.field("question_id", pa.string()),
    pa.field("question_fingerprint", pa.string()),
    pa.field("attempt", pa.int32()),
    pa.field("dataset", pa.string()),
    pa.field("error", pa.string()),  # why the question was abandoned
    pa.field("num_paths", pa.int32()),  # reasoning paths; predictions do not count
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
"""In-memory size. Long reasoning fills a file sooner; Arrow cannot sort a column of 2 GiB of
text."""
READ_THREADS = 16
_SEALED = re.compile(r"-([0-9a-f]{16})\.parquet$")
_UNSEALED = re.compile(
    r"part-\d{13}-\d{4}-[0-9a-f]{8}\.parquet|rows-\d{13}-[0-9a-f]{4}-\d{6}\.parquet"
)
"""File names of an earlier version, which contain no hash."""
_EPOCH = re.compile(r"(?:^rows-|^parts/)(\d{6})-(\d+)-")


def ledger_schema(fields: Iterable[pa.Field]) -> pa.Schema:
    """The schema of a ledger's rows: `LEDGER_FIELDS`, and the further fields of a step."""
    return pa.schema([*LEDGER_FIELDS, *(field for field in fields if field.name not in _COLUMNS)])


@dataclass(frozen=True)
class Ledger:
    """The index of a ledger folder: where the valid row of each question is."""

    folder: Folder
    files: list[str]
    """Paths relative to the folder, in the order of writing."""
    index: pa.Table
    """`LEDGER_FIELDS`, `file` (a position in `files`) and `row`, with one entry for each question
    and fingerprint; about 150 bytes each."""
    num_rows_read: int
    """Rows in all files, including superseded and duplicate ones."""
    torn_files: list[str]
    """Truncated or damaged files. Their rows were never promised; they are generated again."""
    other_files: list[str]
    """Files that do not count: left by a crash, or by a holder that was superseded."""

    @classmethod
    def read(
        cls, folder: Folder, below: str = "", without: Collection[str] = (), *, whole: bool = False
    ) -> Ledger:
        """Index the folder, or only one of its subfolders; a missing folder is not an error.

        The files in `without` are ignored. With `whole`, each file is read completely and compared
        with the hash in its name; otherwise only the index columns are read. Raises
        `DamagedFileError` for a missing or damaged file of a finished step, and `TakenOverError`
        when another holder works on the step.
        """
        counting = _counting_files(folder, below)
        names = sorted(set(counting.names).difference(without), key=_written_order)
        read = _read_whole if whole else _read_index
        with ThreadPoolExecutor(READ_THREADS) as threads:
            indices = list(threads.map(lambda name: read(folder, name), names))
        torn = [name for name, index in zip(names, indices, strict=True) if index is None]
        if torn and counting.is_finished:
            raise DamagedFileError(f"{folder.uri}/{torn[0]} is damaged")
        found = [(name, index) for name, index in zip(names, indices, strict=True) if index]
        tables = [_locate(index, number) for number, (_, index) in enumerate(found)]
        rows = pa.concat_tables([_INDEX_SCHEMA.empty_table(), *tables])
        files = [name for name, _ in found]
        return cls(folder, files, _valid(rows), rows.num_rows, torn, counting.others)

    def find(self, wanted: pa.Table) -> pa.Array:
        """For each wanted `question_id` and fingerprint, its place in `index`, or null."""
        return pc.index_in(_keys(wanted), value_set=_keys(self.index))

    def missing(self, wanted: pa.Table) -> pa.Table:
        """The wanted questions that have no valid row, in the order of `wanted`."""
        return wanted.filter(pc.is_null(self.find(wanted)))

    def of(self, wanted: pa.Table) -> Ledger:
        """The same ledger with only those wanted questions that have a row."""
        return replace(self, index=self.index.take(self.find(wanted).drop_null()))

    def split(self) -> list[Ledger]:
        """For each file with any valid row, a ledger of its rows alone."""
        files = pc.unique(self.index.column("file")).sort().to_pylist()
        file = self.index.column("file")
        return [replace(self, index=self.index.filter(pc.equal(file, one))) for one in files]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The valid rows, one file at a time, so that memory use stays constant."""
        for number, rows in _by_file(self.index):
            yield from load_file(self.folder, self.files[number]).take(rows).to_pylist()

    def num_bytes(self) -> int:
        """The stored size of the files that contain any valid row."""
        names = [self.files[n] for n in pc.unique(self.index.column("file")).to_pylist()]
        return self.folder.num_bytes(names)

    def totals(self, wanted: pa.Table) -> dict[str, dict[str, int]]:
        """By dataset: the number of wanted questions, how many have a row, and sums of counts."""
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


@dataclass(frozen=True)
class _Counting:
    """Which of the files with rows in a folder count."""

    names: list[str]
    others: list[str]
    is_finished: bool


def _counting_files(folder: Folder, below: str) -> _Counting:
    """For a finished step, the files in its manifest. For a step that was opened, the files that
    existed then and those of the holder that opened it. Otherwise all. Raises as `Ledger.read`."""
    found = folder.walk(below)
    names = [name for name in found if is_ledger_file(name)]
    if below:
        return _Counting(names, [], False)
    manifest = folder.manifest() if MANIFEST in found else None
    if manifest and "files" in manifest:
        counting = {name for name in manifest["files"] if is_ledger_file(name)}
        for name in sorted(counting.difference(names)):
            raise DamagedFileError(f"{folder.uri}/{name} is missing")
    elif epoch := folder.latest_epoch():
        if 0 < folder.epoch < epoch:
            raise TakenOverError(f"another command has begun to work on {folder.uri}")
        opened = folder.read_json(_opened(epoch))
        if opened is None:
            raise DamagedFileError(f"{folder.uri}/{_opened(epoch)} is damaged")
        counting = {*opened["files"], *(name for name in names if epoch_of(name) >= epoch)}
    else:
        counting = {*names}
    others = [name for name in names if name not in counting]
    return _Counting([n for n in names if n in counting], others, bool(manifest))


def is_ledger_file(name: str) -> bool:
    """Whether a file, given by its path relative to the step's folder, contains rows."""
    base = posixpath.basename(name)
    is_sealed = base.startswith(("part-", "rows-")) and _SEALED.search(base)
    return bool(is_sealed or _UNSEALED.fullmatch(base))


def _opened(epoch: int) -> str:
    return f"{OPENED}{epoch:06d}.json"


def epoch_of(name: str) -> int:
    """The number of the holder that wrote a file or the folder of an execution."""
    found = _EPOCH.match(name)
    return int(found[1]) if found else 0


def _written_order(name: str) -> tuple[bool, int, int, str]:
    # Rows in compacted files had already won.
    base = posixpath.basename(name)
    found = _EPOCH.match(name)
    execution = found[2] if found else name.removeprefix(f"{PARTS}/").partition("/")[0]
    number = re.match(r"\d+", execution)
    return base.startswith("part-"), epoch_of(name), int(number[0]) if number else 0, base


def step_of(path: str) -> str:
    """The name of the step's folder in a path, such as `paths-3f2ac81d09be`."""
    names = (name for name in reversed(path.split("/")) if STEP_NAME.fullmatch(name))
    return next(names, "")


def _seal(path: str, data: pa.Buffer) -> str:
    """16 hex digits for the bytes of a file and its step. The hash guards against accidents, not
    attacks; it reaches 5 GiB/s, where SHA-256 reaches 0.5."""
    seal = xxhash.xxh3_64(step_of(path).encode() + b"\0")
    seal.update(data)
    return str(seal.hexdigest())


def seal_holds(folder: Folder, name: str, data: pa.Buffer) -> bool | None:
    """Whether a file's bytes match the hash in its name; None for a name without a hash."""
    sealed = _SEALED.search(name)
    return sealed[1] == _seal(folder.path, data) if sealed and is_ledger_file(name) else None


def _write_sealed(folder: Folder, name: str, table: pa.Table) -> None:
    """Write a file of the ledger, whose name ends with its hash."""
    data = parquet_bytes(table)
    folder.write_bytes(f"{name}-{_seal(folder.path, data)}.parquet", data)


def load_file(folder: Folder, name: str) -> pa.Table:
    """A file with all its columns. Raises `DamagedFileError` if it differs from what was
    written."""
    data, _ = _read_sealed(folder, name)
    return table_of(data, f"{folder.uri}/{name}")


def _read_sealed(folder: Folder, name: str) -> tuple[pa.Buffer, bool]:
    """The bytes of a file, and whether its name has a hash, which they then match."""
    uri = f"{folder.uri}/{name}"
    try:
        data = folder.read_buffer(name)
    except FileNotFoundError:
        raise DamagedFileError(f"{uri} is missing") from None
    holds = seal_holds(folder, name, data)
    if holds is False:
        raise DamagedFileError(
            f"{uri} is damaged or belongs to another step: its bytes do not match its name; "
            "repeat the command, which generates its rows again if the step is not finished"
        )
    return data, bool(holds)


def _read_whole(folder: Folder, name: str) -> pa.Table | None:
    """The ledger columns of one file, or None if it differs from what was written."""
    try:
        data, is_sealed = _read_sealed(folder, name)
        # Without a hash all pages have to be read.
        return table_of(data, name, _COLUMNS if is_sealed else None).select(_COLUMNS)
    except (DamagedFileError, KeyError):
        return None


def _read_index(folder: Folder, name: str) -> pa.Table | None:
    """The same, but only these columns are read."""
    try:
        return folder.open_parquet(name).read(columns=_COLUMNS, use_threads=False)
    except BROKEN_PARQUET:
        return _read_whole(folder, name)  # distinguishes damage from a store that does not answer


def _locate(index: pa.Table, file: int) -> pa.Table:
    size = index.num_rows
    located = index.append_column("file", pa.array([file] * size, pa.int32()))
    return located.append_column("row", pa.array(range(size), pa.int32())).cast(_INDEX_SCHEMA)


def _valid(rows: pa.Table) -> pa.Table:
    """The latest attempt of each question and fingerprint; of equal ones, the one written first."""
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
    """(file, its rows in ascending order) of an index, in the order of the files."""
    ordered = index.select(["file", "row"]).sort_by([("file", "ascending"), ("row", "ascending")])
    files = ordered.column("file").to_numpy()
    rows = ordered.column("row").combine_chunks()
    bounds = [0, *(np.flatnonzero(np.diff(files)) + 1).tolist(), len(files)]
    for start, end in itertools.pairwise(bounds):
        if end > start:
            yield int(files[start]), rows.slice(start, end - start)


# --- compaction --------------------------------------------------------------------------------


def compact(folder: Folder, schema: pa.Schema, *, whole: bool = False) -> Ledger:
    """Rewrite the parts as fewer, larger files, then remove them; returns the new ledger.

    No worker of this holder may be writing. A kill at any moment loses nothing, because a part is
    removed only after its rows are in a new file. Files that another holder writes at the same time
    are kept: only files that were read are removed. Compacting a compact ledger does nothing.
    `whole` is that of `Ledger.read`. Raises `RuntimeError` when the remaining files do not contain
    each row exactly once, and otherwise raises as `Ledger.read` does.
    """
    ledger = Ledger.read(folder, whole=whole)
    gone = [*_stale_files(ledger), *ledger.torn_files, *ledger.other_files]
    if gone:
        folder.check_claim()
        _rewrite(ledger, gone, schema)
        stay = Ledger.read(folder, without=gone)
        rows, kept = (of.index.select(_COLUMNS) for of in (ledger, stay))
        if stay.num_rows_read != rows.num_rows or not kept.equals(rows):
            folder.check_claim()
            raise RuntimeError(f"{folder.uri}: the compacted rows are not those of the parts")
        folder.check_claim()
        # A disk may forget the new files and not that the old ones are gone, when the power fails.
        folder.sync(name for name in stay.files if name not in ledger.files)
        folder.delete_files(gone)
        ledger = replace(stay, other_files=[])
    _delete_executions(folder)
    return ledger


def _delete_executions(folder: Folder) -> None:
    """Remove what is left of the executions of this holder and of earlier ones."""
    parts = folder.child(PARTS)
    for execution in parts.folder_names():
        if epoch_of(f"{PARTS}/{execution}") <= folder.epoch:
            parts.child(execution).delete()
    parts.delete_if_empty()


def open_ledger(folder: Folder, schema: pa.Schema) -> Ledger:
    """Begin to work on a step: read every file completely, compact, and record which files count.

    From then on nothing counts that an earlier holder writes, and no file that counts is one that
    an earlier holder might remove. This is done once per holder and step; later calls read the
    ledger as it is.
    """
    epoch = folder.epoch
    if not epoch:  # nobody else writes outside a run
        return Ledger.read(folder, whole=True)
    if folder.latest_epoch() == epoch:
        return Ledger.read(folder)
    folder.check_claim()
    ledger = compact(folder, schema, whole=True)
    folder.delete_files([MANIFEST])
    folder.write_json(_opened(epoch), {"files": ledger.files})
    names = [name for name in folder.file_names(".json") if name.startswith(OPENED)]
    folder.delete_files([name for name in names if name < _opened(epoch)])
    return ledger


def new_execution(folder: Folder) -> str:
    """A name for the parts of a new execution, which sorts after the existing ones."""
    found = (_written_order(f"{PARTS}/{n}/part-") for n in folder.child(PARTS).folder_names())
    number = 1 + max((order[2] for order in found), default=0)
    return f"{folder.epoch:06d}-{number:06d}-{secrets.token_hex(2)}"


def adopt_rows(folder: Folder, source: Folder, schema: pa.Schema) -> int:
    """Copy the rows of another step as incomplete rows of this one; returns how many.

    Their attempt is -1, so the next attempt is the first one, and its handler gets the paths that
    exist. A question that already has a row keeps it. Raises as `Ledger.read` does.
    """
    own, other = open_ledger(folder, schema), Ledger.read(source)
    parts = folder.child(f"{PARTS}/{new_execution(folder)}/000000")
    wanted = replace(other, index=own.missing(other.index))
    for number, (file, rows) in enumerate(_by_file(wanted.index)):
        table = _fit(load_file(source, other.files[file]).take(rows), schema)
        for name, value in (("attempt", -1), ("num_failed", 1)):
            column = pa.array([value] * table.num_rows, pa.int32())
            table = table.set_column(table.schema.get_field_index(name), name, column)
        _write_sealed(parts, f"part-{number:06d}", table)
    return int(wanted.index.num_rows)


def _stale_files(ledger: Ledger) -> list[str]:
    """All parts, and compacted files with rows that a later attempt has superseded."""
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
    """Write the valid rows of the stale files to new files."""
    numbers = itertools.count(1 + _latest_rows(ledger.folder))
    waiting: list[pa.Table] = []
    num_waiting = 0
    wanted = set(stale)
    for file, rows in _by_file(ledger.index):
        if ledger.files[file] not in wanted:
            continue
        waiting.append(load_file(ledger.folder, ledger.files[file]).take(rows))
        num_waiting += len(rows)
        num_bytes = sum(table.nbytes for table in waiting)
        if num_waiting >= ROWS_PER_FILE or num_bytes >= BYTES_PER_FILE:
            _write_rows(ledger.folder, next(numbers), waiting, schema)
            waiting, num_waiting = [], 0
    if waiting:
        _write_rows(ledger.folder, next(numbers), waiting, schema)


def _latest_rows(folder: Folder) -> int:
    """The highest number of a compacted file of this holder."""
    names = [name for name in folder.file_names(".parquet") if name.startswith("rows-")]
    own = (_written_order(name) for name in names)
    return max((order[2] for order in own if order[1] == folder.epoch), default=0)


def _write_rows(folder: Folder, number: int, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    table = pa.concat_tables([_fit(table, schema) for table in tables]).sort_by("question_id")
    _write_sealed(folder, f"rows-{folder.epoch:06d}-{number:06d}", table)


def _fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the schema's columns; columns that older rows lack are null."""
    for column in schema:
        if column.name not in table.column_names:
            table = table.append_column(column, pa.nulls(table.num_rows, column.type))
    return table.select(schema.names).cast(schema)


# --- writing -----------------------------------------------------------------------------------


@dataclass
class PartWriter:
    """Writes the finished rows of one chunk to separate parts. Not thread-safe."""

    folder: Folder
    schema: pa.Schema
    _numbers: Iterator[int] | None = None

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Save the rows as one part. Raises `StorageError`."""
        if self._numbers is None:  # continue after the parts of the chunk's previous worker
            self._numbers = itertools.count(len(self.folder.file_names(".parquet")))
        table = pa.Table.from_pylist(rows, schema=self.schema)
        _write_sealed(self.folder, f"part-{next(self._numbers):06d}", table)
