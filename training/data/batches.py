"""Which examples form a batch, and which of their tokens are learned: pure functions on rows.

One example with a prompt of three tokens and a target of two::

    input_ids  5  6  7  8  9
    labels     .  .  .  8  9      (. is -100: no loss)

Packed into one row with an example of one prompt token and one target token, it is::

    input_ids     5  6  7  8  9  5  3
    labels        .  .  .  8  9  .  3
    position_ids  0  1  2  3  4  0  1
    ends          5  7

Which examples form a step depends only on the seed and the example ids, never on files, blocks,
packing or the number of workers.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IGNORED = -100
"""The label that torch's cross entropy ignores."""

Tokens = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Example:
    """What one row trains: to answer `target` after `prompt`. Both are token ids."""

    example_id: str
    prompt: Sequence[int]
    target: Sequence[int]
    weight: float = 1.0
    """The weight of each of its target tokens, relative to those of other examples."""
    reference: float = 0.0
    """The target's log-probability under the model from which the training starts; used only with
    preferences."""
    is_desirable: bool = True
    """Whether it should become more likely; used only with preferences."""

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.target)


@dataclass(frozen=True)
class MicroBatch:
    """A batch that goes through the model at once: arrays of [rows, tokens].

    A padded batch has an attention mask; a packed one is a single row and has positions and ends.
    """

    input_ids: Tokens
    labels: Tokens
    weights: Weights
    """The weight of each label; meaningless where nothing is learned."""
    references: Weights
    """[examples]; see `Example`."""
    are_desirable: Flags
    """[examples]; see `Example`."""
    attention_mask: Tokens | None = None
    """1 for tokens, 0 for padding."""
    position_ids: Tokens | None = None
    """Positions within each packed example."""
    ends: tuple[int, ...] = ()
    """Where each packed example ends: the column after its last token."""


def labels_of(example: Example) -> list[int]:
    """One label per token of prompt and target: the ids of the target, and -100 on the prompt."""
    return [IGNORED] * len(example.prompt) + list(example.target)


