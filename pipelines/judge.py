"""The model as a judge of its own paths: is each step sound, whatever the answer is?

Off by default. It runs within the question's own work on the same engine, which still has the
question in its prefix cache. What it says is kept with the path and drops nothing by itself::

    {"path_id": ..., "judged": "no", "generations": [..., {"stage": "judge", ...}], ...}
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cluster.engine import Engine, GenerationError
from cluster.jobs import Slots
from evaluation.grader import Verdict, grade
from evaluation.question import Question
from pipelines.chain import Recipe, generation_facts, split_thinking, stable_seed


def is_to_be_judged(path: dict[str, Any], which: str) -> bool:
    """Whether a graded path is shown to the judge; one that was keeps what was said."""
    if path["error"] or path["judged"] or not path["reasoning"]:
        return False
    return which == "all" or (which == "correct" and path["verdict"] == Verdict.CORRECT)


async def judge_paths(
    engine: Engine,
    recipe: Recipe,
    question: Question,
    paths: Sequence[dict[str, Any]],
    slots: Slots,
) -> list[dict[str, Any]]:
    """The paths, those that are to be judged with `judged`: yes, no, or None where it is unclear.

    A judgement that fails in the engine is none; the path stays as it is.
    """

    async def judge(path: dict[str, Any]) -> dict[str, Any]:
        if not is_to_be_judged(path, recipe.settings.judge):
            return path
        async with slots:
            return await _judge_path(engine, recipe, question, path)

    return list(await asyncio.gather(*map(judge, paths)))


async def _judge_path(
    engine: Engine, recipe: Recipe, question: Question, path: dict[str, Any]
) -> dict[str, Any]:
    shown = question.with_options(path["option_order"])
    text = recipe.prompts.judge.format(question=shown.text, reasoning=path["reasoning"])
    seed = stable_seed(recipe.settings.seed, path["path_id"], "judge")
    messages = [{"role": "user", "content": text}]
    try:
        [completion] = await engine.chat(messages, recipe.settings.stages.judge, seed)
    except GenerationError:
        return path
    facts = generation_facts("judge", seed, completion)
    judged = read_judgement(completion.text, question)
    return path | {"judged": judged, "generations": [*path["generations"], facts]}


def read_judgement(text: str, question: Question) -> str | None:
    """`yes` or `no` as the judge ended, read as any answer of that type is."""
    asked = replace(question, answer_type="boolean", answer="yes", choices=(), grader="")
    _, visible, _ = split_thinking(text)
    return grade(visible, asked, read_last=True).predicted
