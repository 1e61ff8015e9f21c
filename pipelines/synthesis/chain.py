"""One reasoning path: adapt a guideline, structure it, follow it (three generations in a row).

The functions are pure except for the coroutine `run_chain`, which only uses an engine's `chat`
method. The chain may leave out stages; without adaptation and structure it is a plain chain of
thought with exactly the prompt of the evaluation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cluster.errors import InputError
from cluster.inference.engine import Engine, EngineSettings
from cluster.inference.job import Slots
from cluster.settings import OPERATIONAL, Neutral, Settings
from evaluation.prompt import Message, answer_format, answer_messages
from evaluation.question import Question
from evaluation.responses import Response, respond
from pipelines.strategy import name_of
from pipelines.synthesis.guidelines import (
    PROMPTS_FILE,
    Guideline,
    Prompts,
    guidelines_file,
    load_guidelines,
    load_prompts,
)
from pipelines.synthesis.reasoning_path import HINTED, Generation, ReasoningPath
from pipelines.synthesis.seeds import stable_seed
from pipelines.synthesis.stages import ADAPT, PATH, STAGES, Stage, StageSettings
from pipelines.synthesis.swapped_adaptations import next_on_ring

SAMPLES_PER_REQUEST = 16
"""The number of answers in one request for samples with the same prompt, which the engine reads
once. It is small, so that the last samples of a question do not wait for a hundred free slots."""


class GuidelineSubset(Settings):
    """A subset of the guidelines, drawn once for all questions."""

    size: Annotated[int, Field(gt=0)]
    """The number of guidelines to follow."""
    seed: int = 0
    """Determines the subset; another seed draws another one."""


class SynthesisSettings(Settings):
    """How reasoning paths are generated."""

    strategy: str = "regenesis"
    """One of `pipelines/strategies`, or the path of a Python file that defines your own (see
    docs/EXTENDING.md); it provides the settings that the config does not set."""
    chain: tuple[str, ...] = ("adapt", "structure", "path")
    """The stages of a path, in order. Without `adapt` the guideline is structured unchanged;
    without `structure` the advice is followed directly; `[path]` is a plain chain of thought with
    no guideline and the prompt of the evaluation."""
    hint_stages: tuple[str, ...] = ()
    """Stages that are shown the right answer in a second pass. Only questions without any right
    path get this pass. If this is empty there is no second pass: the truth is only used to filter
    and never to generate."""
    unhinted_retries: Annotated[bool, Neutral(value=False)] = False
    """Beside the second pass, run its questions again without the answer until that has generated
    as many tokens, as a control for what the answer is worth. `examples.retries` chooses between
    the two."""
    guidelines: Annotated[str | None, OPERATIONAL] = None
    """A YAML file with your guidelines, a list of `{id, text}`. Its content is what counts.
    `placebo` names ours that say nothing about how to answer, as a control."""
    expand_guidelines: Annotated[int, OPERATIONAL, Field(ge=0)] = 0
    """The number of further guidelines that the base model proposes before the first round. Those
    that are new and general are followed in all rounds, together with the others. The prompts for
    them count as content, see `pipelines.synthesis.propose_guidelines`."""
    prompts: Annotated[str | None, OPERATIONAL] = None
    """A YAML file with one or more of your prompts (adapt, structure, path, ...); the others are
    ours. Its content is what counts."""
    guidelines_per_question: Annotated[int, Field(gt=0)] | None = None
    """How many of the guidelines each question gets, drawn by seed; null means all of them."""
    guideline_subset: Annotated[GuidelineSubset | None, Neutral(None)] = None
    """Follow only a subset of the guidelines, the same one for every question, as a control for
    how many are needed; null follows all."""
    swap_adaptations: Annotated[Literal["none", "questions", "guidelines"], Neutral("none")] = (
        "none"
    )
    """Continue each path with the adaptation of its guideline to another question of the dataset
    (questions), or of another guideline to its own question (guidelines), as a control for what
    the adaptation is worth."""
    judge: Literal["none", "correct", "all"] = "none"
    """The paths that the model itself judges for soundness: none, those with the right answer, or
    all. `examples.drop_unsound` drops those that it finds unsound."""
    shuffle_options: bool = False
    """Shuffle the options again for each path, so that a model which prefers one letter is not
    right by habit. The paths of a question then share less of their prompts."""
    samples: Annotated[int, Field(gt=0)] = 1
    """How many paths are generated for each guideline, or for each question if no guideline is
    followed."""
    engine: Annotated[EngineSettings | None, Neutral(None)] = None
    """Another engine for the paths and their judge, such as a server with a larger model; null is
    `engine`. The base and the tuned model are evaluated on `engine` in both cases."""
    stages: StageSettings = StageSettings()
    seed: int = 0
    """Every random draw depends on it and on the ids of what is drawn."""

    @property
    def strategy_name(self) -> str:
        """The strategy as path ids and tables call it."""
        return name_of(self.strategy)

    @property
    def follows_guidelines(self) -> bool:
        """Whether any stage reads a guideline; otherwise a path is only the last stage."""
        return len(self.chain) > 1

    @model_validator(mode="after")
    def _fits_together(self) -> SynthesisSettings:
        if unknown := {*self.chain, *self.hint_stages} - {*STAGES}:
            raise ValueError(f"chain: there is no stage {min(unknown)!r}; there are {list(STAGES)}")
        if not self.chain or self.chain != tuple(s for s in STAGES if s in self.chain):
            raise ValueError(f"chain: {list(self.chain)} is not in the order of {list(STAGES)}")
        if self.chain[-1] != PATH.name:
            raise ValueError("chain: its last stage must be path, which writes the solution")
        if unknown := set(self.hint_stages) - set(self.chain):
            raise ValueError(f"hint_stages: {min(unknown)} is not a stage of the chain; remove it")
        if self.unhinted_retries and not self.hint_stages:
            raise ValueError(
                "unhinted_retries: is a control for hints, but hint_stages is empty; remove one"
            )
        if not self.follows_guidelines and self.guidelines_per_question:
            raise ValueError(
                "guidelines_per_question: a chain of only path follows none; use samples"
            )
        if self.guideline_subset and not self.follows_guidelines:
            raise ValueError("guideline_subset: a chain of only path follows none; remove it")
        if self.guideline_subset and self.expand_guidelines:
            raise ValueError(
                "guideline_subset: expand_guidelines adds further guidelines, so "
                "the subset would change; remove one of them"
            )
        if self.swap_adaptations != "none":
            self._check_swap()
        if not self.follows_guidelines and self.expand_guidelines:
            raise ValueError("expand_guidelines: a chain of only path follows none; remove it")
        is_drawn = any(self.stages.of(stage).temperature for stage in self.chain)
        if self.samples > 1 and not is_drawn:
            raise ValueError("samples: all are equal at temperature 0; set 1, or a temperature")
        if self.unhinted_retries and not is_drawn:
            raise ValueError(
                "unhinted_retries: at temperature 0 they repeat the first pass; set a temperature"
            )
        return self

    def _check_swap(self) -> None:
        if ADAPT.name not in self.chain:
            raise ValueError("swap_adaptations: the chain has no stage adapt; remove it")
        if ADAPT.name in self.hint_stages:
            raise ValueError(
                "swap_adaptations: the adaptations are those made without a hint; remove adapt "
                "from hint_stages"
            )


@dataclass(frozen=True, slots=True)
class PathSpec:
    """One path to generate, known before anything is generated."""

    path_id: str
    guideline: Guideline | None
    """None for a plain chain of thought."""
    sample: int
    pass_number: int = 0
    """As in `ReasoningPath`."""
    option_order: tuple[int, ...] = ()
    """The options as this path shows them, as indices in the question; empty: unchanged."""

    @property
    def is_hinted(self) -> bool:
        """Whether some stages are shown the right answer."""
        return self.pass_number == HINTED


@dataclass(frozen=True, slots=True)
class Previous:
    """The result of an earlier attempt at a question."""

    attempt: int
    paths: Sequence[ReasoningPath]

    @classmethod
    def from_row(cls, row: Mapping[str, Any] | None) -> Previous | None:
        """The attempt in a ledger row; None without a row."""
        if row is None:
            return None
        return cls(row["attempt"], [ReasoningPath.from_row(path) for path in row["paths"] or ()])


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines a question's paths, with texts resolved; sent to the workers."""

    round: int
    guidelines: tuple[Guideline, ...]
    prompts: Prompts
    settings: SynthesisSettings

    @classmethod
    def load(cls, round_number: int, settings: SynthesisSettings) -> Recipe:
        """Read the guideline and prompt files. Raises `InputError` naming file and entry."""
        guidelines = load_guidelines(guidelines_file(settings.guidelines))
        if settings.guideline_subset:
            guidelines = draw_subset(guidelines, settings.guideline_subset)
        prompts = load_prompts(Path(settings.prompts or PROMPTS_FILE))
        return cls(round_number, guidelines, prompts, settings)

    def specs(self, question: Question, pass_number: int = 0) -> list[PathSpec]:
        """The paths of one pass over a question: its guidelines in the order of the file, with n
        samples each."""
        return [
            self._spec(question, guideline, pass_number, sample)
            for guideline in self._guidelines_of(question.question_id)
            for sample in range(self.settings.samples)
        ]

    def _spec(
        self, question: Question, guideline: Guideline | None, pass_number: int, sample: int
    ) -> PathSpec:
        first = f"{self.round}/{self.settings.strategy_name}/{question.question_id}"
        last = f"{guideline.guideline_id if guideline else 'none'}/{pass_number}/{sample}"
        path_id = f"{first}/{last}"
        return PathSpec(path_id, guideline, sample, pass_number, self._order(question, path_id))

    def _order(self, question: Question, path_id: str) -> tuple[int, ...]:
        """The indices of the question's options in the order that was drawn for the path."""
        if not self.settings.shuffle_options:
            return ()
        places = range(len(question.choices))
        seeds = [stable_seed(self.settings.seed, path_id, "option", place) for place in places]
        return tuple(sorted(places, key=seeds.__getitem__))

    def adapted_as(
        self, question: Question, spec: PathSpec, other: Question | None
    ) -> tuple[Question, PathSpec]:
        """The question and the path whose adaptation a path continues with: its own ones, unless
        `swap_adaptations` names others. `other` is the other question.

        Others are always of the first pass.
        """
        swap, guideline = self.settings.swap_adaptations, spec.guideline
        if swap == "none" or guideline is None:
            return question, spec
        if swap == "guidelines":
            own = {
                each.guideline_id: each
                for each in self._guidelines_of(question.question_id)
                if each
            }
            ring = next_on_ring(own, self.settings.seed, question.question_id)
            return question, self._spec(question, own[ring[guideline.guideline_id]], 0, spec.sample)
        if other is None:
            raise ValueError("swap_adaptations: questions needs the other question")
        return other, self._spec(other, guideline, 0, spec.sample)

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


