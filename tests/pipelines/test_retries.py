"""Unhinted retries: as many generated tokens as the pass with the answer shown."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.inference.engine import Completion, SamplingSettings
from cluster.inference.job import Slots
from evaluation.question import Question
from pipelines.selection.filters import ExampleSettings, GradedQuestion, filter_paths
from pipelines.selection.retries import OTHER_RETRY, OVER_TOKENS, Tries, up_to_tokens
from pipelines.synthesis.handler import MOST_RETRIES, SynthesizePaths, num_written
from pipelines.synthesis.reasoning_path import ReasoningPath
from tests.pipelines.test_chain import recipe
from tests.pipelines.test_controls import assert_share
from tests.pipelines.test_synthesis import stored

QUESTIONS = [
    Question(f"d/train/{n}", "d", "train", "in_domain", f"What is {n} + {n}?", str(2 * n), "number")
    for n in range(1, 25)
]
HINTS = {"hint_stages": ["path"], "unhinted_retries": True, "guidelines_per_question": 5}


class Guessing:
    """Answers rightly in a known share of the paths; a hint makes that certain, and shorter."""

    def __init__(self, share: float, hinted_length: float = 1.0) -> None:
        self._share, self._hinted_length = share, hinted_length
        self.num_hinted = 0

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        await asyncio.sleep(0)
        prompt, rng = messages[-1]["content"], random.Random(seed)
        is_hinted = "the right answer is" in prompt
        self.num_hinted += is_hinted
        number = int(prompt.partition("What is ")[2].partition(" ")[0])
        right = is_hinted or rng.random() < self._share
        length = rng.randint(10, 50) * (self._hinted_length if is_hinted else 1)
        text = f"way {seed} \\boxed{{{2 * number if right else -1}}}"
        return [Completion(text, [7] * max(1, round(length)), "stop", 3)]

    def shutdown(self) -> None: ...


def rows_of(engine: Any, previous: Mapping[str, Any] | None = None, **settings: Any) -> Any:
    handler = SynthesizePaths(recipe(**HINTS | settings), ("number",))

    async def make() -> list[dict[str, Any]]:
        slots = Slots(64)
        asked = (
            handler(engine, question.to_row(), slots, (previous or {}).get(question.question_id))
            for question in QUESTIONS
        )
        return list(await asyncio.gather(*asked))

    return asyncio.run(make())


def by_pass(row: Mapping[str, Any]) -> dict[int, list[ReasoningPath]]:
    passes: dict[int, list[ReasoningPath]] = {}
    for path in row["paths"]:
        passes.setdefault(path["pass"], []).append(ReasoningPath.from_row(path))
    return passes


def tries_of(row: Mapping[str, Any], which: str, seed: int = 0) -> Tries:
    paths = [ReasoningPath.from_row(path) for path in row["paths"]]
    return Tries.of(paths, ExampleSettings(retries=which, seed=seed))  # type: ignore[arg-type]


@pytest.mark.parametrize("hinted_length", [0.5, 1.0, 2.6])
def test_retries_write_as_many_tokens_as_the_pass_with_the_answer(hinted_length: float) -> None:
    rows = rows_of(Guessing(0.15, hinted_length))
    unsolved = [row for row in rows if 1 in by_pass(row)]
    assert 5 < len(unsolved) < len(QUESTIONS)
    differences = []
    for row in unsolved:
        passes = by_pass(row)
        last = max(passes)
        retries = [path for number in range(2, last + 1) for path in passes[number]]
        assert num_written(retries) >= num_written(passes[1]), "there are enough to choose from"
        assert num_written([p for p in retries if p.pass_number < last]) < num_written(passes[1])
        tried = tries_of(row, "unhinted")
        assert tried.num_hinted_tokens == num_written(passes[1])
        used = [path for path in tried.used if path.pass_number > 1]
        assert num_written(used) == tried.num_unhinted_tokens
        longest = max(path.num_written_tokens for path in retries)
        differences.append(tried.num_unhinted_tokens - tried.num_hinted_tokens)
        assert abs(differences[-1]) <= longest / 2
    total = sum(tries_of(row, "unhinted").num_hinted_tokens for row in unsolved)
    bound = 4 * 90 / 2 / math.sqrt(12) * math.sqrt(len(unsolved))
    assert abs(sum(differences)) <= bound < 0.2 * total
    for row in rows:
        if row not in unsolved:
            assert set(by_pass(row)) == {0}, "a solved question is not asked again"


def test_arms_share_the_first_pass_and_differ_in_their_retries() -> None:
    rows = rows_of(Guessing(0.15))
    for row in rows:
        arms = {which: tries_of(row, which) for which in ("hinted", "unhinted", "none")}
        first = [path.path_id for path in arms["none"].used]
        assert {path.pass_number for path in arms["none"].used} == {0}
        assert {path.pass_number for path in arms["hinted"].used} <= {0, 1}
        assert 1 not in {path.pass_number for path in arms["unhinted"].used}
        for tried in arms.values():
            assert [path.path_id for path in tried.used][: len(first)] == first
            assert len(tried.used) + len(tried.unused) == row["num_paths"]
            assert set(tried.unused.values()) <= {OTHER_RETRY, OVER_TOKENS}


def test_retries_solve_the_share_that_luck_gives_and_hints_solve_all() -> None:
    share = 0.15
    rows = [row for row in rows_of(Guessing(share)) if 1 in by_pass(row)]
    kept = {
        which: [
            path
            for row in rows
            for path in tries_of(row, which).used
            if path.pass_number and path.verdict
        ]
        for which in ("hinted", "unhinted")
    }
    assert all(path.verdict == "correct" for path in kept["hinted"])
    assert_share((path.verdict == "correct" for path in kept["unhinted"]), share)


def test_earlier_paths_are_those_of_a_run_without_retries() -> None:
    both, plain = rows_of(Guessing(0.15)), rows_of(Guessing(0.15), unhinted_retries=False)
    for one, other in zip(both, plain, strict=True):
        assert [path for path in one["paths"] if path["pass"] < 2] == other["paths"]


def test_rows_of_a_run_without_retries_get_only_the_retries() -> None:
    plain = rows_of(Guessing(0.15), unhinted_retries=False)
    previous = {row["question_id"]: stored(row, attempt=-1) for row in plain}
    engine = Guessing(0.15)
    grown = rows_of(engine, previous)
    assert engine.num_hinted == 0, "the paths with the answer shown are there"
    assert [row["paths"] for row in grown] == [row["paths"] for row in rows_of(Guessing(0.15))]


def test_next_attempt_keeps_the_retries_that_there_are() -> None:
    first = rows_of(Guessing(0.15))
    previous = {row["question_id"]: stored(row) for row in first}
    again = rows_of(Guessing(0.15, hinted_length=0.1), previous)
    assert [stored(row)["paths"] for row in again] == [stored(row)["paths"] for row in first]


def test_retries_end_even_if_they_never_write_enough() -> None:
    rows = rows_of(Guessing(0.0, hinted_length=100.0))
    assert {max(by_pass(row)) for row in rows} == {1 + MOST_RETRIES}
    tried = tries_of(rows[0], "unhinted")
    assert tried.num_unhinted_tokens < tried.num_hinted_tokens
    assert OVER_TOKENS not in tried.unused.values()


def test_the_last_pass_gives_each_of_its_paths_the_same_chance() -> None:
    paths = [
        ReasoningPath.from_row(
            {
                "path_id": f"p{n}",
                "pass": 2 + n // 5,
                "generations": [{"stage": "path", "num_tokens": 10}],
            }
        )
        for n in range(10)
    ]
    drawn = Counter(path.path_id for seed in range(2000) for path in up_to_tokens(paths, 70, seed))
    assert all(drawn[f"p{n}"] == 2000 for n in range(5)), "all of the pass before"
    for n in range(5, 10):
        number = drawn[f"p{n}"]
        assert_share([True] * number + [False] * (2000 - number), 2 / 5)
    assert up_to_tokens(paths[::-1], 70, 3) == up_to_tokens(paths, 70, 3)
    assert up_to_tokens(paths, 0, 0) == []
    assert up_to_tokens([], 70, 0) == []


def test_tokens_of_the_judge_do_not_count() -> None:
    made = [{"stage": stage, "num_tokens": 5} for stage in ("adapt", "structure", "path", "judge")]
    assert ReasoningPath.from_row({"path_id": "p", "generations": made}).num_written_tokens == 15


def test_retries_of_the_other_arm_count_nowhere() -> None:
    """Neither as tries of a question, nor for whether it is solved."""
    row = next(row for row in rows_of(Guessing(0.15)) if 1 in by_pass(row))
    question = replace(Question.from_row(row))
    for which, solved in (("hinted", True), ("none", False)):
        tried = tries_of(row, which)
        graded = GradedQuestion(question, tried.used, ExampleSettings())
        assert graded.num_tries == 5
        assert bool(filter_paths(graded)[0]) == solved


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"unhinted_retries": True}, "hint_stages is empty"),
        (
            {
                "unhinted_retries": True,
                "hint_stages": ["path"],
                "chain": ["path"],
                "stages": {"path": {"temperature": 0.0}},
            },
            "at temperature 0 they repeat",
        ),
    ],
)
def test_retries_that_would_say_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recipe(**settings)


@pytest.mark.parametrize("verdict", ["unfiltered", "random", "wrong_only"])
def test_retries_are_not_for_a_control_that_ignores_what_is_right(verdict: str) -> None:
    with pytest.raises(ValidationError, match="retries: unhinted"):
        ExampleSettings(verdict=verdict, retries="unhinted")  # type: ignore[arg-type]
    ExampleSettings(retries="unhinted")
