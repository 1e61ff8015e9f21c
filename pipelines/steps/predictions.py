"""The `predictions` step: a model's greedy answers to the held-out questions, graded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cluster.inference.engine import EngineSettings
from cluster.inference.job import GenerationJob
from cluster.models.model import Model
from cluster.session import StopRequest
from cluster.settings import content_of, versioned
from cluster.store.step import Step
from cluster.terminal import say
from evaluation.predictions import EvaluationSettings, PredictAnswer, predictions_schema
from evaluation.prompt import PromptName
from evaluation.readings import CUES
from pipelines.generate import generate
from pipelines.run import Round, Run

VERSION = 1
TURNS = 1
"""As in `pipelines.steps.paths`; a tuned model differs anyway if its examples do."""


def content(settings: EvaluationSettings, engine: EngineSettings, asked: Model) -> dict[str, Any]:
    """Everything that determines a model's answer to a question."""
    made_from: dict[str, Any] = {
        "model": asked.identity,
        "engine": content_of(engine),
        "evaluation": content_of(settings),
    }
    if asked.needs_turns:
        made_from["turns"] = TURNS
    if settings.readings:
        made_from["cues"] = {name: asdict(cue) for name, cue in CUES.items()}
    return versioned(made_from, VERSION)


def job(run: Run, step: Step, prompt: PromptName | None = None) -> GenerationJob:
    """The job for the engines; `prompt` is asked in place of that of the config."""
    evaluation = run.config.evaluation
    handler = PredictAnswer(
        evaluation.sampling, prompt=prompt or evaluation.prompt, readings=evaluation.readings
    )
    schema = predictions_schema(samples=False, readings=evaluation.readings)
    name = f"predictions ({prompt})" if prompt else "predictions"
    return GenerationJob(name, step.folder, schema, handler, run.held_out())


def jobs_of_base(run: Run) -> list[tuple[Step, GenerationJob]]:
    """What the base still has to answer, with each of its prompts."""
    found = [(run.base_predictions, job(run, run.base_predictions))]
    found += [(step, job(run, step, prompt)) for prompt, step in run.base_prompted.items()]
    return [(step, each) for step, each in found if not step.is_done]


def make(run: Run, round_: Round, stop: StopRequest) -> None:
    """Generate the answers of the tuned models, and those of the base model if still missing."""
    of_branches = [
        (branch.tuned, [(branch.predictions, job(run, branch.predictions))])
        for branch in round_.branches
        if not branch.predictions.is_done
    ]
    for model, jobs in ((run.base, jobs_of_base(run)), *of_branches):
        if jobs:
            totals = generate(run.config, model, jobs, stop)
            for (step, _), rows in zip(jobs, totals, strict=True):
                say(summary(step, rows))


def summary(step: Step, rows: Mapping[str, Any]) -> str:
    """How many questions were answered, and by which round's model; `scores` reports the
    quality."""
    *_, parent, _ = step.folder.path.split("/")
    if not rows.get("num_done"):
        return f"{step.name}: {parent} had no question to answer"
    return (
        f"{step.name}: {parent} answered {rows['num_done']} questions; {rows['num_truncated']} "
        f"answers were cut off, {rows['num_failed']} failed"
    )
