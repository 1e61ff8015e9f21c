"""The `paths` step: all reasoning paths of every training question, graded; it drops nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cluster.errors import DamagedFileError
from cluster.inference.engine import EngineSettings
from cluster.inference.job import GenerationJob
from cluster.inference.schedule import DatasetQuota
from cluster.models.model import Model
from cluster.remote import run_task
from cluster.session import StopRequest
from cluster.settings import content_of, fingerprint, versioned
from cluster.store.folder import Folder
from cluster.store.ledger import adopt_rows
from cluster.store.step import Step
from cluster.terminal import say
from pipelines.config import Config
from pipelines.generate import generate
from pipelines.questions.loading import QuestionFacts
from pipelines.run import Round, Run
from pipelines.steps import guidelines, predictions
from pipelines.synthesis.chain import Recipe, SynthesisSettings
from pipelines.synthesis.handler import PATHS_SCHEMA, SynthesizePaths
from pipelines.synthesis.stages import STAGES
from pipelines.synthesis.swapped_adaptations import OtherQuestions

VERSION = 1
TURNS = 1
"""The version for those models only whose turns are read differently; see `Model.needs_turns`."""


def content(
    recipe: Recipe, engine: EngineSettings, generator: Model, proposed: Step | None = None
) -> dict[str, Any]:
    """Everything that determines a question's paths; `proposed` is the `guidelines` step."""
    engine = recipe.settings.engine or engine
    made_from: dict[str, Any] = {
        "round": recipe.round,
        # A server that gets chats runs its own model, which is part of the engine's content.
        "model": generator.identity if engine.needs_model else None,
        "engine": content_of(engine),
        "synthesis": _synthesis_content(recipe.settings),
        "guidelines": [asdict(guideline) for guideline in recipe.guidelines],
        "prompts": recipe.prompts.of_paths(recipe.settings.chain),
    }
    if generator.needs_turns and engine.needs_model:
        made_from["turns"] = TURNS
    if proposed is not None:
        made_from["expansion"] = proposed.identity
    return versioned(made_from, VERSION)


def _synthesis_content(settings: SynthesisSettings) -> dict[str, Any]:
    """The settings, without those of later stages that the chain does not have."""
    made_from = content_of(settings)
    made_from.pop("engine", None)  # it replaces the run's engine
    made_from["strategy"] = settings.strategy_name  # its settings are part of these
    used = {s.name for s in STAGES.values() if not s.came_later or s.name in settings.chain}
    sampling = made_from["stages"]
    made_from["stages"] = {
        name: sampling[name] for name in sampling if name in used or name not in STAGES
    }
    return made_from


def extent(config: Config, questions: QuestionFacts) -> str:
    """The amount of work: the training questions, and the limits that end it early."""
    limits = [
        (name, dataset.max_generated_tokens, dataset.max_accepted_paths)
        for name, dataset in sorted(config.questions.datasets.items())
        if dataset.max_generated_tokens or dataset.max_accepted_paths
    ]
    bound = config.budget.generated_tokens
    return fingerprint(questions.extent("train"), limits, *([bound] if bound else []))


def job(run: Run, round_: Round) -> GenerationJob:
    """The job for the engines."""
    recipe = guidelines.with_proposed(round_.recipe, run.guidelines_step)
    quotas = {
        name: DatasetQuota(dataset.weight, dataset.max_generated_tokens, dataset.max_accepted_paths)
        for name, dataset in run.config.questions.datasets.items()
    }
    asked, settings = run.stored_questions("train"), recipe.settings
    swaps = settings.swap_adaptations == "questions"
    others = OtherQuestions(asked, settings.seed) if swaps else None
    return GenerationJob(
        name="paths",
        folder=round_.paths.folder,
        schema=PATHS_SCHEMA,
        handler=SynthesizePaths(recipe, run.config.examples.read_last, others),
        questions=asked,
        shares=quotas,
        max_tokens=run.config.budget.generated_tokens,
    )


def make(run: Run, round_: Round, stop: StopRequest) -> None:
    """Guideline -> structure -> path for every training question.

    The base model's predictions are generated on the same engines at the same time, unless the
    paths use another engine.
    """
    if round_.paths.is_done:
        return
    round_.paths.keep_content()
    take_over_rows(round_.paths)
    jobs = [(round_.paths, job(run, round_))]
    engine = run.config.synthesis.engine
    others = predictions.jobs_of_base(run) if engine is None and round_.number == 0 else []
    rows, *of_others = generate(run.config, round_.generator, [*jobs, *others], stop, engine)
    say(summary(rows))
    for (step, _), totals in zip(others, of_others, strict=True):
        say(predictions.summary(step, totals))


HOW_MANY = ("samples", "guidelines_per_question", "guideline_subset", "unhinted_retries")
"""Settings that determine how many paths a question has, but not the paths themselves."""


def take_over_rows(step: Step) -> None:
    """Begin with the paths of finished steps that differ only in how many paths a question has.

    The ids and seeds of a path follow from its guideline and the number of its sample, so paths
    that both steps have are not generated again.
    """
    for source in _siblings(step):
        try:
            number = run_task(adopt_rows, step.folder, source, PATHS_SCHEMA)
        except DamagedFileError as error:
            say(f"note: {error}; its paths are generated again")
            continue
        if number:
            say(f"paths: {number} questions reuse their paths from {source.name}")


def _siblings(step: Step) -> list[Folder]:
    """The folders of these steps, beginning with the one that has the most paths."""
    found: list[tuple[int, Folder]] = []
    for folder in step.siblings():
        try:
            manifest = folder.manifest() or {}
        except DamagedFileError:
            continue
        if _has_same_paths(manifest.get("content", {}), step.content):
            found.append((manifest["rows"]["num_paths"], folder))
    return [folder for _, folder in sorted(found, key=lambda each: -each[0])]


def _has_same_paths(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two contents give equal paths wherever both have one."""

    def others(content: Mapping[str, Any]) -> dict[str, Any]:
        synthesis = {k: v for k, v in content.get("synthesis", {}).items() if k not in HOW_MANY}
        return {**content, "synthesis": synthesis, "guidelines": None}

    def texts(content: Mapping[str, Any]) -> dict[str, Any]:
        return {each["guideline_id"]: each for each in content.get("guidelines", ())}

    mine, yours = texts(one), texts(other)
    shared = mine.keys() & yours.keys()
    same_texts = all(mine[name] == yours[name] for name in shared)
    return same_texts and fingerprint(others(one)) == fingerprint(others(other))


def summary(rows: Mapping[str, Any]) -> str:
    """How many paths there are, and how many have the right answer."""
    return (
        f"paths: generated {rows['num_paths']} for {rows['num_done']} questions; "
        f"{rows['num_accepted']} reached the right answer, {rows['num_truncated']} were cut off, "
        f"{rows['num_failed']} failed"
    )
