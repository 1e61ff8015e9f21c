from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest

from cluster.inference.engine import Completion, GenerationError, SamplingSettings
from cluster.inference.job import Slots
from evaluation.question import Question
from pipelines.synthesis.chain import Recipe, SynthesisSettings
from pipelines.synthesis.handler import PATHS_SCHEMA, SynthesizePaths
from pipelines.synthesis.judge import read_judgement
from pipelines.synthesis.reasoning_path import ReasoningPath

QUESTION = Question("d/train/1", "d", "train", "in_domain", "What is 2 + 2?", "4", "number")


class SolverAndJudge:
    """Right for every second seed; as a judge it says what it is told to."""

    def __init__(self, judgement: str = "Sound: \\boxed{yes}", fails: bool = False) -> None:
        self.judged: list[str] = []
        self._judgement, self._fails = judgement, fails

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        prompt = messages[-1]["content"]
        if "handed in" not in prompt:
            texts = [f"way {seed + k}: \\boxed{{{4 + (seed + k) % 2}}}" for k in range(n)]
            return [Completion(text, [1, 2], "stop", 9) for text in texts]
        if self._fails:
            raise GenerationError("refused")
        assert (sampling.temperature, n) == (0.0, 1)
        self.judged.append(prompt)
        return [Completion(self._judgement, [3], "stop", 20)]

    def shutdown(self) -> None: ...


def paths_of(
    engine: SolverAndJudge, previous: dict[str, Any] | None = None, **settings: Any
) -> dict[str, Any]:
    tree = {"chain": ["path"], "samples": 8} | settings
    recipe = Recipe.load(0, SynthesisSettings.model_validate_json(json.dumps(tree)))
    row = asyncio.run(SynthesizePaths(recipe, ())(engine, QUESTION.to_row(), Slots(4), previous))
    table = pa.Table.from_pylist([row | {"attempt": 0}], schema=PATHS_SCHEMA)
    read: dict[str, Any] = table.to_pylist()[0]
    return read


def test_judge_is_asked_about_right_paths_only_and_kept_with_them() -> None:
    engine = SolverAndJudge("There is a fault. \\boxed{no}")
    row = paths_of(engine, judge="correct")
    right = [path for path in row["paths"] if path["verdict"] == "correct"]
    assert 0 < len(right) < 8
    assert len(engine.judged) == len(right)
    assert all(QUESTION.text in prompt for prompt in engine.judged)
    assert {path["judged"] for path in right} == {"no"}
    assert {path["judged"] for path in row["paths"] if path not in right} == {None}
    assert [g["stage"] for g in right[0]["generations"]] == ["path", "judge"]
    assert ReasoningPath.from_row(right[0]).is_finished
    assert row["num_tokens"] == 8 * 2 + len(right)


def test_judge_is_asked_about_all_or_none() -> None:
    engine = SolverAndJudge()
    assert {path["judged"] for path in paths_of(engine, judge="all")["paths"]} == {"yes"}
    assert len(engine.judged) == 8
    never = SolverAndJudge()
    assert {path["judged"] for path in paths_of(never)["paths"]} == {None}
    assert never.judged == []


def test_judgement_that_fails_leaves_the_path() -> None:
    row = paths_of(SolverAndJudge(fails=True), judge="all")
    assert {path["judged"] for path in row["paths"]} == {None}
    assert row["num_failed"] == 0


def test_judged_paths_are_not_judged_again_on_a_retry() -> None:
    row = paths_of(SolverAndJudge(), judge="all")
    row["paths"][0]["error"] = "path: refused"
    engine = SolverAndJudge()
    again = paths_of(engine, row, judge="all")
    assert len(engine.judged) == 1
    assert {path["judged"] for path in again["paths"]} == {"yes"}


@pytest.mark.parametrize(
    ("text", "judged"),
    [
        ("All fine. \\boxed{yes}", "yes"),
        ("<think>\\boxed{no}</think> The answer is yes.", "yes"),
        ("Step 2 is wrong.\n**No**", "no"),
        ("I cannot say.", None),
        ("<think>\\boxed{no} or \\boxed{yes}", None),
        ("", None),
    ],
)
def test_judgement_is_read_as_any_yes_or_no(text: str, judged: str | None) -> None:
    assert read_judgement(Completion(text, [], "stop", 9), QUESTION) == judged
