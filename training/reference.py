"""What preferences are measured against: the model that a training starts from.

On the workers, before the first step: each computes the log-probabilities of its part of the
examples by the engine itself, which holds those very weights then (adapters begin at zero), all
exchange them, and the first worker writes them beside the model. So no second model is ever in
memory, and a training that goes on after a crash reads what the first attempt wrote. Rows::

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
"""The folder of them within the model's."""

LogProbs = npt.NDArray[np.float32]
"""[examples, 2]: of an example's target and of the other answer; see `training.data.sequences`."""


def with_references(
    engine: Any, table: pa.Table, settings: TrainingSettings, folder: Folder, key: str
) -> pa.Table:
    """The examples with the columns `REFERENCES`. Every worker must call it, before it trains.

    `key` tells what they were computed for; what `folder` holds under another one is left alone.
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
    """What an earlier attempt wrote; None where it did not, not whole, or of other examples."""
    try:
        stored = folder.read_parquet(name)
    except DamagedFileError:
        return None
    if stored.column("example_id").to_pylist() != table.column("example_id").to_pylist():
        return None
    return np.stack([stored.column(column).to_numpy() for column in REFERENCES], axis=1)


def compute_references(engine: Any, sequences: Sequences, settings: TrainingSettings) -> LogProbs:
    """The log-probabilities by the engine's weights as they are, on every worker.

    Sequences of like lengths go through the model together, as many at once as in a step.
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
    # Each place is another than zero on one worker only, so the sum is exact.
    torch.distributed.all_reduce(found)
    values: LogProbs = found.cpu().numpy()
    return values
