from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest

from cluster.inference.engine import Completion, Engine, EngineSettings, SamplingSettings
from cluster.inference.job import Slots
from cluster.models.model import Model
from cluster.store.ledger import SUMMED
from evaluation.question import Question
from pipelines.steps import paths as paths_step
from pipelines.synthesis.chain import Recipe, SynthesisSettings
from pipelines.synthesis.handler import (
    PATHS_SCHEMA,
    SynthesizePaths,
    count_paths,
    grade_paths,
)
from pipelines.synthesis.reasoning_path import Generation, ReasoningPath
from tests.scripted import ScriptedEngine

QUESTION = Question("d/train/1", "d", "train", "in_domain", "What is 2 + 2?", "4", "number")
CHOICE = Question(
    "c/train/1", "c", "train", "in_domain", "2 + 2?", "B", "choice", ("three", "four")
)


def handler(**settings: Any) -> SynthesizePaths:
    recipe = Recipe.load(0, SynthesisSettings.model_validate_json(json.dumps(settings)))
    return SynthesizePaths(recipe, ("number",))


def asked(question: Question = QUESTION) -> dict[str, Any]:
    """A question as a worker reads it from its chunk."""
    further = {"question_fingerprint": question.fingerprint, "attempt": 0, "previous": None}
    return question.to_row() | further


def scripted(**options: Any) -> Engine:
    return ScriptedEngine("scripted", EngineSettings(options=options))


def synthesize(
    handler: SynthesizePaths, previous: dict[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    return asyncio.run(handler(scripted(**options), asked(), Slots(3), previous))


def stored(row: dict[str, Any], attempt: int = 0) -> dict[str, Any]:
    """A row as it comes back from the ledger."""
    table = pa.Table.from_pylist([row | {"attempt": attempt}], schema=PATHS_SCHEMA)
    read: dict[str, Any] = table.to_pylist()[0]
    return read


def path(verdict: str, *finish_reasons: str, error: str | None = None) -> ReasoningPath:
    generations = tuple(
        Generation(stage, finish_reason=reason, num_tokens=10, num_prompt_tokens=100)
        for stage, reason in zip(("adapt", "structure", "path"), finish_reasons, strict=False)
    )
    return ReasoningPath("p", verdict=verdict, generations=generations, error=error)


def test_counts_are_those_of_the_paths() -> None:
    paths = [
        path("correct", "stop", "stop", "stop"),
        path("correct", "stop", "length", "stop"),
        path("wrong", "stop", "stop", "stop"),
        path("truncated", "stop", "stop", "length"),
        path("error", "stop", error="structure: refused"),
        path("error", error="adapt: refused"),
    ]
    assert count_paths(paths) == {
        "num_paths": 6,
        "num_accepted": 2,
        "num_failed": 2,
        "num_truncated": 1,
        "num_tokens": 130,
        "num_prompt_tokens": 1300,
    }
    assert count_paths([]) == dict.fromkeys(SUMMED, 0)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ({}, False),
        ({"path": "stop"}, True),
        ({"adapt": "stop", "structure": "stop"}, False),
        ({"adapt": "length", "path": "stop"}, True),
        ({"adapt": "stop", "path": "length", "judge": "stop"}, False),
    ],
)
def test_path_is_finished_when_its_solution_ended_by_itself(
    stages: dict[str, str], expected: bool
) -> None:
    generations = tuple(Generation(name, finish_reason=why) for name, why in stages.items())
    assert ReasoningPath("p", generations=generations).is_finished == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 25),
        ({"guidelines_per_question": 4}, 4),
        ({"guidelines_per_question": 4, "samples": 3}, 12),
        ({"samples": 2}, 50),
        ({"guidelines_per_question": 25}, 25),
    ],
)
def test_width_is_the_number_of_a_questions_chains(settings: dict[str, int], expected: int) -> None:
    synthesizer = handler(**settings)
    assert synthesizer.width == expected == len(synthesizer.recipe.specs(QUESTION))


def test_width_is_no_more_than_there_are_guidelines() -> None:
    synthesizer = handler(guidelines_per_question=99)
    assert synthesizer.width == len(synthesizer.recipe.specs(QUESTION)) == 25


def test_row_has_the_question_and_all_its_paths_with_their_verdicts() -> None:
    row = synthesize(handler(guidelines_per_question=4))
    read = stored(row)
    assert Question.from_row(read) == QUESTION
    assert read["question_fingerprint"] == QUESTION.fingerprint
    assert read["num_paths"] == len(read["paths"]) == 4
    assert {path["verdict"] for path in read["paths"]} <= {"correct", "wrong"}
    assert read["num_accepted"] == sum(path["verdict"] == "correct" for path in read["paths"])
    assert read["num_tokens"] == sum(
        generation["num_tokens"] for path in read["paths"] for generation in path["generations"]
    )
    assert read["error"] is None
    assert [read[name] for name in ("num_failed", "num_truncated")] == [0, 0]
    assert {**read, "attempt": None} == {**stored(row), "attempt": None}


@pytest.mark.parametrize("question", [QUESTION, CHOICE])
def test_row_set_aside_fits_the_ledger_and_has_every_path_failed(question: Question) -> None:
    row = handler(guidelines_per_question=4).mark_failed(asked(question), "its engine died")
    read = stored(row, attempt=2)
    assert Question.from_row(read) == question
    assert (read["error"], read["num_failed"], read["paths"]) == ("its engine died", 4, [])
    assert read["attempt"] == 2
    assert not any(read[name] for name in SUMMED if name != "num_failed")


