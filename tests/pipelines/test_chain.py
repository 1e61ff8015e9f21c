from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from cluster.engine import Completion, PromptTooLongError, SamplingSettings
from cluster.errors import InputError
from evaluation.question import Question
from pipelines.chain import (
    Recipe,
    SynthesisSettings,
    run_chain,
    run_chains,
    split_thinking,
    stable_seed,
)
from pipelines.guidelines import load_guidelines, load_prompts

QUESTION = Question("d/train/1", "d", "train", "in_domain", "What is {2} + 2?", "4", "number")


class Recorder:
    """Answers each stage with fixed text and remembers what it was asked."""

    def __init__(self, last: str = "2 + 2 is 4. \\boxed{4}", fail_at: str = "") -> None:
        self.asked: list[tuple[str, SamplingSettings, int]] = []
        self._last, self._fail_at = last, fail_at

    async def chat(
        self, messages: Sequence[Mapping[str, str]], sampling: SamplingSettings, seed: int
    ) -> Completion:
        prompt = messages[-1]["content"]
        self.asked.append((prompt, sampling, seed))
        if self._fail_at and self._fail_at in prompt:
            raise PromptTooLongError("the prompt has 9 tokens, the model's context 8")
        text = ["use fingers", "1. count", self._last][(len(self.asked) - 1) % 3]
        return Completion(text, [7, 8, 2], "stop", len(prompt))

    def shutdown(self) -> None: ...


def recipe(**settings: object) -> Recipe:
    return Recipe.load(0, SynthesisSettings.model_validate(settings))


def test_guidelines_ours_are_25_with_their_own_ids_and_texts() -> None:
    guidelines = load_guidelines()
    assert len({guideline.guideline_id for guideline in guidelines}) == 25
    assert len({guideline.text for guideline in guidelines}) == 25


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "expected a list"),
        ([{"id": "a"}], "guideline 1 needs"),
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], "given twice"),
        ([{"id": "a/b", "text": "x"}], "without a slash"),
        ([{"id": "a", "text": " "}], "has no text"),
    ],
)
def test_guidelines_malformed_file_is_refused(
    tmp_path: Path, rows: list[object], expected: str
) -> None:
    path = tmp_path / "g.yaml"
    path.write_text(yaml.safe_dump(rows))
    with pytest.raises(InputError, match=expected):
        load_guidelines(path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"adapt": "{question}"}, "lacks {guideline}"),
        ({"path": "{question} {structure} {answer}"}, "has {answer}; known"),
        ({"path": "{question} {structure} \\boxed{"}, "write {{ for a plain brace"),
    ],
)
def test_prompts_malformed_file_is_refused(
    tmp_path: Path, changes: dict[str, str], expected: str
) -> None:
    prompts = {"adapt": "{question} {guideline}", "structure": "{question} {adapted_guideline}"}
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(prompts | {"path": "{question} {structure}"} | changes))
    with pytest.raises(InputError, match=expected):
        load_prompts(path)


def test_chain_each_stage_sees_what_the_one_before_wrote() -> None:
    engine = Recorder()
    plan = recipe(stages={"adapt": {"max_tokens": 11}, "path": {"max_tokens": 99}})
    task = plan.tasks(QUESTION)[0]
    path = asyncio.run(run_chain(engine, plan, QUESTION, task))
    adapt, structure, solve = (prompt for prompt, _, _ in engine.asked)
    assert task.guideline.text in adapt
    assert "use fingers" in structure
    assert "1. count" in solve
    assert "\\boxed{}" in solve
    # One prefix for all stages and chains of a question; braces of the question are left alone.
    assert all(p.startswith("What is {2} + 2?\n\n") for p in (adapt, structure, solve))
    assert [sampling.max_tokens for _, sampling, _ in engine.asked] == [11, 512, 99]
    assert path["reasoning"] == "2 + 2 is 4. \\boxed{4}"
    assert path["token_ids"] == [7, 8, 2]
    assert [g["stage"] for g in path["generations"]] == ["adapt", "structure", "path"]


def test_chain_seeds_hang_on_path_and_stage_only() -> None:
    first, second = Recorder(), Recorder()
    plan = recipe(guidelines_per_question=4, samples_per_guideline=2)
    tasks = plan.tasks(QUESTION)
    for task in tasks:
        asyncio.run(run_chain(first, plan, QUESTION, task))
    for task in reversed(tasks):
        asyncio.run(run_chain(second, plan, QUESTION, task))
    seeds = [seed for _, _, seed in first.asked]
    assert len(set(seeds)) == 4 * 2 * 3
    assert sorted(seeds) == sorted(seed for _, _, seed in second.asked)
    assert stable_seed(0, tasks[0].path_id, "adapt") == seeds[0]
    assert recipe(seed=1).tasks(QUESTION)[0].path_id == recipe().tasks(QUESTION)[0].path_id


def test_tasks_drawn_guidelines_cover_all_over_many_questions() -> None:
    plan = recipe(guidelines_per_question=5)
    drawn = [
        {
            task.guideline.guideline_id
            for task in plan.tasks(
                Question(f"d/train/{n}", "d", "train", "in_domain", "q", "4", "number")
            )
        }
        for n in range(60)
    ]
    assert {len(ids) for ids in drawn} == {5}
    assert len(set().union(*drawn)) == 25


def test_chain_prompt_too_long_keeps_the_path_with_its_reason() -> None:
    plan = recipe(guidelines_per_question=1)
    paths = asyncio.run(
        run_chains(Recorder(fail_at="Advice:"), plan, QUESTION, asyncio.Semaphore(1))
    )
    assert paths[0]["error"] == "structure: the prompt has 9 tokens, the model's context 8"
    assert len(paths[0]["generations"]) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>hm</think>\n\\boxed{4}", ("hm", "\\boxed{4}", True)),
        ("hm, so\n</think>\n4", ("hm, so", "4", True)),
        ("<think>hm \\boxed{5}", ("hm \\boxed{5}", "", False)),
        ("no thoughts", ("", "no thoughts", True)),
    ],
)
def test_thinking_is_kept_apart_from_the_answer(text: str, expected: tuple[str, str, bool]) -> None:
    assert split_thinking(text) == expected


def test_chain_unclosed_thinking_counts_as_cut_off() -> None:
    plan = recipe(guidelines_per_question=1)
    engine = Recorder(last="<think>it may be \\boxed{4}")
    path = asyncio.run(run_chain(engine, plan, QUESTION, plan.tasks(QUESTION)[0]))
    assert path["reasoning"] == ""
    assert path["thinking"] == "it may be \\boxed{4}"
    assert path["generations"][-1]["finish_reason"] == "length"
