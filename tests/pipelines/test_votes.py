from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from evaluation.question import AnswerType, Question
from pipelines.selection.majority_vote import count_votes
from pipelines.synthesis.reasoning_path import ReasoningPath


def asked(answer_type: AnswerType = "number", answer: str = "4") -> Question:
    choices = ("red", "green", "blue", "white") if answer_type == "choice" else ()
    return Question("d/train/1", "d", "train", "in_domain", "?", answer, answer_type, choices)


def voters(*predicted: str | None) -> list[ReasoningPath]:
    return [ReasoningPath(str(n), predicted=answer) for n, answer in enumerate(predicted)]


@pytest.mark.parametrize(
    ("predicted", "min_share", "winner"),
    [
        (["4", "4", "5"], 0.0, "4"),
        (["4", "5"], 0.0, None),
        ([None, None, "5"], 0.0, "5"),
        ([None, None, "5"], 0.5, None),
        (["4", "4", "5", None], 0.5, "4"),
        (["4", "4", "5", None], 0.51, None),
        (["1/2", "0.5", "2", "2", "0.50"], 0.0, "0.5"),
        ([None], 0.0, None),
        ([], 0.0, None),
    ],
)
def test_majority(predicted: list[str | None], min_share: float, winner: str | None) -> None:
    votes = count_votes(asked(), voters(*predicted))
    found = votes.majority(min_share)
    assert (found is None) == (winner is None)
    assert winner is None or votes.is_of(winner, found)


def test_equal_answers_are_one_vote_whatever_their_spelling() -> None:
    votes = count_votes(asked(), voters("1/2", "0.5", "2"))
    assert votes.share("1/2") == votes.share("0.5") == pytest.approx(2 / 3)
    assert votes.share("2") == pytest.approx(1 / 3)
    assert votes.share(None) == votes.share("7") == 0


def test_failed_and_hinted_paths_have_no_vote() -> None:
    paths = voters("5", "4", "4", "5")
    paths[1] = replace(paths[1], pass_number=1)
    paths[2] = replace(paths[2], error="path: too long")
    votes = count_votes(asked(), paths)
    assert (votes.num_voters, dict(votes.groups)) == (2, {"5": 2})


def brute_force(predicted: Sequence[str | None], min_share: float) -> float | None:
    """The winner's value, by comparing each vote with each other one as numbers."""
    values = {text: eval(text) for text in set(predicted) if text}
    counts = {
        value: sum(other is not None and values[other] == value for other in predicted)
        for value in values.values()
    }
    most = max(counts.values(), default=0)
    winners = [value for value, number in counts.items() if number == most]
    return winners[0] if len(winners) == 1 and most >= min_share * len(predicted) else None


def test_majority_equals_a_brute_force_count_in_any_order() -> None:
    rng = random.Random(0)
    spellings = [None, "1/2", "0.5", "2", "2.0", "4/2", "3", "-1"]
    for _ in range(300):
        predicted = rng.choices(spellings, k=rng.randint(1, 12))
        share = rng.choice([0.0, 0.3, 0.5])
        expected = brute_force(predicted, share)
        orders = itertools.islice(itertools.permutations(predicted), 3)
        found = {count_votes(asked(), voters(*order)).majority(share) for order in orders}
        assert len(found) == 1
        [winner] = found
        assert (None if winner is None else eval(winner)) == expected


def test_votes_of_options_are_letters() -> None:
    votes = count_votes(asked("choice", "B"), voters("B", "B", "A"))
    assert votes.majority(0.5) == "B"
