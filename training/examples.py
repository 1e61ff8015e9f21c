"""The training examples as they lie on storage: counted by the driver, read by the workers.

A row (Parquet; token ids only)::

    example_id        "gsm8k/train/00042/regenesis/decompose/0"
    question_id       "gsm8k/train/00042"
    prompt_token_ids  [1, 9690, 198, ...]       what the model is asked
    target_token_ids  [504, 1690, ..., 2]       what it shall answer, its end-of-turn token last
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import InputError
from cluster.storage import Folder

COLUMNS = ["example_id", "prompt_token_ids", "target_token_ids"]


@dataclass(frozen=True)
class Survey:
    """What a folder of examples holds for a given `max_length`."""

    num_examples: int
    num_dropped_too_long: int
    digest: str
    """Of the kept ids, whatever their order: 16 hex digits."""


def survey(folder: Folder, max_length: int) -> Survey:
    """Count the examples and check them, one row group in memory at a time.

    Raises `InputError` when there is nothing to train on, when an id comes twice and when a
    prompt or a target is empty.
    """
    ids: list[str] = []
    kept: list[str] = []
    longest = 0
    for batch in _batches(folder):
        names = batch.column("example_id").to_pylist()
        lengths = _lengths(batch).to_pylist()
        _refuse_empty(batch, names, folder)
        ids.extend(names)
        kept.extend(name for name, n in zip(names, lengths, strict=True) if n <= max_length)
        longest = max([longest, *lengths])
    _refuse_useless(ids, kept, longest, max_length, folder)
    digest = hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()[:16]
    return Survey(len(ids), len(ids) - len(kept), digest)


def read_examples(folder: Folder, max_length: int) -> pa.Table:
    """The examples that are short enough, with `COLUMNS`; about 4 bytes a token in memory."""
    table = folder.read_table(COLUMNS)
    return table.filter(pc.less_equal(_lengths(table), max_length)).combine_chunks()


def _batches(folder: Folder) -> Iterator[pa.RecordBatch]:
    for name in folder.file_names(".parquet"):
        file = folder.open_parquet(name)
        missing = set(COLUMNS) - set(file.schema_arrow.names)
        if missing:
            raise InputError(f"{folder.uri}/{name} has no column {', '.join(sorted(missing))}")
        yield from file.iter_batches(columns=COLUMNS)


def _lengths(rows: pa.Table | pa.RecordBatch) -> pa.Array:
    """Tokens of prompt and target together, per row."""
    return pc.add(
        pc.list_value_length(rows.column("prompt_token_ids")),
        pc.list_value_length(rows.column("target_token_ids")),
    )


def _refuse_empty(batch: pa.RecordBatch, names: list[str], folder: Folder) -> None:
    for column in ("prompt_token_ids", "target_token_ids"):
        counts = pc.list_value_length(batch.column(column)).to_pylist()
        for name, count in zip(names, counts, strict=True):
            if not count:
                raise InputError(
                    f"example {name!r} in {folder.uri} has no {column}: the first token to learn "
                    "needs one before it, and one to learn; drop the example"
                )


def _refuse_useless(
    ids: list[str], kept: list[str], longest: int, max_length: int, folder: Folder
) -> None:
    if not ids:
        raise InputError(f"no training examples in {folder.uri}")
    twice, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise InputError(f"example {twice!r} stands twice in {folder.uri}; ids must be distinct")
    if not kept:
        raise InputError(
            f"all {len(ids)} examples in {folder.uri} are longer than training.max_length "
            f"{max_length}; the longest has {longest} tokens: set it to that"
        )
