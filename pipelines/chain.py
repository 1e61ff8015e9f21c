"""One reasoning path: adapt a guideline, structure it, follow it (three generations in a row).

Pure functions around one coroutine, `run_chain`, which knows an engine by its `chat` method only.
A path as it is kept, for example::

    {"path_id": "0/regenesis/gsm8k/train/00042/decompose/0/0", "guideline_id": "decompose",
     "adapted_guideline": "Work out May from April first ...", "structure": "1. Find ...",
     "thinking": "", "reasoning": "In May she sold ... \\boxed{72}", "token_ids": [504, ...],
     "generations": [{"stage": "adapt", "seed": ..., "finish_reason": "stop", ...}, ...],
     "predicted": "72", "verdict": "correct", "read_as": "boxed", ...}
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from cluster.engine import Completion, Engine, GenerationError, SamplingSettings
from cluster.jobs import Slots
from cluster.settings import OPERATIONAL, Settings
from evaluation.prompt import Message, answer_format
from evaluation.question import Question
from pipelines.guidelines import (
    GUIDELINES_FILE,
    PROMPTS_FILE,
    Guideline,
    Prompts,
    load_guidelines,
    load_prompts,
)

STRATEGY = "regenesis"

GENERATION_TYPE = pa.struct(
    [
        ("stage", pa.string()),
        ("seed", pa.int64()),
        ("finish_reason", pa.string()),
        ("num_prompt_tokens", pa.int32()),
        ("num_cached_tokens", pa.int32()),  # of the prompt, in the engine's prefix cache
        ("num_tokens", pa.int32()),
    ]
)
PATH_TYPE = pa.struct(
    [
        ("path_id", pa.string()),
        ("guideline_id", pa.string()),
        ("pass", pa.int32()),
        ("sample", pa.int32()),
        ("adapted_guideline", pa.string()),
        ("structure", pa.string()),
        ("thinking", pa.string()),
        ("reasoning", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("generations", pa.list_(GENERATION_TYPE)),
        ("predicted", pa.string()),
        ("verdict", pa.string()),
        ("read_as", pa.string()),
        ("error", pa.string()),
    ]
)


class StageSettings(Settings):
    """The sampling of each stage; only the last one writes what is learned."""

    adapt: SamplingSettings = SamplingSettings(max_tokens=256)
    structure: SamplingSettings = SamplingSettings(max_tokens=512)
    path: SamplingSettings = SamplingSettings(max_tokens=2048)


class SynthesisSettings(Settings):
    """How reasoning paths are made."""

    guidelines: Annotated[str | None, OPERATIONAL] = None
    """A YAML file of your own guidelines, a list of `{id, text}`. What counts is its content."""
    prompts: Annotated[str | None, OPERATIONAL] = None
    """A YAML file of your own prompts (adapt, structure, path). What counts is its content."""
    guidelines_per_question: Annotated[int, Field(gt=0)] | None = None
    """How many of the guidelines each question gets, drawn by seed; null is all of them."""
    samples_per_guideline: Annotated[int, Field(gt=0)] = 1
    stages: StageSettings = StageSettings()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class PathTask:
    """One path to make, known before anything is generated."""

    path_id: str
    guideline: Guideline
    sample: int
    hint_pass: int = 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides what a question's paths will be, texts resolved; sent to the workers."""

    round: int
    guidelines: tuple[Guideline, ...]
    prompts: Prompts
    settings: SynthesisSettings

    @classmethod
    def load(cls, round_number: int, settings: SynthesisSettings) -> Recipe:
        """Read the guideline and prompt files. Raises `InputError` naming file and entry."""
        guidelines = load_guidelines(Path(settings.guidelines or GUIDELINES_FILE))
        prompts = load_prompts(Path(settings.prompts or PROMPTS_FILE))
        return cls(round_number, guidelines, prompts, settings)

    def tasks(self, question: Question) -> list[PathTask]:
        """The paths of a question: its guidelines in the order of the file, each n samples."""
        drawn = self._draw_guidelines(question.question_id)
        return [
            PathTask(
                f"{self.round}/{STRATEGY}/{question.question_id}/{guideline.guideline_id}/0/{sample}",
                guideline,
                sample,
            )
            for guideline in self.guidelines
            if guideline.guideline_id in drawn
            for sample in range(self.settings.samples_per_guideline)
        ]

    def _draw_guidelines(self, question_id: str) -> set[str]:
        ids = [guideline.guideline_id for guideline in self.guidelines]

        def key(guideline_id: str) -> int:
            return stable_seed(self.settings.seed, question_id, guideline_id)

        number = self.settings.guidelines_per_question
        if number is None or number >= len(ids):
            return set(ids)
        return set(sorted(ids, key=key)[:number])


