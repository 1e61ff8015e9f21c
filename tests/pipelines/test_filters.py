"""What each filter keeps, one by one; test_examples.py tests what happens to the kept paths."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from evaluation.question import Question
from pipelines.selection.filters import (
    ExampleSettings,
    GradedQuestion,
    chance_of,
    filter_paths,
    num_guessed_kept,
    num_learned,
)
from pipelines.synthesis.reasoning_path import ReasoningPath

NUMBER = Question("d/train/1", "d", "train", "in_domain", "What is 2 + 2?", "4", "number")
OPTIONS = Question(
    "d/train/2",
    "d",
    "train",
    "in_domain",
    "Which?",
    "B",
    "choice",
    ("red", "green", "blue", "white"),
)
TRUTH = Question("d/train/3", "d", "train", "in_domain", "Is it?", "yes", "boolean")


def path(
    number: int,
    predicted: str | None,
    question: Question = NUMBER,
    hint_pass: int = 0,
    **more: Any,
) -> ReasoningPath:
    right = predicted == question.answer
    verdict = "no_answer" if predicted is None else "correct" if right else "wrong"
    columns = {
        "path_id": f"{number:03d}",
        "guideline_id": "plan",
        "pass": hint_pass,
        "predicted": predicted,
        "verdict": verdict,
        "judged": None,
        "structure": "",
        "reasoning": f"way {number}",
        "token_ids": [1, 2],
        "generations": [{"stage": "path", "finish_reason": "stop"}],
        "error": None,
    }
    return ReasoningPath.from_row(columns | more)


def paths(*predicted: str | None, question: Question = NUMBER) -> list[ReasoningPath]:
    return [path(number, answer, question) for number, answer in enumerate(predicted)]


def kept_and_reasons(
    of_question: list[ReasoningPath], question: Question = NUMBER, **settings: Any
) -> tuple[list[str], dict[str, int]]:
    graded = GradedQuestion(question, of_question, ExampleSettings(**settings))
    kept, reasons = filter_paths(graded)
    assert len(kept) + len(reasons) == len(of_question), "every path is kept or has a reason"
    assert not {one.path_id for one in kept} & set(reasons)
    return sorted(one.path_id for one in kept), dict(Counter(reasons.values()))


def test_ground_truth_keeps_what_is_right() -> None:
    assert kept_and_reasons(paths("4", "5", None)) == (["000"], {"wrong": 1, "no_answer": 1})


def test_majority_keeps_what_most_reach_without_the_truth() -> None:
    kept, reasons = kept_and_reasons(paths("5", "5.0", "4", None), verdict="majority")
    assert (kept, reasons) == (["000", "001"], {"minority": 1, "no_answer": 1})


def test_majority_needs_its_share_and_no_tie() -> None:
    of_question = paths("5", "5", "4", None)
    assert kept_and_reasons(of_question, verdict="majority", min_vote_share=0.51)[1] == {
        "no_majority": 3,
        "no_answer": 1,
    }
    assert kept_and_reasons(paths("5", "4"), verdict="majority")[1] == {"no_majority": 2}


def test_majority_neither_counts_nor_keeps_hinted_paths() -> None:
    of_question = [path(0, "5"), path(3, "5"), path(1, "4", hint_pass=1), path(2, "4", hint_pass=1)]
    kept, reasons = kept_and_reasons(of_question, verdict="majority")
    assert (kept, reasons) == (["000", "003"], {"hinted": 2})


def test_one_answer_is_no_majority_unless_that_is_asked_for() -> None:
    assert kept_and_reasons(paths("5", *[None] * 24), verdict="majority")[0] == []
    assert kept_and_reasons(paths("5", None), verdict="majority")[0] == []
    assert kept_and_reasons(paths("5", None), verdict="majority", min_votes=1)[0] == ["000"]
    of_question = paths(*["5"] * 4, *[None] * 21)
    assert kept_and_reasons(of_question, verdict="majority")[1] == {
        "no_majority": 4,
        "no_answer": 21,
    }
    assert len(kept_and_reasons(paths(*["5"] * 5, *[None] * 20), verdict="majority")[0]) == 5
    assert len(kept_and_reasons(of_question, verdict="majority", min_vote_share=0.0)[0]) == 4


def test_unfiltered_draws_from_the_paths_of_every_question_whatever_they_answer() -> None:
    of_question = paths(*["4"] * 3, *["5"] * 7)
    kept, reasons = kept_and_reasons(of_question, verdict="unfiltered")
    assert len(kept) == 5
    assert reasons == {"over_max_per_question": 5}
    unjudged: dict[str, Any] = {"pass_rate": (0.9, 1.0), "min_correct_above_chance": 9.0}
    assert kept_and_reasons(of_question, verdict="unfiltered", **unjudged)[0] == kept
    assert len(kept_and_reasons(paths("5", "6"), verdict="unfiltered")[0]) == 2
    unread = paths(None, None, None)
    assert len(kept_and_reasons(unread, verdict="unfiltered")[0]) == 3


def test_unfinished_long_and_unsound_paths_go() -> None:
    cut = [{"stage": "path", "finish_reason": "length"}]
    of_question = [
        path(0, "4"),
        path(1, "4", generations=cut),
        path(2, "4", token_ids=[1] * 9),
        path(3, "4", judged="no"),
        path(4, "4", judged="yes"),
        path(5, None, error="adapt: too long", verdict="error"),
    ]
    kept, reasons = kept_and_reasons(of_question, max_target_tokens=8)
    assert kept == ["000", "004"]
    assert reasons == {"truncated": 1, "too_long": 1, "judged_unsound": 1, "error": 1}
    assert "003" in kept_and_reasons(of_question, drop_unsound=False)[0]


@pytest.mark.parametrize(
    ("num_right", "reason"),
    [(1, "pass_rate_too_low"), (2, None), (8, None), (9, "pass_rate_too_high")],
)
def test_pass_rate_window(num_right: int, reason: str | None) -> None:
    of_question = paths(*["4"] * num_right, *["5"] * (10 - num_right))
    _, reasons = kept_and_reasons(of_question, pass_rate=(0.2, 0.8), max_per_question=10)
    assert reasons.get(reason or "none", 0) == (num_right if reason else 0)


def test_hinted_paths_do_not_count_for_the_pass_rate() -> None:
    of_question = [*paths("5", "5"), path(7, "4", hint_pass=1)]
    assert kept_and_reasons(of_question, pass_rate=(0.1, 1.0))[1] == {
        "wrong": 2,
        "pass_rate_too_low": 1,
    }


@pytest.mark.parametrize(("num_right", "is_kept"), [(25, True), (9, True), (8, False)])
def test_right_paths_above_chance(num_right: int, is_kept: bool) -> None:
    # Of 25 guesses among four options 6.25 are right; 2 more than that are 8.25.
    of_question = paths(*["B"] * num_right, *["A"] * (25 - num_right), question=OPTIONS)
    kept, reasons = kept_and_reasons(of_question, OPTIONS, min_correct_above_chance=2.0)
    assert bool(kept) == is_kept
    assert reasons.get("guessed", 0) == (0 if is_kept else num_right)


def test_chance_of_a_guess() -> None:
    assert [chance_of(question) for question in (NUMBER, OPTIONS, TRUTH)] == [0, 0.25, 0.5]


@pytest.mark.parametrize(
    ("question", "predicted", "expected"),
    [
        (NUMBER, ["4", "5", "5", "5"], 0.0),
        (OPTIONS, ["B"] * 4, 0.0),
        (OPTIONS, ["B"] * 2 + ["A"] * 2, 1 / 3),  # 2 wrong of 3 others: 2 / 3 guessed right, of 2
        (OPTIONS, ["B"] * 2 + ["A"] * 2 + [None] * 4, 1 / 3),  # who gives no answer does not guess
        (OPTIONS, ["B"] + ["A"] * 3, 1.0),
        (TRUTH, ["yes"] * 3 + ["no"], 1 / 3),
        (TRUTH, ["yes"] + ["no"] * 3, 1.0),
    ],
)
def test_lucky_share_is_the_correction_for_guessing(
    question: Question, predicted: list[str | None], expected: float
) -> None:
    graded = GradedQuestion(question, paths(*predicted, question=question), ExampleSettings())
    assert graded.guessed_share == pytest.approx(expected)


def test_lucky_share_agrees_with_a_simulation_of_guessers() -> None:
    rng, tries, knows = random.Random(0), 20_000, 0.4
    answers, lucky = [], 0
    for _ in range(tries):
        if rng.random() < knows:
            answers.append("B")
        else:
            answers.append(rng.choice("ABCD"))
            lucky += answers[-1] == "B"
    graded = GradedQuestion(OPTIONS, paths(*answers, question=OPTIONS), ExampleSettings())
    assert graded.guessed_share == pytest.approx(lucky / answers.count("B"), abs=0.02)


@pytest.mark.parametrize("most", [5, 2, 1])
def test_lucky_among_the_kept_of_many_questions_agrees_with_a_simulation(most: int) -> None:
    rng, settings = random.Random(0), ExampleSettings(max_per_question=most)
    expected, lucky = 0.0, 0
    for _ in range(4_000):
        knows = rng.random() < 0.2
        answers = ["B" if knows else rng.choice("ABCD") for _ in range(5)]
        graded = GradedQuestion(OPTIONS, paths(*answers, question=OPTIONS), settings)
        kept, _ = filter_paths(graded)
        expected += num_guessed_kept(graded, kept)
        lucky += 0 if knows else len(kept)
    assert expected == pytest.approx(lucky, rel=0.05)


def test_question_that_no_path_is_kept_of_tells_of_no_luck() -> None:
    of_question = paths("A", "C", "D", question=OPTIONS)
    assert num_guessed_kept(GradedQuestion(OPTIONS, of_question, ExampleSettings()), []) == 1.0
    for settings in ({"pass_rate": (0.1, 1.0)}, {"min_correct_above_chance": 1.0}):
        graded = GradedQuestion(OPTIONS, of_question, ExampleSettings(**settings))
        assert num_guessed_kept(graded, []) == 0.0


def test_equal_texts_and_equations_and_near_ones_are_one() -> None:
    base = "First add two and two and then say that it is so"
    of_question = [
        path(0, "4", reasoning=base + ". 2 + 2 = 4"),
        path(1, "4", reasoning=base + ". 2 + 2 = 4"),
        path(2, "4", reasoning="Adding: 2 + 2 = 4"),
        path(3, "4", reasoning=base + ". 2 * 2 = 4"),
    ]
    assert kept_and_reasons(of_question)[1] == {"duplicate": 1}
    by_equations = kept_and_reasons(of_question, distinct_by="equations")
    assert sum(by_equations[1].values()) == 2
    assert "003" in by_equations[0]
    assert kept_and_reasons(of_question, max_similarity=0.6)[1] == {
        "duplicate": 1,
        "near_duplicate": 1,
    }


def test_solutions_without_equations_are_told_apart_by_their_text() -> None:
    of_question = [path(0, "4", reasoning="It is four."), path(1, "4", reasoning="Four it is.")]
    assert len(kept_and_reasons(of_question, distinct_by="equations")[0]) == 2


def test_contaminated_questions_go_only_when_the_config_says() -> None:
    for drop, num_kept in ((False, 1), (True, 0)):
        settings = ExampleSettings.model_validate({"contamination": {"drop": drop}})
        kept, reasons = filter_paths(
            GradedQuestion(NUMBER, paths("4"), settings, is_contaminated=True)
        )
        assert len(kept) == num_kept
        assert reasons == ({"000": "contaminated"} if drop else {})


def test_diverse_draw_takes_unlike_solutions_whatever_their_order() -> None:
    alike = [path(n, "4", reasoning=f"add two and two to get four, number {n}") for n in range(6)]
    other = path(6, "4", reasoning="counting up from zero one reaches it soon")
    of_question = [*alike, other]
    picks = set()
    for seed in range(5):
        random.Random(seed).shuffle(of_question)
        kept, _ = kept_and_reasons(of_question, draw="diversity", max_per_question=2)
        picks.add(tuple(kept))
    assert len(picks) == 1
    assert "006" in picks.pop()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pass_rate": (0.9, 0.1)}, "swap"),
        ({"min_vote_share": 0.5}, "majority"),
        ({"pass_rate": (0.1, 1.1)}, "less than or equal to 1"),
        ({"filters": (3,)}, r"a filter is named as file\.py:function"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ExampleSettings.model_validate(settings)


def test_random_control_learns_as_much_as_the_ground_truth_would() -> None:
    of_question = paths("4", "4", "5", None)
    for verdict, expected in (("random", 2), ("unfiltered", 3)):
        settings = ExampleSettings.model_validate({"verdict": verdict, "max_per_question": 4})
        assert num_learned(GradedQuestion(NUMBER, of_question, settings), 3) == expected