def draw_subset(
    guidelines: tuple[Guideline, ...], subset: GuidelineSubset
) -> tuple[Guideline, ...]:
    """Some of the guidelines, in order. Raises `InputError` if there are too few.

    Smaller subsets of a seed are contained in its larger ones, whatever the guidelines' order.
    """
    if subset.size > len(guidelines):
        raise InputError(
            f"synthesis.guideline_subset.size: {subset.size} exceeds the {len(guidelines)} "
            "existing guidelines; lower it"
        )
    ids = sorted((g.guideline_id for g in guidelines), key=lambda i: stable_seed(subset.seed, i))
    drawn = set(ids[: subset.size])
    return tuple(guideline for guideline in guidelines if guideline.guideline_id in drawn)


def stage_messages(
    name: str, recipe: Recipe, question: Question, spec: PathSpec, texts: Mapping[str, str]
) -> list[Message]:
    """The chat of one stage, filled in with what the earlier stages wrote, by their columns."""
    question = question.with_options(spec.option_order)
    if spec.guideline is None:
        messages = answer_messages(question)
    else:
        text = recipe.prompts[_prompt_name(name, recipe.settings.chain)].format(
            **{stage.column: texts.get(stage.column, "") for stage in STAGES.values()}
            | {
                "question": question.text,
                "guideline": spec.guideline.text,
                "adapted_guideline": texts.get("adapted_guideline") or spec.guideline.text,
                "answer_format": answer_format(question),
            }
        )
        messages = [{"role": "user", "content": text}]
    if spec.is_hinted and name in recipe.settings.hint_stages:
        hint = recipe.prompts["hint"].format(answer=question.shown_answer)
        last = messages[-1]
        messages = [*messages[:-1], last | {"content": f"{last['content']}\n\n{hint}"}]
    return messages


