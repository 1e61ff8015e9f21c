from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from training.data.batches import (
    IGNORED,
    Example,
    answer_positions,
    batch_of_step,
    collate,
    epoch_order,
    labels_of,
    learning_rate,
    micro_batches,
    mix_quotas,
    pack,
    packed_micro_batches,
    steps_per_epoch,
)


def test_labels_of_ten_tokens_cover_the_target_only() -> None:
    example = Example("e", [10, 11, 12, 13, 14, 15], [20, 21, 22, 2])
    assert labels_of(example) == [IGNORED] * 6 + [20, 21, 22, 2]


def test_collate_two_lengths_pads_on_the_right_without_labels() -> None:
    batch = collate([Example("a", [5, 6], [7]), Example("b", [8], [9])], pad_token_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 7], [IGNORED, 9, IGNORED]]


def test_collate_nothing_gives_a_batch_without_labels() -> None:
    batch = collate([], pad_token_id=0)
    assert batch.input_ids.shape == (1, 2)
    assert batch.attention_mask is not None
    assert batch.attention_mask.all()
    assert (batch.labels == IGNORED).all()


def test_collate_weights_stand_beside_the_labels_of_their_example() -> None:
    heavy, light = Example("a", [5], [7, 7], weight=2.0), Example("b", [8], [9], weight=0.5)
    batch = collate([heavy, light], pad_token_id=0)
    learnt = batch.labels != IGNORED
    assert batch.weights[learnt].tolist() == [2.0, 2.0, 0.5]


def test_pack_two_examples_restart_positions_and_learn_no_token_of_the_next() -> None:
    batch = pack([Example("a", [5, 6], [7]), Example("b", [8], [9], weight=3.0)], pad_token_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 7, IGNORED, 9]]
    assert batch.weights.tolist() == [[1.0, 1.0, 1.0, 3.0, 3.0]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.ends == (3, 5)
    assert batch.attention_mask is None


def test_pack_nothing_gives_a_row_without_labels() -> None:
    batch = pack([], pad_token_id=4)
    assert batch.input_ids.tolist() == [[4, 4]]
    assert (batch.labels == IGNORED).all()
    assert batch.ends == (2,)


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


DATASETS = ["few"] * 3 + ["many"] * 9
IDS = [f"{name}/{i}" for i, name in enumerate(DATASETS)]


def test_mix_quotas_default_leaves_the_examples_as_they_are() -> None:
    assert mix_quotas({"few": 3, "many": 9}, weights=None, temperature=1.0) is None


@pytest.mark.parametrize(
    ("weights", "temperature", "expected"),
    [
        ({"few": 1.0, "many": 1.0}, 1.0, {"few": 6, "many": 6}),
        ({"few": 3.0, "many": 1.0, "set aside": 5.0}, 1.0, {"few": 9, "many": 3}),
        ({"few": 1.0, "many": 1e-9}, 1.0, {"few": 12}),
        # 3^(1/2) : 9^(1/2) = 1.73 : 3, of twelve 4.4 and 7.6.
        (None, 2.0, {"few": 4, "many": 8}),
        (None, 1e9, {"few": 6, "many": 6}),
    ],
)
def test_mix_quotas_share_out_an_epoch(
    weights: dict[str, float] | None, temperature: float, expected: dict[str, int]
) -> None:
    assert mix_quotas({"many": 9, "few": 3}, weights, temperature) == expected


def test_epoch_order_with_quotas_sees_all_examples_of_a_dataset_equally_often() -> None:
    quotas = {"few": 5, "many": 7}
    epochs = [epoch_order(IDS, 0, epoch, quotas, DATASETS) for epoch in range(9)]
    for order in epochs:
        assert [DATASETS[i] for i in order].count("few") == 5
        assert len(order) == 12
    seen = Counter(index for order in epochs for index in order)
    assert {seen[i] for i in range(3)} == {15}, "9 epochs x 5 over 3 examples"
    assert {seen[i] for i in range(3, 12)} == {7}, "9 epochs x 7 over 9 examples"


def test_epoch_order_with_quotas_mixes_the_datasets_within_the_epoch() -> None:
    names = ["few"] * 100 + ["many"] * 300
    ids = [str(i) for i in range(400)]
    # The whole of one and half of the other: neither may crowd at an end.
    order = epoch_order(ids, 0, 0, {"few": 100, "many": 150}, names)
    first_half = [names[i] for i in order[:125]].count("few")
    assert 35 < first_half < 65


def test_epoch_order_with_quotas_hangs_on_ids_not_on_their_order() -> None:
    quotas = {"few": 5, "many": 7}
    expected = [IDS[i] for i in epoch_order(IDS, 0, 1, quotas, DATASETS)]
    ids, datasets = IDS[::-1], DATASETS[::-1]
    assert [ids[i] for i in epoch_order(ids, 0, 1, quotas, datasets)] == expected


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


@pytest.mark.parametrize("size", [0, 1, 2, 7, 40])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_packed_micro_batches_any_split_holds_each_example_once(size: int, num_ranks: int) -> None:
    batch = list(range(100, 100 + size))
    lengths = [(7 * i) % 31 + 1 for i in range(size)]
    length_of = dict(zip(batch, lengths, strict=True))
    shares = [
        packed_micro_batches(batch, lengths, 32, num_ranks, rank) for rank in range(num_ranks)
    ]
    assert sorted(i for share in shares for row in share for i in row) == batch
    assert len({len(share) for share in shares}) == 1, "every rank must take the same steps"
    assert shares[0], "a rank without examples still takes part"
    assert all(sum(length_of[i] for i in row) <= 32 for share in shares for row in share)


def test_packed_micro_batches_give_ranks_like_work() -> None:
    lengths = [60, 10, 20, 30, 40, 50]
    shares = [packed_micro_batches(list(range(6)), lengths, 120, 2, rank) for rank in range(2)]
    assert sorted(sum(lengths[i] for i in row) for (row,) in shares) == [100, 110]


def test_packed_micro_batches_add_a_row_where_the_smallest_number_is_too_small() -> None:
    rows = packed_micro_batches([7, 8, 9], [3, 3, 3], 5, num_ranks=1, rank=0)
    assert sorted(rows) == [[7], [8], [9]], "nine tokens fit into two rows of five only by length"


def test_packed_micro_batches_the_same_batch_in_another_order_packs_the_same() -> None:
    lengths = {1: 5, 2: 5, 3: 9, 4: 2}
    one = packed_micro_batches([1, 2, 3, 4], [lengths[i] for i in (1, 2, 3, 4)], 12, 1, 0)
    other = packed_micro_batches([4, 2, 1, 3], [lengths[i] for i in (4, 2, 1, 3)], 12, 1, 0)
    assert one == other


def test_learning_rate_warms_up_then_falls_and_never_rests() -> None:
    rates = [learning_rate(step, 10, peak=2.0, warmup_ratio=0.2) for step in range(10)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[6] == pytest.approx(1 + math.cos(math.pi * 4 / 8))
    assert all(a > b for a, b in itertools.pairwise(rates[2:]))
    assert rates[-1] > 0


def test_learning_rate_all_warmup_ends_at_the_peak() -> None:
    assert learning_rate(9, 10, peak=2.0, warmup_ratio=1.0) == 2.0
