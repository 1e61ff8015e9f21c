"""The stored training examples, which the driver counts and the workers read.

A row (Parquet; token ids only)::

    example_id        "gsm8k/train/00042/regenesis/decompose/0"
    question_id       "gsm8k/train/00042"
    dataset           "gsm8k"                   read when the config needs datasets
    prompt_token_ids  [1, 9690, 198, ...]       the model's input
    target_token_ids  [504, 1690, ..., 2]       its answer, ending with the end-of-turn token
    vote_share        0.84                      read when `training.weight_by` names it

With `objective: dpo` the rows are those of `preference_pairs/` in the same folder, whose
`chosen_id` and `chosen_token_ids` become the id and the target, with `rejected_token_ids` in
addition. With `kto` they are those of `unpaired_preferences/`, whose `completion_token_ids` become
the target, with a `label`.
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
from cluster.store.folder import Folder
from training.objectives import OBJECTIVES
from training.settings import TrainingSettings


@dataclass(frozen=True)
class Survey:
    """What a folder of examples contains for a training."""

    num_examples: int
    num_dropped_too_long: int
    num_truncated: int
    counts: dict[str, int]
    """Kept examples of each dataset; empty if the training does not need datasets."""
    digest: str
    """Hash of the kept ids, in any order: 16 hex digits."""
    num_undesirable: int = 0
    """Kept wrong paths, which only kto uses."""

    @property
    def num_kept(self) -> int:
        return self.num_examples - self.num_dropped_too_long


def survey(folder: Folder, settings: TrainingSettings, dataset: str | None = None) -> Survey:
    """Count and check the examples of one dataset or of all, with one row group in memory.

    Raises `InputError` when there are too few, when an id appears twice, when a prompt or a target
    is empty, when a weight is not a positive number, and when kto would see only right or only
    wrong paths.
    """
    objective = OBJECTIVES[settings.objective]
    ids: list[str] = []
    kept: list[str] = []
    counts: Counter[str] = Counter()
    longest = num_truncated = num_undesirable = 0
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
        if objective.label is not None:
            labels = itertools.compress(batch.column(objective.label).to_pylist(), fits)
            num_undesirable += sum(not label for label in labels)
        longest = max([longest, *lengths])
        num_truncated += sum(n > settings.max_length for n in itertools.compress(lengths, fits))
    uri = _source(folder, settings).uri
    where = uri if dataset is None else f"{uri} of the dataset {dataset}"
    _refuse_useless(ids, kept, longest, settings, where)
    _refuse_too_few(len(kept), settings, where)
    _refuse_unweighted(counts, settings)
    if objective.label is not None:
        _refuse_one_sided(len(kept) - num_undesirable, num_undesirable, settings, where)
    digest = hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()[:16]
    num_dropped = len(ids) - len(kept)
    return Survey(
        len(ids), num_dropped, num_truncated, dict(sorted(counts.items())), digest, num_undesirable
    )


def read_examples(
    folder: Folder, settings: TrainingSettings, dataset: str | None = None
) -> pa.Table:
    """The examples to train on, none longer than allowed; about 4 bytes per token in memory.

    With dpo there is also `rejected_token_ids`, with kto a `question_id` and a `label`.
    """
    table = pa.Table.from_batches(_batches(folder, settings, dataset))
    table = table.filter(_fits(table, settings)).combine_chunks()
    if settings.too_long == "drop":
        return table
    room = pc.subtract(settings.max_length, pc.list_value_length(table.column("prompt_token_ids")))
    for name in _answers(table):
        cut = _cut(table.column(name).combine_chunks(), room.to_numpy())
        table = table.set_column(table.schema.get_field_index(name), name, cut)
    return table


def _fits(rows: pa.Table | pa.RecordBatch, settings: TrainingSettings) -> pa.Array:
    """Which rows are used: those short enough, possibly after their answers are cut."""
    if settings.too_long == "drop":
        return pc.less_equal(_lengths(rows), settings.max_length)
    return pc.less(pc.list_value_length(rows.column("prompt_token_ids")), settings.max_length)


def _cut(lists: pa.ListArray, room: npt.NDArray[np.int64]) -> pa.ListArray:
    """Each list, cut to the room that it has."""
    lengths = pc.list_value_length(lists).to_numpy()
    kept = np.minimum(lengths, room)
    starts = np.cumsum(lengths) - lengths
    tokens = lists.flatten().to_numpy()
    place = np.arange(len(tokens)) - np.repeat(starts, lengths)
    ends = np.concatenate([[0], np.cumsum(kept)]).astype(np.int32)
    return pa.ListArray.from_arrays(ends, tokens[place < np.repeat(kept, lengths)])


def _columns(settings: TrainingSettings, dataset: str | None) -> list[str]:
    """The columns that a training reads."""
    of_objective = OBJECTIVES[settings.objective].columns
    columns = ["example_id", "prompt_token_ids", "target_token_ids", *of_objective]
    if dataset is not None or settings.is_mixed:
        columns.append("dataset")
    if settings.weight_by is not None:
        columns.append(settings.weight_by)
    return columns


def _batches(
    folder: Folder, settings: TrainingSettings, dataset: str | None
) -> Iterator[pa.RecordBatch]:
    source, names = _source(folder, settings), _columns(settings, dataset)
    stored = [OBJECTIVES[settings.objective].stored_names.get(name, name) for name in names]
    for file_name in source.file_names(".parquet"):
        file = source.open_parquet(file_name)
        missing = set(stored) - set(file.schema_arrow.names)
        if missing:
            raise InputError(f"{source.uri}/{file_name} has no column {', '.join(sorted(missing))}")
        for rows in file.iter_batches(columns=stored):
            batch = rows.select(stored).rename_columns(names)
            yield (
                batch
                if dataset is None
                else batch.filter(pc.equal(batch.column("dataset"), dataset))
            )


def _source(folder: Folder, settings: TrainingSettings) -> Folder:
    """The folder with the rows of an objective, given the folder of the examples."""
    within = OBJECTIVES[settings.objective].folder
    return folder if within is None else folder.child(within)


def _answers(rows: pa.Table | pa.RecordBatch) -> list[str]:
    """The columns with answers to a prompt: the target and, with pairs, the rejected answer."""
    return [
        name for name in ("target_token_ids", "rejected_token_ids") if name in rows.schema.names
    ]


def longest_answers(rows: pa.Table | pa.RecordBatch) -> pa.Array:
    """Tokens of each row's target, or of the rejected answer if that is longer."""
    return pc.max_element_wise(
        *(pc.list_value_length(rows.column(name)) for name in _answers(rows))
    )


