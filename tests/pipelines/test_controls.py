"""The controls work as documented: a pool with known shares gives examples with those shares.

The pools are drawn with questions that are never, sometimes and always answered rightly, and with
paths that are cut off, too long or unreadable; a share may be off by chance alone.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from pydantic import ValidationError

from evaluation.question import Question
from pipelines.selection.filters import (
    FILTERS,
    JUDGING,
    ExampleSettings,
    GradedQuestion,
    filter_paths,
    num_kept_by_truth,
    num_learned,
    why_question_unused,
)
from pipelines.selection.limits import Kept, evenly_drawn, over_limits
from pipelines.synthesis.reasoning_path import ReasoningPath
from tests.pipelines.test_filters import NUMBER, path

LONG, NORMAL = [1] * 900, [1, 2]
SEEDS = (0, 1)
Pool = Sequence[tuple[Question, Sequence[ReasoningPath]]]


@cache
def pool(seed: int, num_questions: int = 360) -> Pool:
    """About half of the questions are never answered rightly; right paths are shorter."""
    rng = random.Random(seed)
    made = []
    for number in range(num_questions):
        dataset = "ab"[number % 3 == 0]
        name = f"{dataset}/train/{number}"
        asked = replace(NUMBER, question_id=name, dataset=dataset)
        rate = rng.choice([0, 0, 0.1, 0.4, 1.0])
        made.append((asked, [drawn_path(rng, f"{name}/{n}", rate) for n in range(25)]))
    return made


def drawn_path(rng: random.Random, name: str, rate: float) -> ReasoningPath:
    is_right, luck = rng.random() < rate, rng.random()
    answer = "4" if is_right else None if luck < 0.1 else "5"
    more: dict[str, Any] = {"path_id": name, "reasoning": f"way {name}"}
    if rng.random() < (0.1 if is_right else 0.3):
        more["token_ids"] = LONG
    if rng.random() < 0.1:
        cut = [{"stage": "path", "finish_reason": "length"}]
        return path(0, None, verdict="truncated", generations=cut, **more)
    return path(0, answer, **more)


def is_usable(one: ReasoningPath) -> bool:
    return one.is_finished and one.token_ids != LONG


def is_right(one: ReasoningPath) -> bool:
    return one.verdict == "correct"


def is_wrong(one: ReasoningPath) -> bool:
    return one.verdict == "wrong"


def usable(
    of_pool: Pool, *has: Callable[[ReasoningPath], bool]
) -> list[tuple[Question, list[ReasoningPath]]]:
    """The finished and short paths of the questions that have one of each of these kinds."""
    left = [(question, [one for one in of if is_usable(one)]) for question, of in of_pool]
    return [(q, of) for q, of in left if all(any(map(kind, of)) for kind in has)]


def selected(of_pool: Pool, **changes: Any) -> list[tuple[Question, ReasoningPath]]:
    """What the settings keep of a pool, over all its questions."""
    settings = ExampleSettings(**changes)
    kept, wanted = [], Counter[str]()
    for question, of_question in of_pool:
        graded = GradedQuestion(question, of_question, settings)
        kept += [(question, one) for one in filter_paths(graded)[0]]
        if settings.verdict == "random":
            wanted[question.dataset] += num_kept_by_truth(graded)
    out = over_limits([as_kept(*each) for each in kept], wanted, settings)
    names = {each.source_id for each, _ in out}
    return [each for each in kept if each[1].path_id not in names]


def as_kept(question: Question, one: ReasoningPath) -> Kept:
    name = one.path_id
    return Kept(name, True, question.dataset, question.question_id, one.is_hinted, (name,))


def assert_share(flags: Iterable[bool], expected: float) -> None:
    """The share is the expected one, to within four of its standard deviations."""
    drawn = list(flags)
    share, error = sum(drawn) / len(drawn), math.sqrt(expected * (1 - expected) / len(drawn))
    assert abs(share - expected) <= 4 * error, (share, expected, len(drawn))


def mean_right(left: Sequence[tuple[Question, Sequence[ReasoningPath]]]) -> float:
    """The share of right paths, each question counted once."""
    return sum(sum(map(is_right, of)) / len(of) for _, of in left if of) / len(left)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("questions", "has"),
    [("all", ()), ("solved", (is_right,)), ("mixed", (is_right, is_wrong))],
)
@pytest.mark.parametrize("verdict", ["unfiltered", "random"])
def test_control_has_the_shares_of_its_pool(
    verdict: str, questions: str, has: Any, seed: int
) -> None:
    left = usable(pool(seed), *has)
    kept = selected(pool(seed), verdict=verdict, questions=questions, seed=seed)
    assert_share((is_right(one) for _, one in kept), mean_right(left))
    assert all(is_usable(one) for _, one in kept)
    wanted = {question.question_id for question, of in left if of}
    drawn = {question.question_id for question, _ in kept}
    assert drawn == wanted if verdict == "unfiltered" else drawn <= wanted
    no_answer = sum(one.verdict == "no_answer" for _, of in left for one in of)
    num_paths = sum(len(of) for _, of in left)
    assert_share((one.verdict == "no_answer" for _, one in kept), no_answer / num_paths)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_two_by_two_differs_in_one_thing_at_a_time(seed: int) -> None:
    arms = {
        (questions, verdict): selected(pool(seed), verdict=verdict, questions=questions)
        for questions in ("all", "solved", "mixed")
        for verdict in ("unfiltered", "ground_truth", "wrong_only")
    }
    asked = {arm: {q.question_id for q, _ in kept} for arm, kept in arms.items()}
    assert len(asked["all", "unfiltered"]) == 360 > len(asked["solved", "unfiltered"]) > 90
    # Right ones exist only where a question is solved: of all questions they are the same.
    assert arms["all", "ground_truth"] == arms["solved", "ground_truth"]
    assert asked["solved", "unfiltered"] == asked["solved", "ground_truth"]
    assert asked["mixed", "wrong_only"] == asked["mixed", "ground_truth"]
    for (_, verdict), kept in arms.items():
        if verdict != "unfiltered":
            wanted = is_right if verdict == "ground_truth" else is_wrong
            assert all(wanted(one) for _, one in kept)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_keeps_as_many_of_each_dataset_as_the_truth(seed: int) -> None:
    truth = selected(pool(seed), seed=seed)
    drawn = selected(pool(seed), verdict="random", seed=seed)
    counts = [Counter(question.dataset for question, _ in kept) for kept in (truth, drawn)]
    assert counts[0] == counts[1]
    assert len({question.question_id for question, _ in drawn}) > 250, "spread over the questions"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("verdict", ["ground_truth", "unfiltered"])
def test_max_examples_takes_its_part_of_each_dataset_and_question(verdict: str, seed: int) -> None:
    whole = selected(pool(seed), verdict=verdict, seed=seed)
    kept = selected(pool(seed), verdict=verdict, seed=seed, max_examples=200)
    assert len(kept) == 200
    assert {one.path_id for _, one in kept} < {one.path_id for _, one in whole}
    share = 200 / len(whole)
    for name in "ab":
        of_whole, of_kept = (
            sum(question.dataset == name for question, _ in each) for each in (whole, kept)
        )
        assert abs(of_kept - share * of_whole) <= 1
    before, after = (Counter(q.question_id for q, _ in each) for each in (whole, kept))
    assert all(abs(after[name] - share * number) < 2 for name, number in before.items())
    assert_share(
        (is_right(one) for _, one in kept), sum(is_right(one) for _, one in whole) / len(whole)
    )


def test_every_example_has_the_same_chance_under_max_examples() -> None:
    kept = [Kept(f"{n}", True, "ab"[n > 3], f"q{n // 2}", False, (f"{n}",)) for n in range(11)]
    drawn = Counter(each.source_id for seed in range(3000) for each in evenly_drawn(kept, 4, seed))
    assert sum(drawn.values()) == 4 * 3000
    for number in drawn.values():
        assert_share([True] * number + [False] * (3000 - number), 4 / 11)
    assert evenly_drawn(kept, 0, 0) == []
    assert len(evenly_drawn(kept, 99, 0)) == 11
    assert evenly_drawn([], 3, 0) == []
    assert evenly_drawn(kept[::-1], 4, 5) == evenly_drawn(kept, 4, 5)


def test_max_examples_counts_every_form_of_a_path() -> None:
    kept = [
        Kept(f"{n}", True, "d", f"q{n}", False, tuple(f"{n}/{form}" for form in range(1 + n % 3)))
        for n in range(30)
    ]
    for most in (1, 7, 20, 59):
        out = over_limits(kept, {}, ExampleSettings(max_examples=most))
        left = sum(len(each.example_ids) for each in kept)
        left -= sum(len(each.example_ids) for each, _ in out)
        assert most - 3 <= left <= most
        assert {reason for _, reason in out} == {"over_max_examples"}


@pytest.mark.parametrize("verdict", ["unfiltered", "random", "wrong_only"])
def test_control_learns_nothing_that_was_made_with_the_truth(verdict: str) -> None:
    hinted = [path(n, "4", hint_pass=1) for n in range(9)]
    graded = GradedQuestion(NUMBER, hinted, ExampleSettings(verdict=verdict))  # type: ignore[arg-type]
    kept, reasons = filter_paths(graded)
    assert kept == []
    assert set(reasons.values()) <= {"hinted", "right"}


def test_control_asks_neither_the_judge_nor_whether_the_plan_holds_the_answer() -> None:
    of_question = [path(0, "4", judged="no"), path(1, "4", structure="1. The answer is 4.")]
    judged, control = (
        filter_paths(
            GradedQuestion(
                NUMBER, of_question, ExampleSettings(verdict=verdict, drop_leaks=("structure",))
            )
        )[0]
        for verdict in ("ground_truth", "unfiltered")
    )
    assert judged == []
    assert len(control) == 2


def test_finish_length_and_citation_filters_are_the_same_for_every_arm() -> None:
    unlike = {"not_right", "not_wrong", "unsound", "outside_pass_rate", "guessed"}
    arms = [
        [each.__name__ for each in FILTERS[verdict] if each.__name__ not in unlike]
        for verdict in ("ground_truth", "majority", "unfiltered", "random", "wrong_only")
    ]
    assert all([name for name in arm if name != "shown_the_answer"] == arms[0] for arm in arms)
    assert set(JUDGING) < set(FILTERS)


@pytest.mark.parametrize("verdict", ["gold_answers", "gold_solutions"])
def test_gold_keeps_no_path_and_one_example_a_question(verdict: str) -> None:
    settings = ExampleSettings(verdict=verdict, questions="solved")  # type: ignore[arg-type]
    for predicted, expected in (("4", 1), ("5", 0)):
        question = replace(NUMBER, solution="two and two")
        graded = GradedQuestion(question, [path(0, predicted)], settings)
        assert filter_paths(graded) == ([], {"000": "not_gold"})
        assert num_learned(graded, 0) == expected
        assert (why_question_unused(graded) is None) == bool(expected)
    bare = GradedQuestion(NUMBER, [path(0, "4")], settings)
    assert num_learned(bare, 0) == (verdict == "gold_answers")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"verdict": "gold_answers", "original_solutions": True}, "original_solutions"),
        ({"min_votes": 3}, "min_votes: is only for verdict majority"),
        (
            {"verdict": "random", "min_vote_share": 0.3},
            "min_vote_share: is only for verdict majority",
        ),
        ({"max_examples": 0}, "max_examples"),
        ({"questions": "some"}, "questions"),
    ],
)
def test_controls_that_make_no_sense_are_refused(settings: Any, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        ExampleSettings(**settings)
