"""The model judges its paths: whether each step is sound, whatever the answer is.

This is off by default. The judge runs right after a question's paths, on the same engine, whose
prefix cache still contains the question. Its judgement is stored with the path and drops nothing by
itself::

    {"path_id": ..., "judged": "no", "generations": [..., {"stage": "judge", ...}], ...}
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from cluster.inference.engine import Completion, Engine
from cluster.inference.job import Slots
from evaluation.grader import Verdict, grade
from evaluation.question import Question
from evaluation.responses import respond
from pipelines.synthesis.chain import Recipe
from pipelines.synthesis.reasoning_path import Generation, ReasoningPath
from pipelines.synthesis.seeds import stable_seed


def is_to_be_judged(path: ReasoningPath, which: str) -> bool:
    """Whether a graded path is to be judged; a path that was judged keeps its judgement."""
    if path.error or path.judged or not path.reasoning:
        return False
    return which == "all" or (which == "correct" and path.verdict == Verdict.CORRECT)


async def judge_paths(
    engine: Engine,
    recipe: Recipe,
    question: Question,
    paths: Sequence[ReasoningPath],
    slots: Slots,
) -> list[ReasoningPath]:
    """The paths, with `judged` set where required: yes, no, or None if it is unclear.

    A judgement that fails in the engine is skipped, and the path is unchanged.
    """

    async def judge(path: ReasoningPath) -> ReasoningPath:
        if not is_to_be_judged(path, recipe.settings.judge):
            return path
        async with slots:
            return await _judge_path(engine, recipe, question, path)

    return list(await asyncio.gather(*map(judge, paths)))


async def _judge_path(
    engine: Engine, recipe: Recipe, question: Question, path: ReasoningPath
) -> ReasoningPath:
    shown = path.shown_question(question)
    text = recipe.prompts["judge"].format(question=shown.text, reasoning=path.reasoning)
    seed = stable_seed(recipe.settings.seed, path.path_id, "judge")
    messages = [{"role": "user", "content": text}]
    [response] = await respond(engine, messages, recipe.settings.stages.judge, seed)
    if response.completion is None:
        return path
    generation = Generation.of("judge", response.seed, response.completion)
    return replace(
        path,
        judged=read_judgement(response.completion, question),
        generations=(*path.generations, generation),
    )


def read_judgement(completion: Completion, question: Question) -> str | None:
    """`yes` or `no` as the judge concluded, read like any answer of that type; None if it was cut
    off before either."""
    visible = completion.own_turn.answer
    if visible is None:
        return None
    asked = replace(question, answer_type="boolean", answer="yes", choices=(), grader="")
    finished = completion.finish_reason == "stop"
    return grade(visible, asked, read_last=True, finished=finished).predicted