def collate(examples: Sequence[Example], pad_token_id: int) -> MicroBatch:
    """Combine the examples into one array, padded on the right to the longest.

    Without examples, it is one row of two padding tokens without labels: a worker that has nothing
    left in the last batch still takes part in the collective operations.
    """
    width = max((example.length for example in examples), default=2)
    shape = (max(len(examples), 1), width)
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    attention_mask = np.full(shape, 0 if examples else 1, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    weights = np.ones(shape, dtype=np.float32)
    for row, example in enumerate(examples):
        input_ids[row, : example.length] = [*example.prompt, *example.target]
        attention_mask[row, : example.length] = 1
        labels[row, : example.length] = labels_of(example)
        weights[row] = example.weight
    return MicroBatch(
        input_ids, labels, weights, *_preferences(examples), attention_mask=attention_mask
    )


def pack(examples: Sequence[Example], pad_token_id: int) -> MicroBatch:
    """Place the examples one after another in a single row, each with positions from 0.

    Without examples, it is two padding tokens without labels, as in `collate`. No label crosses
    from one example into the next, because each begins with a prompt.
    """
    ids = [token for example in examples for token in [*example.prompt, *example.target]]
    labels = [label for example in examples for label in labels_of(example)]
    weights = [example.weight for example in examples for _ in range(example.length)]
    lengths = [example.length for example in examples] or [2]
    return MicroBatch(
        np.array([ids or [pad_token_id] * 2], dtype=np.int64),
        np.array([labels or [IGNORED] * 2], dtype=np.int64),
        np.array([weights or [1.0] * 2], dtype=np.float32),
        *_preferences(examples),
        position_ids=np.concatenate([np.arange(n, dtype=np.int64) for n in lengths])[None],
        ends=tuple(np.cumsum(lengths).tolist()),
    )


def _preferences(examples: Sequence[Example]) -> tuple[Weights, Flags]:
    """The values of a micro-batch that preferences need."""
    return (
        np.array([example.reference for example in examples], dtype=np.float32),
        np.array([example.is_desirable for example in examples], dtype=np.bool_),
    )


def example_numbers(micro: MicroBatch) -> Tokens:
    """For each token, the number of its example within the micro-batch: [rows, tokens]."""
    rows, width = micro.input_ids.shape
    if not micro.ends:
        return np.repeat(np.arange(rows), width).reshape(rows, width)
    return np.searchsorted(np.array(micro.ends), np.arange(width), side="right")[None]


def answer_positions(labels: Tokens) -> Tokens:
    """The positions whose next token is learned in some row; only these need logits.

    There is at least one position, so that a batch without labels still reaches the output head.
    """
    positions = np.flatnonzero((labels[:, 1:] != IGNORED).any(axis=0))
    return positions if positions.size else np.zeros(1, dtype=np.int64)


def epoch_order(
    example_ids: Sequence[str],
    seed: int,
    epoch: int,
    quotas: Mapping[str, int] | None = None,
    datasets: Sequence[str] = (),
) -> list[int]:
    """The indices of the ids in the order of one epoch: sorted by a hash of seed, epoch and id.

    With `quotas`, an epoch uses this many examples of each dataset. A dataset is an endless stream
    of passes over its examples, each in a different order, and an epoch takes the next piece of the
    stream: during a training all of its examples are used equally often, give or take one.
    """
    if quotas is None:
        return sorted(range(len(example_ids)), key=lambda i: _hash(seed, epoch, example_ids[i]))
    chosen = [
        (number, index)
        for dataset, quota in quotas.items()
        for number, index in _piece(example_ids, datasets, dataset, seed, epoch * quota, quota)
    ]
    # A piece consists of the smallest hashes of its pass, so the epoch's order uses other hashes.
    chosen.sort(key=lambda pair: _hash(seed, epoch, f"{pair[0]}/{example_ids[pair[1]]}"))
    return [index for _, index in chosen]


def _piece(
    example_ids: Sequence[str],
    datasets: Sequence[str],
    dataset: str,
    seed: int,
    start: int,
    count: int,
) -> list[tuple[int, int]]:
    """Elements of a dataset's stream of passes from `start` on, as (pass, index of the example)."""
    members = [index for index, name in enumerate(datasets) if name == dataset]
    passes = range(start // len(members), (start + count - 1) // len(members) + 1)
    stream = [
        (number, index)
        for number in passes
        for index in sorted(members, key=lambda i: _hash(seed, f"pass {number}", example_ids[i]))
    ]
    skipped = start - passes.start * len(members)
    return stream[skipped : skipped + count]


def _hash(seed: int, epoch: int | str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{epoch}/{name}".encode()).digest()


def mismatched_examples(
    example_ids: Sequence[str], question_ids: Sequence[str], seed: int
) -> list[int]:
    """For each example, one of another question: the next one in the order of the hashed ids.

    It is the example itself if there is no other question.
    """
    order = sorted(range(len(example_ids)), key=lambda i: _hash(seed, "other", example_ids[i]))
    found = list(range(len(order)))
    for place, index in enumerate(order):
        following = (order[(place + step) % len(order)] for step in range(1, len(order)))
        others = (other for other in following if question_ids[other] != question_ids[index])
        found[index] = next(others, index)
    return found


def mix_quotas(
    counts: Mapping[str, int], weights: Mapping[str, float] | None, temperature: float
) -> dict[str, int] | None:
    """Examples of each dataset in an epoch, which has as many as there are in all.

    A dataset's share is proportional to its weight or, without weights, to n^(1/temperature): 1
    keeps the proportions, and a high temperature gives all datasets the same share. None if every
    example is simply used once per epoch. Rounded by largest remainders.
    """
    if weights is None and temperature == 1:
        return None
    total = sum(counts.values())
    wanted = {
        name: weights[name] if weights is not None else count ** (1 / temperature)
        for name, count in sorted(counts.items())
    }
    exact = {name: total * share / sum(wanted.values()) for name, share in wanted.items()}
    quotas = {name: math.floor(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (quotas[name] - exact[name], name))
    for name in by_remainder[: total - sum(quotas.values())]:
        quotas[name] += 1
    return {name: quota for name, quota in quotas.items() if quota}


def steps_per_epoch(num_examples: int, global_batch_size: int) -> int:
    """Steps of one epoch; the last one may have fewer examples than the others."""
    return math.ceil(num_examples / global_batch_size)


def batch_of_step(order: Sequence[int], step: int, global_batch_size: int) -> list[int]:
    """The indices of the examples of a step, given the order of its epoch."""
    within = step % steps_per_epoch(len(order), global_batch_size)
    return list(order[within * global_batch_size : (within + 1) * global_batch_size])


def micro_batches(
    batch: Sequence[int], lengths: Sequence[int], micro_batch_size: int, num_ranks: int, rank: int
) -> list[list[int]]:
    """One rank's share of a global batch, as micro-batches of examples with similar lengths.

    `lengths` has the tokens of each element of `batch`. The batch is sorted by length and dealt to
    the ranks in turn, so that there is little padding and the ranks, which wait for each other,
    have similar work. The gradient of a batch is a sum, so the order does not matter. If the last
    batch is too small, some ranks have fewer micro-batches: the lists of all ranks are filled with
    empty ones to the same length, which is at least one.
    """
    by_length = sorted(range(len(batch)), key=lambda i: (-lengths[i], batch[i]))
    unit = micro_batch_size * num_ranks
    rounds = max(1, math.ceil(len(batch) / unit))
    return [
        [batch[i] for i in by_length[start * unit : (start + 1) * unit][rank::num_ranks]]
        for start in range(rounds)
    ]


def packed_micro_batches(
    batch: Sequence[int], lengths: Sequence[int], row_tokens: int, num_ranks: int, rank: int
) -> list[list[int]]:
    """One rank's share of a global batch, as rows of at most `row_tokens` tokens to be packed.

    `lengths` has the tokens of each element of `batch`, none above `row_tokens`. All ranks get the
    same number of rows, the smallest that works: the longest example comes first, and each goes
    into the emptiest row, so that the ranks, which wait for each other, have similar work. Rows may
    be empty; there is always at least one.
    """
    rounds = max(1, math.ceil(sum(lengths) / (row_tokens * num_ranks)))
    while (rows := _fill_rows(batch, lengths, rounds * num_ranks, row_tokens)) is None:
        rounds += 1
    return rows[rank::num_ranks]


def _fill_rows(
    batch: Sequence[int], lengths: Sequence[int], num_rows: int, row_tokens: int
) -> list[list[int]] | None:
    """Distribute the batch over this many rows, fullest first; None if a row would overflow."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    loads = [(0, row) for row in range(num_rows)]
    for i in sorted(range(len(batch)), key=lambda i: (-lengths[i], batch[i])):
        load, row = heapq.heappop(loads)
        if load + lengths[i] > row_tokens:
            return None
        rows[row].append(batch[i])
        heapq.heappush(loads, (load + lengths[i], row))
    return [rows[row] for _, row in sorted(loads, key=lambda pair: (-pair[0], pair[1]))]


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