def test_rows_hold_no_column_that_the_ledger_would_drop() -> None:
    synthesizer = handler(guidelines_per_question=2)
    rows = [synthesize(synthesizer), synthesizer.mark_failed(asked(), "why")]
    assert all({*row} <= {*PATHS_SCHEMA.names} for row in rows)
    own = {field.name for field in PATHS_SCHEMA.field("paths").type.value_type}
    assert {*rows[0]["paths"][0]} == own


def test_next_attempt_mends_the_failed_paths_and_leaves_the_others() -> None:
    synthesizer = handler(guidelines_per_question=12)
    first = synthesize(synthesizer, fail_share=20)
    assert 0 < first["num_failed"] < 12
    before = stored(first)
    second = synthesize(synthesizer, before)
    after = stored(second, attempt=1)
    assert after["num_failed"] == 0
    assert after["num_paths"] == 12
    for old, new in zip(before["paths"], after["paths"], strict=True):
        assert (old == new) == (old["error"] is None)
    assert after["num_accepted"] == sum(p["verdict"] == "correct" for p in after["paths"])


def test_question_set_aside_is_done_whole_at_its_next_attempt() -> None:
    synthesizer = handler(guidelines_per_question=3)
    aside = stored(synthesizer.mark_failed(asked(), "a fault"))
    row = stored(synthesize(synthesizer, aside), attempt=1)
    assert (row["num_paths"], row["num_failed"], row["error"]) == (3, 0, None)


def test_path_that_failed_has_no_answer_whatever_it_wrote() -> None:
    texts = {"reasoning": "It is \\boxed{4}"}
    failed = ReasoningPath("p", texts=texts, predicted="4", error="path: refused")
    [graded] = grade_paths([failed], QUESTION, ("number",))
    assert (graded.verdict, graded.predicted, graded.read_as) == ("error", None, None)


def test_content_changes_with_what_decides_the_paths_and_with_nothing_else() -> None:
    recipe = handler(guidelines_per_question=3).recipe
    content = paths_step.content(recipe, EngineSettings(), Model("model", "", ""))
    same = EngineSettings(max_num_seqs=7, max_attempts=9, generation_timeout_s=5)
    assert paths_step.content(recipe, same, Model("model", "", "")) == content
    assert (
        paths_step.content(recipe, EngineSettings(dtype="float32"), Model("model", "", ""))
        != content
    )
    assert paths_step.content(recipe, EngineSettings(), Model("another", "", "")) != content
    assert paths_step.content(handler().recipe, EngineSettings(), Model("model", "", "")) != content


# --- the second pass, with the right answer shown ----------------------------------------------


class Hinted:
    """Right only when it was told; each prompt is kept."""

    def __init__(self, is_right: bool = False) -> None:
        self.prompts: list[str] = []
        self._is_right = is_right

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        prompt = messages[-1]["content"]
        self.prompts.append(prompt)
        is_right = self._is_right or "right answer is 4" in prompt
        text = "It is \\boxed{4}" if is_right else "It is \\boxed{5}"
        return [Completion(text, [1, 2], "stop", 9) for _ in range(n)]

    def shutdown(self) -> None: ...


def test_question_without_a_right_path_runs_again_with_the_answer_shown_in_the_same_row() -> None:
    synthesizer = handler(guidelines_per_question=3, hint_stages=["path"])
    row = asyncio.run(synthesizer(Hinted(), asked(), Slots(3), None))
    assert [path["pass"] for path in row["paths"]] == [0, 0, 0, 1, 1, 1]
    assert [path["verdict"] for path in row["paths"]] == ["wrong"] * 3 + ["correct"] * 3
    assert (row["num_paths"], row["num_accepted"]) == (6, 3)
    assert len({path["path_id"] for path in row["paths"]}) == 6


@pytest.mark.parametrize(
    ("hint_stages", "is_right", "num_asked"), [([], False, 9), (["path"], True, 9)]
)
def test_no_second_pass_by_default_or_where_a_path_was_right(
    hint_stages: list[str], is_right: bool, num_asked: int
) -> None:
    engine = Hinted(is_right)
    synthesizer = handler(guidelines_per_question=3, hint_stages=hint_stages)
    row = asyncio.run(synthesizer(engine, asked(), Slots(3), None))
    assert len(engine.prompts) == num_asked
    assert {path["pass"] for path in row["paths"]} == {0}


def test_further_attempt_keeps_the_hinted_paths_that_are_whole() -> None:
    synthesizer = handler(guidelines_per_question=2, hint_stages=["path"])
    first = stored(asyncio.run(synthesizer(Hinted(), asked(), Slots(3), None)))
    broken = [path | {"error": "path: refused"} for path in first["paths"][:1]]
    previous = first | {"paths": broken + first["paths"][1:]}
    engine = Hinted(is_right=True)
    row = asyncio.run(synthesizer(engine, asked(), Slots(3), previous))
    assert len(engine.prompts) == 3
    assert stored(row)["paths"][1:] == first["paths"][1:]
    assert row["paths"][0]["verdict"] == "correct"


def test_target_of_a_server_that_tells_no_ids_has_the_tokens_that_it_counted() -> None:
    counted = {"stage": "path", "finish_reason": "stop", "num_tokens": 40}
    planned = {"stage": "structure", "finish_reason": "stop", "num_tokens": 9}
    row = {"path_id": "p", "guideline_id": "g", "generations": [planned, counted]}
    assert ReasoningPath.from_row(row).num_target_tokens == 40
    assert ReasoningPath.from_row(row | {"token_ids": [1, 2, 3]}).num_target_tokens == 3
