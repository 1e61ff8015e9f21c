"""The training examples as they lie on storage: counted by the driver, read by the workers.

A row (Parquet; token ids only)::

    example_id        "gsm8k/train/00042/regenesis/decompose/0"
    question_id       "gsm8k/train/00042"
    dataset           "gsm8k"                   read when the config asks for datasets
    prompt_token_ids  [1, 9690, 198, ...]       what the model is asked
    target_token_ids  [504, 1690, ..., 2]       what it shall answer, its end-of-turn token last
    vote_share        0.84                      read when `training.weight_by` names it
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import InputError
from cluster.storage import Folder
from training.settings import TrainingSettings


@dataclass(frozen=True)
class Survey:
    """What a folder of examples holds for a training."""

    num_examples: int
    num_dropped_too_long: int
    num_truncated: int
    counts: dict[str, int]
    """Kept examples of each dataset; empty when the training does not ask for datasets."""
    digest: str
    """Of the kept ids, whatever their order: 16 hex digits."""

    @property
    def num_kept(self) -> int:
        return self.num_examples - self.num_dropped_too_long


def survey(folder: Folder, settings: TrainingSettings, dataset: str | None = None) -> Survey:
    """Count the examples, of one dataset or of all, and check them; one row group in memory.

    Raises `InputError` when there are too few, when an id comes twice, when a prompt or a target is
    empty, and when a weight is no positive number.
    """
    ids: list[str] = []
    kept: list[str] = []
    counts: Counter[str] = Counter()
    longest = num_truncated = 0
    for batch in _batches(folder, settings, dataset):
        names = batch.column("example_id").to_pylist()
        lengths = _lengths(batch).to_pylist()
        _refuse_empty(batch, names, folder)
        _refuse_weightless(batch, settings.weight_by, folder)
        ids.extend(names)
        fits = _fits(batch, settings).to_pylist()
        kept.extend(itertools.compress(names, fits))
        if "dataset" in batch.schema.names:
            counts.update(itertools.compress(batch.column("dataset").to_pylist(), fits))
        longest = max([longest, *lengths])
        num_truncated += sum(n > settings.max_length for n in itertools.compress(lengths, fits))
    where = folder.uri if dataset is None else f"{folder.uri} of the dataset {dataset}"
    _refuse_useless(ids, kept, longest, settings, where)
    _refuse_too_few(len(kept), settings, where)
    _refuse_unweighted(counts, settings)
    digest = hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()[:16]
    num_dropped = len(ids) - len(kept)
    return Survey(len(ids), num_dropped, num_truncated, dict(sorted(counts.items())), digest)


def read_examples(
    folder: Folder, settings: TrainingSettings, dataset: str | None = None
) -> pa.Table:
    """The examples that are learnt, none longer than allowed; about 4 bytes a token in memory."""
    table = pa.Table.from_batches(_batches(folder, settings, dataset))
    table = table.filter(_fits(table, settings)).combine_chunks()
    if settings.too_long == "drop":
        return table
    targets = "target_token_ids"
    room = pc.subtract(settings.max_length, pc.list_value_length(table.column("prompt_token_ids")))
    cut = _cut(table.column(targets).combine_chunks(), room.to_numpy())
    return table.set_column(table.schema.get_field_index(targets), targets, cut)


def _fits(rows: pa.Table | pa.RecordBatch, settings: TrainingSettings) -> pa.Array:
    """Which rows are learnt: short enough, or short enough once their target is cut."""
    if settings.too_long == "drop":
        return pc.less_equal(_lengths(rows), settings.max_length)
    return pc.less(pc.list_value_length(rows.column("prompt_token_ids")), settings.max_length)


def _cut(lists: pa.ListArray, room: npt.NDArray[np.int64]) -> pa.ListArray:
    """Each list without what exceeds its room."""
    lengths = pc.list_value_length(lists).to_numpy()
    kept = np.minimum(lengths, room)
    starts = np.cumsum(lengths) - lengths
    tokens = lists.flatten().to_numpy()
    place = np.arange(len(tokens)) - np.repeat(starts, lengths)
    ends = np.concatenate([[0], np.cumsum(kept)]).astype(np.int32)
    return pa.ListArray.from_arrays(ends, tokens[place < np.repeat(kept, lengths)])


def _columns(settings: TrainingSettings, dataset: str | None) -> list[str]:
    """The columns that a training reads."""
    columns = ["example_id", "prompt_token_ids", "target_token_ids"]
    if dataset is not None or settings.is_mixed:
        columns.append("dataset")
    if settings.weight_by is not None:
        columns.append(settings.weight_by)
    return columns


def _batches(
    folder: Folder, settings: TrainingSettings, dataset: str | None
) -> Iterator[pa.RecordBatch]:
    columns = _columns(settings, dataset)
    for name in folder.file_names(".parquet"):
        file = folder.open_parquet(name)
        missing = set(columns) - set(file.schema_arrow.names)
        if missing:
            raise InputError(f"{folder.uri}/{name} has no column {', '.join(sorted(missing))}")
        for batch in file.iter_batches(columns=columns):
            yield (
                batch
                if dataset is None
                else batch.filter(pc.equal(batch.column("dataset"), dataset))
            )


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


def _refuse_weightless(batch: pa.RecordBatch, column: str | None, folder: Folder) -> None:
    if column is None:
        return
    names = batch.column("example_id").to_pylist()
    for name, weight in zip(names, batch.column(column).to_pylist(), strict=True):
        if not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise InputError(
                f"example {name!r} in {folder.uri} has the {column} {weight!r}: "
                "training.weight_by needs a positive number in every example"
            )


def _refuse_useless(
    ids: list[str], kept: list[str], longest: int, settings: TrainingSettings, where: str
) -> None:
    if not ids:
        raise InputError(f"no training examples in {where}; make some, or leave its questions out")
    twice, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise InputError(f"example {twice!r} stands twice in {where}; ids must be distinct")
    if not kept:
        raise InputError(
            f"none of the {len(ids)} examples in {where} fits into training.max_length "
            f"{settings.max_length}; the longest has {longest} tokens: set it to that"
        )


def _refuse_too_few(number: int, settings: TrainingSettings, where: str) -> None:
    if settings.min_examples is None and number < settings.global_batch_size:
        raise InputError(
            f"{number} examples in {where} do not fill one batch of training.global_batch_size "
            f"{settings.global_batch_size}; lower it, make more, or set training.min_examples"
        )
    if number < (settings.min_examples or 0):
        raise InputError(
            f"{number} examples in {where} are fewer than training.min_examples "
            f"{settings.min_examples}; lower it or make more"
        )


def _refuse_unweighted(counts: Mapping[str, int], settings: TrainingSettings) -> None:
    """A dataset without a weight; one with a weight may have no examples, as one set aside."""
    weights = settings.dataset_weights
    unknown = [] if weights is None else sorted(set(counts) - set(weights))
    if unknown:
        raise InputError(
            f"training.dataset_weights names {', '.join(sorted(weights or ()))}; there are also "
            f"examples of {', '.join(unknown)}: give each a weight"
        )
