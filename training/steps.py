"""What each worker does in each step: its share of the global batch, as arrays.

With two workers, batches of four and micro-batches of one, the first worker's share of a step is
two `MicroBatch` of one example each, and the sizes of the whole step, which both of them know.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.batches import (
    Example,
    MicroBatch,
    batch_of_step,
    collate,
    epoch_order,
    micro_batches,
    mix_quotas,
    pack,
    packed_micro_batches,
    steps_per_epoch,
)
from training.settings import TrainingSettings

PAD = 0
"""The id that fills a batch up. Any will do: it is masked and never a label."""


@dataclass(frozen=True)
class Share:
    """What one worker does in one step, and how large the step is over all workers."""

    micro_batches: list[MicroBatch]
    num_tokens: int
    num_answer_tokens: int
    total_weight: float
    """Of all answer tokens; without weights, their number."""


class StepData:
    """The examples, cut into one worker's share of each step."""

    def __init__(self, table: pa.Table, settings: TrainingSettings, rank: int, num_ranks: int):
        self._ids: list[str] = table.column("example_id").to_pylist()
        self._prompts = table.column("prompt_token_ids").combine_chunks()
        self._targets = table.column("target_token_ids").combine_chunks()
        self._weights = _weights(table, settings)
        self._settings = settings
        self._rank, self._num_ranks = rank, num_ranks
        self._order_of = lru_cache(maxsize=1)(self._epoch_order(table))

    def _epoch_order(self, table: pa.Table) -> Callable[[int], list[int]]:
        settings = self._settings
        if not settings.is_mixed:
            return partial(epoch_order, self._ids, settings.seed)
        datasets: list[str] = table.column("dataset").to_pylist()
        quotas = mix_quotas(
            Counter(datasets), settings.dataset_weights, settings.dataset_temperature
        )
        return partial(epoch_order, self._ids, settings.seed, quotas=quotas, datasets=datasets)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self._ids), self._settings.global_batch_size)

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self._settings.num_epochs

    def share(self, step: int) -> Share:
        order = self._order_of(step // self.steps_per_epoch)
        batch = batch_of_step(order, step, self._settings.global_batch_size)
        examples = {index: self._example(index) for index in batch}
        lengths = [examples[index].length for index in batch]
        form = pack if self._settings.packing else collate
        return Share(
            [form([examples[i] for i in row], PAD) for row in self._rows(batch, lengths)],
            num_tokens=sum(lengths),
            num_answer_tokens=sum(len(examples[i].target) for i in batch),
            total_weight=math.fsum(len(examples[i].target) * examples[i].weight for i in batch),
        )

    def _rows(self, batch: list[int], lengths: list[int]) -> list[list[int]]:
        """The examples of each of this worker's micro-batches."""
        settings, ranks, rank = self._settings, self._num_ranks, self._rank
        if settings.packing:
            return packed_micro_batches(batch, lengths, settings.tokens_per_row, ranks, rank)
        return micro_batches(batch, lengths, settings.micro_batch_size, ranks, rank)

    def _example(self, index: int) -> Example:
        prompt, target = self._prompts[index].values, self._targets[index].values
        return Example(
            self._ids[index], prompt.to_numpy(), target.to_numpy(), float(self._weights[index])
        )


def _weights(table: pa.Table, settings: TrainingSettings) -> npt.NDArray[np.float32]:
    if settings.weight_by is None:
        return np.ones(table.num_rows, dtype=np.float32)
    weights: npt.NDArray[np.float32] = table.column(settings.weight_by).to_numpy()
    return weights.astype(np.float32)
