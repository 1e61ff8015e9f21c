"""One reasoning path: adapt a guideline, structure it, follow it (three generations in a row).

Pure functions around one coroutine, `run_chain`, which knows an engine by its `chat` method only.
The chain may leave stages out; what is left of it without adaptation and structure is a plain chain
of thought, from the very prompt that evaluation asks with.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pyarrow as pa
from pydantic import Field, model_validator

from cluster.engine import Completion, Engine, GenerationError, SamplingSettings
from cluster.jobs import Slots
from cluster.settings import OPERATIONAL, Settings
from evaluation.prompt import Message, answer_format, answer_messages
from evaluation.question import Question
from pipelines.guidelines import (
    GUIDELINES_FILE,
    PROMPTS_FILE,
    Guideline,
    Prompts,
    load_guidelines,
    load_prompts,
)

Stage = Literal["adapt", "structure", "path"]
STAGES: tuple[Stage, ...] = get_args(Stage)

SAMPLES_PER_REQUEST = 16
"""Answers that one request asks for, where samples share their prompt: the engine reads it once.
Few enough that the last samples of a question do not wait for a hundred free slots."""

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
        ("option_order", pa.list_(pa.int32())),  # empty: as the question has them
        ("adapted_guideline", pa.string()),
        ("structure", pa.string()),
        ("thinking", pa.string()),
        ("reasoning", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("judged", pa.string()),  # whether the model found the path sound: yes, no or null
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
    judge: SamplingSettings = SamplingSettings(temperature=0.0, max_tokens=512)
    expand: Annotated[SamplingSettings, OPERATIONAL] = SamplingSettings(max_tokens=256)
    """Of the guidelines that the model proposes; counts where it is asked for any."""


class SynthesisSettings(Settings):
    """How reasoning paths are made."""

    strategy: str = "regenesis"
    """One of `pipelines/strategies`; it sets what the config does not."""
    chain: tuple[Stage, ...] = STAGES
    """The stages of a path, in their order. Without `adapt` the guideline is structured as it is;
    without `structure` the advice is followed as it is; `[path]` is a plain chain of thought, with
    no guideline and the prompt of evaluation."""
    hint_stages: tuple[Stage, ...] = ()
    """Stages that are shown the right answer in a second pass, which only a question has none of
    whose paths was right. Empty: no such pass; the truth filters, and never helps to generate."""
    guidelines: Annotated[str | None, OPERATIONAL] = None
    """A YAML file of your own guidelines, a list of `{id, text}`. What counts is its content."""
    expand_guidelines: Annotated[int, OPERATIONAL, Field(ge=0)] = 0
    """So many further guidelines are proposed by the base model before the first round, and those
    that are new and general followed beside the others in all rounds. What counts is what the model
    is asked, see `pipelines.expansion`."""
    prompts: Annotated[str | None, OPERATIONAL] = None
    """A YAML file of your own prompts (adapt, structure, path, ...). What counts is its content."""
    guidelines_per_question: Annotated[int, Field(gt=0)] | None = None
    """How many of the guidelines each question gets, drawn by seed; null is all of them."""
    judge: Literal["none", "correct", "all"] = "none"
    """Ask the model itself whether a path is sound: never, of those with the right answer, of all.
    `examples.drop_unsound` drops by it."""
    shuffle_options: bool = False
    """Show each path the options in an order of its own, so that a model which likes one letter is
    not right by habit. Paths of a question then share less of their prompts."""
    samples: Annotated[int, Field(gt=0)] = 1
    """Paths of each guideline; of each question where the chain follows none."""
    stages: StageSettings = StageSettings()
    seed: int = 0

    @property
    def follows_guidelines(self) -> bool:
        """Whether any stage reads a guideline; else a path is the last stage alone."""
        return len(self.chain) > 1

    @model_validator(mode="after")
    def _fits_together(self) -> SynthesisSettings:
        if not self.chain or self.chain != tuple(s for s in STAGES if s in self.chain):
            raise ValueError(f"chain: {list(self.chain)} is not in the order of {list(STAGES)}")
        if self.chain[-1] != "path":
            raise ValueError("chain: its last stage has to be path, which writes the solution")
        if unknown := set(self.hint_stages) - set(self.chain):
            raise ValueError(f"hint_stages: {min(unknown)} is no stage of the chain; remove it")
        if not self.follows_guidelines and self.guidelines_per_question:
            raise ValueError(
                "guidelines_per_question: a chain of path alone follows none; use samples"
            )
        if not self.follows_guidelines and self.expand_guidelines:
            raise ValueError("expand_guidelines: a chain of path alone follows none; remove it")
        if self.samples > 1 and not any(getattr(self.stages, s).temperature for s in self.chain):
            raise ValueError("samples: all are the same at temperature 0; set 1, or a temperature")
        return self


@dataclass(frozen=True, slots=True)
class PathTask:
    """One path to make, known before anything is generated."""

    path_id: str
    guideline: Guideline | None
    """None: a plain chain of thought."""
    sample: int
    hint_pass: int = 0
    """1: made again with the right answer shown in some stages."""
    option_order: tuple[int, ...] = ()
    """The options as this path is shown them, by their places in the question; empty: as there."""


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

    def tasks(self, question: Question, hint_pass: int = 0) -> list[PathTask]:
        """The paths of a question: its guidelines in the order of the file, each n samples."""
        return [
            self._task(question, guideline, hint_pass, sample)
            for guideline in self._guidelines_of(question.question_id)
            for sample in range(self.settings.samples)
        ]

    def _task(
        self, question: Question, guideline: Guideline | None, hint_pass: int, sample: int
    ) -> PathTask:
        first = f"{self.round}/{self.settings.strategy}/{question.question_id}"
        last = f"{guideline.guideline_id if guideline else 'none'}/{hint_pass}/{sample}"
        path_id = f"{first}/{last}"
        return PathTask(path_id, guideline, sample, hint_pass, self._order(question, path_id))

    def _order(self, question: Question, path_id: str) -> tuple[int, ...]:
        """The places of the question's options, drawn for the path."""
        if not self.settings.shuffle_options:
            return ()
        places = range(len(question.choices))
        seeds = [stable_seed(self.settings.seed, path_id, "option", place) for place in places]
        return tuple(sorted(places, key=seeds.__getitem__))

    def _guidelines_of(self, question_id: str) -> list[Guideline | None]:
        if not self.settings.follows_guidelines:
            return [None]
        drawn = self._draw_guidelines(question_id)
        return [guideline for guideline in self.guidelines if guideline.guideline_id in drawn]

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
    stage: Stage, recipe: Recipe, question: Question, task: PathTask, columns: Mapping[str, Any]
) -> list[Message]:
    """The chat of one stage, filled in with what the stages before it wrote."""
    question = question.with_options(task.option_order)
    if task.guideline is None:
        messages = answer_messages(question)
    else:
        template: str = getattr(recipe.prompts, _prompt_name(stage, recipe.settings.chain))
        text = template.format(
            question=question.text,
            guideline=task.guideline.text,
            adapted_guideline=columns["adapted_guideline"] or task.guideline.text,
            structure=columns["structure"],
            answer_format=answer_format(question),
        )
        messages = [{"role": "user", "content": text}]
    if task.hint_pass and stage in recipe.settings.hint_stages:
        hint = recipe.prompts.hint.format(answer=question.shown_answer)
        last = messages[-1]
        messages = [*messages[:-1], last | {"content": f"{last['content']}\n\n{hint}"}]
    return messages


