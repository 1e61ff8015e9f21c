"""Packs records into chunks that the page opens when it needs them, and their index.

A chunk is compressed JSON with up to 250 records and the questions they belong to; the index has
the columns of all lines, in which a filter looks at whole numbers::

    chunk  {"questions": [{"question_id": ..., "text": ...}], "records": [[0, {...}], ...]}
    index  {"ids": [...], "fields": [{"name": "verdict", "values": ["correct", "wrong"],
            "codes": [0, 1, 1, ...]}, ...], "starts": [0, 250, 500], "total": 100000, ...}
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.report.paths.records import Line, Record

RECORDS_PER_CHUNK = 250
BYTES_PER_CHUNK = 2_000_000
"""Before compression, so that long paths do not make a chunk slow to open."""
_INDEX_BYTES = 50
"""Of a line in the index, besides its texts."""
FIELDS = {
    "run": "run",
    "round": "round",
    "dataset": "dataset",
    "kind": "kind",
    "guideline": "guideline",
    "verdict": "verdict",
    "outcome": "outcome",
    "read": "answer read",
    "ended": "ended",
}
"""The columns that have a filter, with their titles. The names are those in a permalink."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The lines of some records, and their contents as they are in the page."""

    lines: Sequence[Line]
    data: bytes
    """gzip."""
    size: int
    """Bytes that it takes in a page, about: base64, and the lines in the index."""


def pack(records: Iterable[Record]) -> Iterator[Chunk]:
    """The records as chunks, made one after another."""
    lines: list[Line] = []
    questions: dict[str, str] = {}
    contents: list[str] = []
    size = 0
    for record in records:
        asked = questions.setdefault(_json(record.question), str(len(questions)))
        content = f"[{asked},{_json(record.content)}]"
        lines.append(record.line)
        contents.append(content)
        size += len(content)
        if len(lines) == RECORDS_PER_CHUNK or size >= BYTES_PER_CHUNK:
            yield _chunk(lines, questions, contents)
            lines, questions, contents, size = [], {}, [], 0
    if lines:
        yield _chunk(lines, questions, contents)


def _chunk(lines: list[Line], questions: Iterable[str], contents: list[str]) -> Chunk:
    text = f'{{"questions":[{",".join(questions)}],"records":[{",".join(contents)}]}}'
    data = gzip.compress(text.encode(), 6, mtime=0)
    of_index = sum(len(line.id) + len(line.predicted) + _INDEX_BYTES for line in lines)
    return Chunk(tuple(lines), data, 4 * len(data) // 3 + of_index)


def _json(value: Any) -> str:
    """JSON as UTF-8 can hold it: only a text with half a surrogate pair is escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))
    return text


def index_of(chunks: Sequence[Chunk]) -> dict[str, Any]:
    """The index of some chunks, as JSON values."""
    lines = [line for chunk in chunks for line in chunk.lines]
    starts = [0]
    for chunk in chunks:
        starts.append(starts[-1] + len(chunk.lines))
    questions = _encoded([line.question_id for line in lines])
    return {
        "ids": [line.id for line in lines],
        "questions": questions["values"],
        "question": questions["codes"],
        "fields": [
            {"name": name, "title": title, **_encoded([getattr(line, name) for line in lines])}
            for name, title in FIELDS.items()
        ],
        "predicted": [line.predicted for line in lines],
        "tokens": [line.tokens for line in lines],
        "starts": starts,
    }


def _encoded(values: Sequence[str]) -> dict[str, Any]:
    """The distinct values, sorted, and for each value its place among them."""
    distinct = sorted(set(values))
    places = {value: place for place, value in enumerate(distinct)}
    return {"values": distinct, "codes": [places[value] for value in values]}


# --- limits ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one page may have."""

    num_records: int
    num_bytes: int

    def hold(self, chunks: Sequence[Chunk]) -> bool:
        """Whether a page may have all of these chunks; it may always have one."""
        num_records = sum(len(chunk.lines) for chunk in chunks)
        num_bytes = sum(chunk.size for chunk in chunks)
        return len(chunks) < 2 or (num_records <= self.num_records and num_bytes <= self.num_bytes)


@dataclass(slots=True)
class Gathered:
    """Chunks within limits: all of them, or every second, fourth, ... one where they are too many.

    The chunks come one after another, and only as many as the limits allow are in memory.
    """

    limits: Limits
    chunks: list[Chunk] = field(default_factory=list)
    every: int = 1
    """1 if all chunks are here, otherwise every how many-th is."""
    num_chunks: int = 0
    num_records: int = 0
    """Of all chunks that came."""

    def add(self, chunk: Chunk) -> None:
        """Keep the chunk, or leave it out of the sample."""
        place = self.num_chunks
        self.num_chunks += 1
        self.num_records += len(chunk.lines)
        if place % self.every:
            return
        self.chunks.append(chunk)
        while not self.limits.hold(self.chunks):
            self.chunks = self.chunks[::2]
            self.every *= 2


def split(
    chunks: Iterable[Chunk], limits: Limits, write: Callable[[int, Sequence[Chunk], bool], None]
) -> Gathered:
    """Gather the chunks and, where they are too many for one page, write all of them in parts.

    `write` gets the number of a part, from 0, its chunks, and whether it is the last one. It is not
    called if all fit.
    """
    gathered, part, number = Gathered(limits), list[Chunk](), 0
    for chunk in chunks:
        gathered.add(chunk)
        if not limits.hold([*part, chunk]):
            write(number, part, False)
            part, number = [], number + 1
        part.append(chunk)
    if number:
        write(number, part, True)
    return gathered