def _prompt_name(stage: str, chain: tuple[str, ...]) -> str:
    return "path_from_advice" if stage == PATH.name and "structure" not in chain else stage


async def run_chain(
    engine: Engine,
    recipe: Recipe,
    question: Question,
    specs: Sequence[PathSpec],
    attempt: int = 0,
    num_made: int = 0,
    other: Question | None = None,
) -> list[ReasoningPath]:
    """Run one path through its generations, or several samples that share every prompt; ungraded.

    The first `num_made` of the samples exist already, and the others get the same seeds as if all
    were requested together. `other` is the question whose adaptations are used if those of two
    questions are swapped. A generation that fails ends its path with `error` set, and a thought
    that never ends leaves the path cut off, because the next stage would lack what this one should
    have written. A dead engine raises an error, since no other path would succeed.
    """
    paths = [_begun_path(spec) for spec in specs[num_made:]]
    for name in recipe.settings.chain:
        asked, spec = question, specs[0]
        if name == ADAPT.name:
            asked, spec = recipe.adapted_as(question, spec, other)
        # A retry draws again with another seed: what exceeded the context once would do so again.
        again = [attempt] if attempt else []
        seed = stable_seed(recipe.settings.seed, spec.path_id, name, *again)
        messages = stage_messages(name, recipe, asked, spec, paths[0].texts)
        sampling = recipe.settings.stages.of(name)
        responses = await respond(engine, messages, sampling, seed + num_made, len(paths))
        paths = [
            _with_response(path, STAGES[name], response)
            for path, response in zip(paths, responses, strict=True)
        ]
        # One request failed for all paths that share it, or it left nothing to continue with.
        if paths[0].error or STAGES[name].column not in paths[0].texts:
            break
    return paths


