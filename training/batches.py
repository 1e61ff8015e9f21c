"""Which examples make a batch, and what of them is learnt: pure functions on rows.

One example with a prompt of three tokens and a target of two::

    input_ids  5  6  7  8  9
    labels     .  .  .  8  9      (. is -100: no loss)

Which examples form a step depends on the seed and the example ids alone, never on files, blocks
or the number of workers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IGNORED = -100
"""The label that torch's cross entropy leaves out."""

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """What one row trains: answer `target` after `prompt`. Token ids."""

    example_id: str
    prompt: Sequence[int]
    target: Sequence[int]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.target)


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model at once: three int64 arrays of [rows, tokens]."""

    input_ids: Tokens
    attention_mask: Tokens
    labels: Tokens


def labels_of(example: Example) -> list[int]:
    """One label per token of prompt and target: the target's own ids, -100 on the prompt."""
    return [IGNORED] * len(example.prompt) + list(example.target)


def collate(examples: Sequence[Example], pad_token_id: int) -> MicroBatch:
    """The examples as one array, padded on the right to the longest.

    Without examples, one row of two padding tokens and no labels: a worker that has nothing left
    in the last batch still takes part in the collective operations.
    """
    width = max((example.length for example in examples), default=2)
    shape = (max(len(examples), 1), width)
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    attention_mask = np.full(shape, 0 if examples else 1, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        input_ids[row, : example.length] = [*example.prompt, *example.target]
        attention_mask[row, : example.length] = 1
        labels[row, : example.length] = labels_of(example)
    return MicroBatch(input_ids, attention_mask, labels)


def answer_positions(labels: Tokens) -> Tokens:
    """The positions whose next token is learnt in some row: only they need logits.

    At least one position, so that a batch without labels still reaches the output head.
    """
    positions = np.flatnonzero((labels[:, 1:] != IGNORED).any(axis=0))
    return positions if positions.size else np.zeros(1, dtype=np.int64)


def epoch_order(example_ids: Sequence[str], seed: int, epoch: int) -> list[int]:
    """The indices of the ids in the order of one epoch: sorted by a hash of seed, epoch and id."""

    def key(index: int) -> bytes:
        return hashlib.sha256(f"{seed}/{epoch}/{example_ids[index]}".encode()).digest()

    return sorted(range(len(example_ids)), key=key)


def steps_per_epoch(num_examples: int, global_batch_size: int) -> int:
    """Steps of one epoch; the last may hold fewer examples than the others."""
    return math.ceil(num_examples / global_batch_size)


def batch_of_step(order: Sequence[int], step: int, global_batch_size: int) -> list[int]:
    """The indices trained at a step, given the order of the epoch it belongs to."""
    within = step % steps_per_epoch(len(order), global_batch_size)
    return list(order[within * global_batch_size : (within + 1) * global_batch_size])


def micro_batches(
    batch: Sequence[int], lengths: Sequence[int], micro_batch_size: int, num_ranks: int, rank: int
) -> list[list[int]]:
    """One rank's share of a global batch, as micro-batches of like lengths.

    `lengths` holds the tokens of each element of `batch`. The batch is sorted by length and dealt
    round the ranks, so that little is padded and ranks that wait for each other have like work;
    the gradient of a batch is a sum and does not know the order. A last batch that is too small
    gives some ranks fewer micro-batches: all ranks' lists are filled to the same number with
    empty ones, and there is always at least one.
    """
    by_length = sorted(range(len(batch)), key=lambda i: (-lengths[i], batch[i]))
    unit = micro_batch_size * num_ranks
    rounds = max(1, math.ceil(len(batch) / unit))
    return [
        [batch[i] for i in by_length[start * unit : (start + 1) * unit][rank::num_ranks]]
        for start in range(rounds)
    ]


def learning_rate(step: int, num_steps: int, peak: float, warmup_ratio: float) -> float:
    """The learning rate of a step (0-based): linear warm-up, then a cosine to zero.

    With w = ceil(warmup_ratio * num_steps), peak * (step + 1) / w while step < w, afterwards
    peak / 2 * (1 + cos(pi * (step - w) / (num_steps - w))), which would be 0 one step after the
    last (arXiv 1608.03983 without restarts). No step has rate 0, so no batch is wasted.
    """
    warmup = math.ceil(warmup_ratio * num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / (num_steps - warmup)
    return peak / 2 * (1 + math.cos(math.pi * progress))