def _lengths(rows: pa.Table | pa.RecordBatch) -> pa.Array:
    """Tokens of prompt and longest answer together, for each row."""
    return pc.add(pc.list_value_length(rows.column("prompt_token_ids")), longest_answers(rows))


def _refuse_empty(batch: pa.RecordBatch, names: list[str], folder: Folder) -> None:
    for column in ("prompt_token_ids", *_answers(batch)):
        counts = pc.list_value_length(batch.column(column)).to_pylist()
        for name, count in zip(names, counts, strict=True):
            if not count:
                raise InputError(
                    f"example {name!r} in {folder.uri} has no {column}: an example needs "
                    "both a prompt and a target; drop it"
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
        raise InputError(OBJECTIVES[settings.objective].nothing_there.format(where))
    twice, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise InputError(f"example {twice!r} appears twice in {where}; ids must be distinct")
    if not kept:
        raise InputError(
            f"none of the {len(ids)} examples in {where} fits into training.max_length "
            f"{settings.max_length}; the longest has {longest} tokens: set it to that"
        )


def _refuse_too_few(number: int, settings: TrainingSettings, where: str) -> None:
    if settings.min_examples is None and number < settings.global_batch_size:
        raise InputError(
            f"{number} examples in {where} do not fill one batch of training.global_batch_size "
            f"{settings.global_batch_size}; lower it, generate more, or set training.min_examples"
        )
    if number < (settings.min_examples or 0):
        raise InputError(
            f"{number} examples in {where} are fewer than training.min_examples "
            f"{settings.min_examples}; lower it or generate more"
        )


def _refuse_unweighted(counts: Mapping[str, int], settings: TrainingSettings) -> None:
    """Refuse a dataset without a weight. A dataset with a weight may have no examples."""
    weights = settings.dataset_weights
    unknown = [] if weights is None else sorted(set(counts) - set(weights))
    if unknown:
        raise InputError(
            f"training.dataset_weights names {', '.join(sorted(weights or ()))}; but there are "
            f"also examples of {', '.join(unknown)}: give each a weight"
        )


def _refuse_one_sided(
    num_right: int, num_wrong: int, settings: TrainingSettings, where: str
) -> None:
    if not num_right or not num_wrong:
        missing = "wrong" if num_right else "right"
        raise InputError(
            f"no {missing} paths in {where}: training.objective {settings.objective} learns from "
            "right and wrong ones; generate more paths per question, or set training.objective: sft"
        )