def _begun_path(spec: PathSpec) -> ReasoningPath:
    return ReasoningPath(
        path_id=spec.path_id,
        guideline_id=spec.guideline.guideline_id if spec.guideline else None,
        pass_number=spec.pass_number,
        sample=spec.sample,
        option_order=spec.option_order,
    )


def _with_response(path: ReasoningPath, stage: Stage, response: Response) -> ReasoningPath:
    """The path with the output of a stage; a thought that never ended leaves no text."""
    completion = response.completion
    if completion is None:
        return replace(path, error=f"{stage.name}: {response.error}")
    turn = completion.own_turn
    written = {} if turn.answer is None else {stage.column: turn.answer.strip()}
    path = replace(
        path,
        texts={**path.texts, **written},
        generations=(
            *path.generations,
            Generation.of(stage.name, response.seed, completion),
        ),
    )
    if stage != PATH:
        return path
    return replace(path, thinking=turn.thinking or "", token_ids=completion.token_ids)


def requests(specs: Sequence[PathSpec]) -> list[list[PathSpec]]:
    """The paths grouped by request: those with the same prompt together, others alone."""
    plain = [spec for spec in specs if spec.guideline is None and not spec.option_order]
    groups = [plain[n : n + SAMPLES_PER_REQUEST] for n in range(0, len(plain), SAMPLES_PER_REQUEST)]
    return [*groups, *([spec] for spec in specs if spec.guideline or spec.option_order)]


async def run_chains(
    engine: Engine,
    recipe: Recipe,
    question: Question,
    slots: Slots,
    previous: Previous | None = None,
    pass_number: int = 0,
    other: Question | None = None,
) -> list[ReasoningPath]:
    """All paths of one pass over a question; no path waits for another path's stage. `other` is as
    in `run_chain`.

    Of the paths in the `previous` attempt, only those that failed or are missing are run.
    """
    attempt = previous.attempt + 1 if previous else 0
    whole = {path.path_id: path for path in previous.paths if not path.error} if previous else {}
    specs = recipe.specs(question, pass_number)

    async def run(group: list[PathSpec]) -> list[ReasoningPath]:
        # Paths that share a prompt fail together, so existing ones come before missing ones.
        num_made = next(n for n, spec in enumerate(group) if spec.path_id not in whole)
        async with slots.take(len(group) - num_made):
            return await run_chain(engine, recipe, question, group, attempt, num_made, other)

    groups = (g for g in requests(specs) if any(spec.path_id not in whole for spec in g))
    made = await asyncio.gather(*map(run, groups))
    paths = {path.path_id: path for group in made for path in group} | whole
    return [paths[spec.path_id] for spec in specs]
