"""Reference log-probabilities for preferences, under the model from which a training starts.

Before the first step, each worker computes the log-probabilities of its part of the examples with
the training engine, whose weights are still the initial ones (adapters begin at zero). The workers
exchange them, and the first worker writes them to the model's folder. So a second model is never in
memory, and a training that continues after a crash reads what the first attempt wrote. Rows::

    example_id                              target_reference  other_reference
    "0/regenesis/gsm8k/train/00042/.../0"   -41.3             -57.9

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.errors import DamagedFileError
from cluster.store.folder import Folder
from training.answers import answer_tokens
from training.data.sequences import REFERENCES, Sequences
from training.settings import TrainingSettings
from training.steps import form, rows_of_rank

REFERENCE = "reference"
"""The folder for them in the model's folder."""

LogProbs = npt.NDArray[np.float32]
"""[examples, 2]: for an example's target and the other answer; see `training.data.sequences`."""


def with_references(
    engine: Any, table: pa.Table, settings: TrainingSettings, folder: Folder, key: str
) -> pa.Table:
    """Add the columns `REFERENCES` to the examples. Every worker must call it before it trains.

    `key` identifies what they were computed for; files in `folder` with another key are ignored.
    """
    import torch

    name, is_first = f"log_probs-{key}.parquet", torch.distributed.get_rank() == 0
    known = [_read(folder, name, table) if is_first else None]
    torch.distributed.broadcast_object_list(known)
    found = known[0]
    if found is None:
        found = compute_references(engine, Sequences(table, settings), settings)
        if is_first:
            columns = dict(zip(REFERENCES, found.T, strict=True))
            ids = table.column("example_id")
            folder.write_table(name, pa.table({"example_id": ids, **columns}))
    for column, values in zip(REFERENCES, found.T, strict=True):
        table = table.append_column(column, pa.array(values))
    return table


def _read(folder: Folder, name: str, table: pa.Table) -> LogProbs | None:
    """What an earlier attempt wrote; None if it is missing, incomplete, or for other examples."""
    try:
        stored = folder.read_parquet(name)
    except DamagedFileError:
        return None
    if stored.column("example_id").to_pylist() != table.column("example_id").to_pylist():
        return None
    return np.stack([stored.column(column).to_numpy() for column in REFERENCES], axis=1)


def compute_references(engine: Any, sequences: Sequences, settings: TrainingSettings) -> LogProbs:
    """Compute the log-probabilities with the engine's current weights, on every worker.

    Sequences of similar length go through the model together, as many at once as in a step.
    """
    import torch

    rank, num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    both = (sequences.target, sequences.other)
    places = [(index, side) for index in range(len(sequences)) for side in (0, 1)]
    places.sort(key=lambda place: -both[place[1]](place[0]).length)
    found = torch.zeros((len(sequences), 2), device=engine.device)
    engine.eval()
    with torch.no_grad():
        for start in range(0, len(places), settings.global_batch_size):
            chunk = places[start : start + settings.global_batch_size]
            examples = [both[side](index) for index, side in chunk]
            lengths = [example.length for example in examples]
            for row in rows_of_rank(lengths, settings, rank, num_ranks):
                micro = form([examples[i] for i in row], settings)
                log_probs = answer_tokens(engine, micro, engine.device).log_probs
                for i, log_prob in zip(row, log_probs, strict=True):
                    found[chunk[i]] = log_prob
    engine.train()
    # Each entry is nonzero on one worker only, so the sum is exact.
    torch.distributed.all_reduce(found)
    values: LogProbs = found.cpu().numpy()
    return values
