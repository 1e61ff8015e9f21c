"""Limits that make the trainings of two arms equal: steps, and learned tokens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from cluster.store.folder import Folder
from pipelines.steps.model import unreached_limits
from tests.training.conftest import write_rows
from training.data.examples import read_examples
from training.settings import TrainingSettings
from training.steps import StepData

BATCH = 4


def data(folder: Path, mean_length: int, num_examples: int = 41, **settings: Any) -> StepData:
    """Examples whose targets have random lengths around a mean."""
    rng = random.Random(mean_length)
    rows = [
        {
            "example_id": f"e{number}",
            "question_id": "q",
            "prompt_token_ids": [1, 2],
            "target_token_ids": [3] * rng.randint(mean_length // 2, mean_length * 3 // 2),
        }
        for number in range(num_examples)
    ]
    store = Folder.open(str(folder / f"{mean_length}-{num_examples}"))
    write_rows(store, "part-000.parquet", rows)
    more = TrainingSettings(
        global_batch_size=BATCH, micro_batch_size=1, num_workers=1, max_length=400, **settings
    )
    return StepData(read_examples(store, more), more, 0, 1)


def learned(of: StepData) -> list[int]:
    return [of.share(step).num_answer_tokens for step in range(of.num_steps)]


def test_arms_with_long_and_short_targets_learn_equally_many_tokens(tmp_path: Path) -> None:
    wanted = 5_000
    totals = []
    for mean_length in (6, 40, 150):
        of = data(tmp_path, mean_length, num_epochs=60, max_learned_tokens=wanted)
        steps = learned(of)
        assert sum(steps[:-1]) < wanted <= sum(steps), "the last step reaches it"
        totals.append(sum(steps))
        assert sum(steps) - wanted < BATCH * mean_length * 1.5
    assert max(totals) / min(totals) < 1.15


def test_number_of_steps_is_the_same_whatever_the_number_of_examples(tmp_path: Path) -> None:
    for number in (9, 41):
        assert data(tmp_path, 10, number, num_epochs=30, max_steps=17).num_steps == 17
    few = data(tmp_path, 10, 9, num_epochs=2, max_steps=17)
    assert few.num_steps == 2 * 3, "no more than there is"


def test_the_first_limit_ends_the_training(tmp_path: Path) -> None:
    both = {"num_epochs": 9, "max_learned_tokens": 900}
    by_tokens = data(tmp_path, 40, **both).num_steps
    assert 1 < by_tokens < 20
    assert data(tmp_path, 40, max_steps=2, **both).num_steps == 2
    assert data(tmp_path, 40, max_steps=99, **both).num_steps == by_tokens
    assert data(tmp_path, 40, num_epochs=2).num_steps == 2 * 11
    assert data(tmp_path, 40, num_epochs=1, max_learned_tokens=10**6).num_steps == 11


def test_steps_of_a_limited_training_are_the_first_ones_of_the_whole_one(tmp_path: Path) -> None:
    whole = learned(data(tmp_path, 40, num_epochs=9))
    part = learned(data(tmp_path, 40, num_epochs=9, max_learned_tokens=1_500))
    assert 5 < len(part) < len(whole)
    assert part == whole[: len(part)]


@pytest.mark.parametrize(
    ("limits", "done", "sentences"),
    [
        ({}, (6, 90), 0),
        ({"max_steps": 6}, (6, 90), 0),
        ({"max_steps": 7}, (6, 90), 1),
        ({"max_learned_tokens": 80}, (6, 90), 0),
        ({"max_learned_tokens": 91}, (6, 90), 1),
        ({"max_steps": 7, "max_learned_tokens": 90}, (6, 90), 0),
        ({"max_steps": 7, "max_learned_tokens": 91}, (6, 90), 2),
    ],
)
def test_training_that_ends_before_its_limits_says_so(
    limits: dict[str, Any], done: tuple[int, int], sentences: int
) -> None:
    facts = {"num_steps": done[0], "num_trained_tokens": done[1]}
    said = unreached_limits("model", facts, TrainingSettings(**limits))
    assert len(said) == sentences
    assert all("raise training.num_epochs" in sentence for sentence in said)
