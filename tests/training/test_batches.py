from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from training.batches import (
    IGNORED,
    Example,
    answer_positions,
    batch_of_step,
    collate,
    epoch_order,
    labels_of,
    learning_rate,
    micro_batches,
    steps_per_epoch,
)


def test_labels_of_ten_tokens_cover_the_target_only() -> None:
    example = Example("e", [10, 11, 12, 13, 14, 15], [20, 21, 22, 2])
    assert labels_of(example) == [IGNORED] * 6 + [20, 21, 22, 2]


def test_collate_two_lengths_pads_on_the_right_without_labels() -> None:
    batch = collate([Example("a", [5, 6], [7]), Example("b", [8], [9])], pad_token_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 7], [IGNORED, 9, IGNORED]]


def test_collate_nothing_gives_a_batch_without_labels() -> None:
    batch = collate([], pad_token_id=0)
    assert batch.input_ids.shape == (1, 2)
    assert batch.attention_mask.all()
    assert (batch.labels == IGNORED).all()


def test_answer_positions_are_one_before_the_labels_of_any_row() -> None:
    labels = np.array([[-100, -100, 7, 8, -100], [-100, 9, -100, -100, -100]])
    assert answer_positions(labels).tolist() == [0, 1, 2]


def test_answer_positions_without_labels_keep_one() -> None:
    assert answer_positions(np.full((1, 2), IGNORED)).tolist() == [0]


def test_epoch_order_of_shuffled_ids_is_the_same_order() -> None:
    ids = [f"gsm8k/train/{i:05d}" for i in range(50)]
    shuffled = ids[::-1]
    expected = [ids[i] for i in epoch_order(ids, seed=3, epoch=1)]
    assert [shuffled[i] for i in epoch_order(shuffled, seed=3, epoch=1)] == expected


@pytest.mark.parametrize(("seed", "epoch"), [(3, 2), (4, 1)])
def test_epoch_order_of_another_seed_or_epoch_differs(seed: int, epoch: int) -> None:
    ids = [str(i) for i in range(50)]
    order = epoch_order(ids, seed, epoch)
    assert sorted(order) == list(range(50))
    assert order != epoch_order(ids, seed=3, epoch=1)


def test_batch_of_step_uneven_epoch_leaves_a_smaller_last_batch() -> None:
    order = [4, 2, 0, 3, 1]
    assert steps_per_epoch(5, 2) == 3
    assert [batch_of_step(order, step, 2) for step in range(4)] == [[4, 2], [0, 3], [1], [4, 2]]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_micro_batches_any_split_holds_each_example_once(size: int, num_ranks: int) -> None:
    batch = list(range(100, 100 + size))
    lengths = [(7 * i) % 5 + 1 for i in range(size)]
    shares = [micro_batches(batch, lengths, 2, num_ranks, rank) for rank in range(num_ranks)]
    dealt = [index for share in shares for micro in share for index in micro]
    assert sorted(dealt) == batch
    assert len({len(share) for share in shares}) == 1, "every rank must take the same steps"
    assert max(len(micro) for share in shares for micro in share) <= 2


def test_micro_batches_put_like_lengths_together() -> None:
    assert micro_batches([0, 1, 2, 3], [9, 1, 8, 2], 2, num_ranks=1, rank=0) == [[0, 2], [3, 1]]


def test_learning_rate_warms_up_then_falls_and_never_rests() -> None:
    rates = [learning_rate(step, 10, peak=2.0, warmup_ratio=0.2) for step in range(10)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[6] == pytest.approx(1 + math.cos(math.pi * 4 / 8))
    assert all(a > b for a, b in itertools.pairwise(rates[2:]))
    assert rates[-1] > 0


def test_learning_rate_all_warmup_ends_at_the_peak() -> None:
    assert learning_rate(9, 10, peak=2.0, warmup_ratio=1.0) == 2.0