def stable_seed(*parts: object) -> int:
    """A seed of 63 bits from the text of its parts: the same on every machine, in any order."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def split_thinking(text: str) -> tuple[str, str, bool]:
    """(thinking, answer, whether the thinking was closed) of a model's text.

    Some chat templates open `<think>` in the prompt, so that only its end stands in the text.
    """
    before, closed, after = text.partition("</think>")
    if closed:
        return before.replace("<think>", "", 1).strip(), after.strip(), True
    if text.lstrip().startswith("<think>"):
        return text.replace("<think>", "", 1).strip(), "", False
    return "", text.strip(), True


def stage_messages(
    stage: str, recipe: Recipe, question: Question, guideline: Guideline, columns: dict[str, Any]
) -> list[Message]:
    """The chat of one stage, filled in with what the stages before it wrote."""
    template: str = getattr(recipe.prompts, stage)
    text = template.format(
        question=question.text,
        guideline=guideline.text,
        adapted_guideline=columns["adapted_guideline"],
        structure=columns["structure"],
        answer_format=answer_format(question),
    )
    return [{"role": "user", "content": text}]


_STAGE_COLUMNS = {"adapt": "adapted_guideline", "structure": "structure", "path": "reasoning"}


async def run_chain(
    engine: Engine, recipe: Recipe, question: Question, task: PathTask, attempt: int = 0
) -> dict[str, Any]:
    """Run one path through its three generations; ungraded.

    A generation that failed (its prompt too long, its time up, refused by the engine) ends the path
    with `error` filled; an engine that died raises, since no other path would fare better.
    """
    columns: dict[str, Any] = {
        "path_id": task.path_id,
        "guideline_id": task.guideline.guideline_id,
        "pass": task.hint_pass,
        "sample": task.sample,
        "adapted_guideline": "",
        "structure": "",
        "thinking": "",
        "reasoning": "",
        "token_ids": [],
        "generations": [],
        "error": None,
    }
    for stage, column in _STAGE_COLUMNS.items():
        sampling: SamplingSettings = getattr(recipe.settings.stages, stage)
        # A retry draws anew: what rambled past the context once would do so again.
        seed = stable_seed(recipe.settings.seed, task.path_id, stage, *[attempt] * bool(attempt))
        messages = stage_messages(stage, recipe, question, task.guideline, columns)
        try:
            [completion] = await engine.chat(messages, sampling, seed)
        except GenerationError as error:
            columns["error"] = f"{stage}: {error}"
            break
        thinking, text, closed = split_thinking(completion.text)
        columns[column] = text
        columns["generations"].append(_describe(stage, seed, completion, closed))
        if stage == "path":
            columns |= {"thinking": thinking, "token_ids": completion.token_ids}
    return columns


def _describe(stage: str, seed: int, completion: Completion, closed: bool) -> dict[str, Any]:
    """A generation's record. Thinking that was never closed leaves no answer: cut off."""
    return {
        "stage": stage,
        "seed": seed,
        "finish_reason": completion.finish_reason if closed else "length",
        "num_prompt_tokens": completion.num_prompt_tokens,
        "num_cached_tokens": completion.num_cached_tokens,
        "num_tokens": len(completion.token_ids),
    }


async def run_chains(
    engine: Engine,
    recipe: Recipe,
    question: Question,
    slots: Slots,
    previous: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """All paths of a question, each by itself: no stage waits for another path's stage.

    Of the `previous` attempt's row, only the paths that failed are run again.
    """
    attempt = previous["attempt"] + 1 if previous else 0
    whole: dict[str, dict[str, Any]] = (
        {path["path_id"]: path for path in previous["paths"] or ()} if previous else {}
    )

    async def run(task: PathTask) -> dict[str, Any]:
        path = whole.get(task.path_id)
        if path is not None and not path["error"]:
            return path
        async with slots:
            return await run_chain(engine, recipe, question, task, attempt)

    return await asyncio.gather(*(run(task) for task in recipe.tasks(question)))
