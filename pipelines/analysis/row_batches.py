"""Reads the rows of a ledger a few at a time, so that a run of any size can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.errors import DamagedFileError
from cluster.store.folder import BROKEN_PARQUET
from cluster.store.ledger import Ledger

_BATCH_ROWS = 32
"""Questions that are in memory at a time, with all their paths."""
_LEFT_OUT = re.compile(r"(paths|samples)\..*token_ids\b.*|samples\..*")
"""Columns that nobody reads, and that take most of the memory."""


def row_batches(ledger: Ledger) -> Iterator[list[dict[str, Any]]]:
    """The valid rows of a ledger, a few at a time, without the ids of tokens.

    Raises `DamagedFileError`.
    """
    for part in ledger.split():
        file = part.files[part.index.column("file")[0].as_py()]
        valid = pc.sort_indices(part.index.column("row"))
        places = part.index.column("row").take(valid).combine_chunks()
        yield from _batches_of(part, file, places)


def _batches_of(ledger: Ledger, name: str, places: pa.Array) -> Iterator[list[dict[str, Any]]]:
    start = 0
    try:
        file = ledger.folder.open_parquet(name)
        columns = _columns_of(file.schema)
        end = places[-1].as_py() + 1
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
            if start >= end:
                return
            here = pc.and_(pc.greater_equal(places, start), pc.less(places, start + batch.num_rows))
            rows = pc.subtract(places.filter(here), pa.scalar(start, places.type))
            start += batch.num_rows
            if len(rows):
                yield batch.take(rows).to_pylist()
    except BROKEN_PARQUET as error:
        raise DamagedFileError(f"{ledger.folder.uri}/{name} is damaged ({error})") from error


def _columns_of(schema: pq.ParquetSchema) -> list[str]:
    names = [schema.column(number).path for number in range(len(schema))]
    return [name for name in names if not _LEFT_OUT.fullmatch(name)]