def _prompt_name(stage: Stage, chain: tuple[Stage, ...]) -> str:
    return "path_from_advice" if stage == "path" and "structure" not in chain else stage


_STAGE_COLUMNS: dict[Stage, str] = {
    "adapt": "adapted_guideline",
    "structure": "structure",
    "path": "reasoning",
}


async def run_chain(
    engine: Engine,
    recipe: Recipe,
    question: Question,
    tasks: Sequence[PathTask],
    attempt: int = 0,
) -> list[dict[str, Any]]:
    """Run one path through its generations, or several samples that share every prompt; ungraded.

    A generation that failed (its prompt too long, its time up, refused by the engine) ends the path
    with `error` filled; an engine that died raises, since no other path would fare better.
    """
    paths = [_begun_path(task) for task in tasks]
    for stage in recipe.settings.chain:
        sampling: SamplingSettings = getattr(recipe.settings.stages, stage)
        # A retry draws anew: what rambled past the context once would do so again.
        again = [attempt] if attempt else []
        seed = stable_seed(recipe.settings.seed, tasks[0].path_id, stage, *again)
        messages = stage_messages(stage, recipe, question, tasks[0], paths[0])
        try:
            completions = await engine.chat(messages, sampling, seed, len(tasks))
        except GenerationError as error:
            return [path | {"error": f"{stage}: {error}"} for path in paths]
        # The engine gives the samples of a request the seeds that follow on its own.
        for offset, (path, completion) in enumerate(zip(paths, completions, strict=True)):
            _add_generation(path, stage, seed + offset, completion)
    return paths


