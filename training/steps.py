"""What each worker does in each step: its share of the global batch, as arrays.

With two workers, batches of four and micro-batches of one, the first worker's share of a step is
two `MicroBatch` of one example each (with `objective: dpo`, of one pair), and the sizes of the
whole step, which both workers know.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import pyarrow as pa

from training.data.batches import (
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
from training.data.sequences import Sequences
from training.settings import TrainingSettings

PAD = 0
"""The id that pads a batch. Any id will do, because it is masked and never a label."""


@dataclass(frozen=True)
class WorkerBatch:
    """What one worker does in one step, and how large the step is over all workers."""

    micro_batches: list[MicroBatch]
    num_tokens: int
    num_answer_tokens: int
    total_weight: float
    """Weight of all answer tokens; without weights, their number. Rejected answers weigh 0."""
    num_examples: int
    mismatched: list[MicroBatch]
    """With kto, other answers to the examples' prompts; otherwise empty."""


class StepData:
    """The examples, divided into one worker's share of each step."""

    def __init__(self, table: pa.Table, settings: TrainingSettings, rank: int, num_ranks: int):
        self._sequences = Sequences(table, settings)
        self._settings = settings
        self._rank, self._num_ranks = rank, num_ranks
        self._order_of = lru_cache(maxsize=1)(self._epoch_order(table))

    def _epoch_order(self, table: pa.Table) -> Callable[[int], list[int]]:
        settings = self._settings
        ids: list[str] = table.column("example_id").to_pylist()
        if not settings.is_mixed:
            return partial(epoch_order, ids, settings.seed)
        datasets: list[str] = table.column("dataset").to_pylist()
        quotas = mix_quotas(
            Counter(datasets), settings.dataset_weights, settings.dataset_temperature
        )
        return partial(epoch_order, ids, settings.seed, quotas=quotas, datasets=datasets)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self._sequences), self._settings.global_batch_size)

    @cached_property
    def num_steps(self) -> int:
        """The steps of all epochs, or those that the limits allow."""
        of_epochs = self.steps_per_epoch * self._settings.num_epochs
        most_steps = min(of_epochs, self._settings.max_steps or of_epochs)
        most_tokens = self._settings.max_learned_tokens
        return most_steps if most_tokens is None else self._steps_until(most_tokens, most_steps)

    def _steps_until(self, num_tokens: int, most_steps: int) -> int:
        """The number of steps after which their targets reach this many tokens."""
        lengths = [
            sum(len(one.target) for one in self._sequences.learnt(index))
            for index in range(len(self._sequences))
        ]
        totals = itertools.accumulate(
            sum(lengths[index] for index in self._batch(step)) for step in range(most_steps)
        )
        return next((n for n, total in enumerate(totals, 1) if total >= num_tokens), most_steps)

    def _batch(self, step: int) -> list[int]:
        """The rows of the examples of one step."""
        order = self._order_of(step // self.steps_per_epoch)
        return list(batch_of_step(order, step, self._settings.global_batch_size))

    def share(self, step: int) -> WorkerBatch:
        batch = self._batch(step)
        learnt = [self._sequences.learnt(index) for index in batch]
        sequences = list(itertools.chain.from_iterable(learnt))
        others = [[other] for other in map(self._sequences.looked_at, batch) if other is not None]
        return WorkerBatch(
            self._cut(learnt),
            num_tokens=sum(one.length for one in sequences),
            num_answer_tokens=sum(len(one.target) for one in sequences),
            total_weight=math.fsum(len(one.target) * one.weight for one in sequences),
            num_examples=len(batch),
            mismatched=self._cut(others) if others else [],
        )

    def _cut(self, examples: Sequence[Sequence[Example]]) -> list[MicroBatch]:
        """The worker's part of some examples, each of which has one or more sequences."""
        lengths = [sum(one.length for one in example) for example in examples]
        rows = rows_of_rank(lengths, self._settings, self._rank, self._num_ranks)
        return [form([one for i in row for one in examples[i]], self._settings) for row in rows]


def rows_of_rank(
    lengths: Sequence[int], settings: TrainingSettings, rank: int, num_ranks: int
) -> list[list[int]]:
    """Which of the examples with these lengths are in each micro-batch of one worker."""
    batch = range(len(lengths))
    if settings.packing:
        return packed_micro_batches(batch, lengths, settings.tokens_per_row, num_ranks, rank)
    return micro_batches(batch, lengths, settings.micro_batch_size, num_ranks, rank)


def form(sequences: Sequence[Example], settings: TrainingSettings) -> MicroBatch:
    """The sequences in the form in which they go through the model at once."""
    return (pack if settings.packing else collate)(sequences, PAD)
