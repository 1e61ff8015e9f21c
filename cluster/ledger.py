"""The ledger of a step: one row a question, written at least once, read exactly once.

Workers write finished rows to immutable part files, a folder for each chunk of questions, and a
crash may leave a row twice or tear the last part. The reader keeps one row a question: the latest
attempt, and of equal attempts the one written first, so that what was once read stays what is
read. Part names begin with the time, so the order of names is the order of writing.

Every ledger row has `question_id`, `question_fingerprint` and `attempt`; the rest is the step's.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.fs

from cluster.storage import Folder

LEDGER_FIELDS = [
    pa.field("question_id", pa.string()),
    pa.field("question_fingerprint", pa.string()),
    pa.field("attempt", pa.int32()),
]


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the valid row of a question stands."""

    question_fingerprint: str
    attempt: int
    part: str
    row: int


@dataclass(frozen=True)
class Ledger:
    """The index of a ledger folder: which part holds each question's valid row."""

    folder: Folder
    entries: Mapping[str, Entry]
    torn_parts: list[str]
    """Parts that a crash cut short. Their rows were never promised; they are done again."""

    @classmethod
    def read(cls, folder: Folder) -> Ledger:
        """Index the folder as it stands; an empty or missing folder gives an empty ledger."""
        entries: dict[str, Entry] = {}
        torn: list[str] = []
        for part in sorted(part_names(folder), key=_written_order):
            try:
                index = folder.open_parquet(part).read(columns=[f.name for f in LEDGER_FIELDS])
            except pa.ArrowInvalid:
                torn.append(part)
                continue
            for row, (question_id, fingerprint, attempt) in enumerate(_index_rows(index)):
                known = entries.get(question_id)
                if known is None or known.attempt < attempt:
                    entries[question_id] = Entry(fingerprint, attempt, part, row)
        return cls(folder, entries, torn)

    def missing(self, wanted: Mapping[str, str]) -> list[str]:
        """The question ids of `{question_id: fingerprint}` that have no valid row, in order."""
        return [
            question_id
            for question_id, fingerprint in wanted.items()
            if question_id not in self.entries
            or self.entries[question_id].question_fingerprint != fingerprint
        ]

    def rows(self, wanted: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """The valid rows of the wanted questions, part by part, so that memory stays flat."""
        by_part: dict[str, list[int]] = {}
        missing = set(self.missing(wanted))
        for question_id in wanted:
            if question_id not in missing:
                entry = self.entries[question_id]
                by_part.setdefault(entry.part, []).append(entry.row)
        for part in sorted(by_part, key=_written_order):
            table = self.folder.open_parquet(part).read()
            yield from table.take(sorted(by_part[part])).to_pylist()


def part_names(folder: Folder) -> list[str]:
    """The part files below the folder, as paths relative to it."""
    selector = pa.fs.FileSelector(folder.path, allow_not_found=True, recursive=True)
    prefix = folder.path.rstrip("/") + "/"
    return [
        info.path.removeprefix(prefix)
        for info in folder.filesystem.get_file_info(selector)
        if info.type == pa.fs.FileType.File and info.base_name.startswith("part-")
    ]


def _written_order(part: str) -> str:
    return part.rpartition("/")[2]


def _index_rows(index: pa.Table) -> Iterator[tuple[str, str, int]]:
    columns = (index.column(field.name).to_pylist() for field in LEDGER_FIELDS)
    return zip(*columns, strict=True)


@dataclass
class PartWriter:
    """Writes the finished rows of one chunk to parts of its own. Not shared between tasks."""

    folder: Folder
    schema: pa.Schema
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _sequence: Iterator[int] = field(default_factory=itertools.count)

    def add(self, row: dict[str, Any]) -> int:
        """Keep a row for the next part; returns how many wait."""
        self._rows.append(row)
        return len(self._rows)

    def flush(self) -> None:
        """Make every waiting row durable. Raises `OSError` as the file system does."""
        rows, self._rows = self._rows, []
        if rows:
            table = pa.Table.from_pylist(rows, schema=self.schema)
            stamp = f"{time.time_ns() // 1_000_000:013d}"
            name = f"part-{stamp}-{next(self._sequence):04d}-{secrets.token_hex(4)}.parquet"
            self.folder.write_table(name, table)

    def written_ids(self) -> set[str]:
        """The questions that an earlier try of this chunk made durable before it died."""
        return set(Ledger.read(self.folder).entries)