def _begun_path(task: PathTask) -> dict[str, Any]:
    return {
        "path_id": task.path_id,
        "guideline_id": task.guideline.guideline_id if task.guideline else None,
        "pass": task.hint_pass,
        "sample": task.sample,
        "option_order": list(task.option_order),
        "adapted_guideline": "",
        "structure": "",
        "thinking": "",
        "reasoning": "",
        "token_ids": [],
        "judged": None,
        "generations": [],
        "error": None,
    }


def _add_generation(path: dict[str, Any], stage: Stage, seed: int, completion: Completion) -> None:
    """Keep what a stage wrote. Thinking that was never closed leaves no answer: cut off."""
    thinking, text, closed = split_thinking(completion.text)
    path[_STAGE_COLUMNS[stage]] = text
    if stage == "path":
        path |= {"thinking": thinking, "token_ids": completion.token_ids}
    facts = generation_facts(stage, seed, completion)
    path["generations"].append(facts if closed else facts | {"finish_reason": "length"})


def generation_facts(stage: str, seed: int, completion: Completion) -> dict[str, Any]:
    """What is kept of a generation beside its text."""
    return {
        "stage": stage,
        "seed": seed,
        "finish_reason": completion.finish_reason,
        "num_prompt_tokens": completion.num_prompt_tokens,
        "num_cached_tokens": completion.num_cached_tokens,
        "num_tokens": completion.num_tokens,
    }


def requests(tasks: Sequence[PathTask]) -> list[list[PathTask]]:
    """The tasks that are asked for together: those of one prompt are, others go alone."""
    plain = [task for task in tasks if task.guideline is None and not task.option_order]
    groups = [plain[n : n + SAMPLES_PER_REQUEST] for n in range(0, len(plain), SAMPLES_PER_REQUEST)]
    return [*groups, *([task] for task in tasks if task.guideline or task.option_order)]


async def run_chains(
    engine: Engine,
    recipe: Recipe,
    question: Question,
    slots: Slots,
    previous: Mapping[str, Any] | None = None,
    hint_pass: int = 0,
) -> list[dict[str, Any]]:
    """All paths of one pass over a question, none waiting for another path's stage.

    Of the `previous` attempt's row, only the paths that failed are run again.
    """
    attempt = previous["attempt"] + 1 if previous else 0
    before = (previous["paths"] or ()) if previous else ()
    whole = {path["path_id"]: path for path in before if not path["error"]}
    tasks = recipe.tasks(question, hint_pass)

    async def run(group: list[PathTask]) -> list[dict[str, Any]]:
        async with slots.take(len(group)):
            return await run_chain(engine, recipe, question, group, attempt)

    made = await asyncio.gather(
        *(run(group) for group in requests([t for t in tasks if t.path_id not in whole]))
    )
    paths = whole | {path["path_id"]: path for group in made for path in group}
    return [paths[task.path_id] for task in tasks]
