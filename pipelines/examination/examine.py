"""Lays out an evaluation of several models and makes it.

Its folder is held, logged and finished step by step like that of a run::

    questions-<fingerprint>/                 the questions that are asked
    models/<name>/predictions-<fingerprint>/ a model's answers: rows-*.parquet, a row a question
    models/scores-<fingerprint>/             scores.parquet (long form) and scores.md

The same command goes on where it was stopped. A further model or task costs only its own work, and
a model's answers are those that a run with the same settings would store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from cluster.errors import InputError, InterruptedRunError
from cluster.events import KeptLog, timed
from cluster.inference.engine import (
    check_engine_continues,
    check_engine_options,
    check_engine_server,
    check_sampling_options,
)
from cluster.inference.job import GenerationJob
from cluster.inference.schedule import Questions
from cluster.models.model import Model
from cluster.remote import run_task
from cluster.session import StopRequest, check_storage_root, starts_cluster
from cluster.settings import versioned
from cluster.store.folder import Folder
from cluster.store.holder import hold
from cluster.store.ledger import Ledger
from cluster.store.step import Step, check_run_folder, check_steps, write_steps
from cluster.subprocesses import run_apart
from cluster.terminal import say
from evaluation.grader import GRADER_VERSION
from evaluation.model_scores import Measure, format_measures, measures_table, score_models
from evaluation.predictions import PredictAnswer, Prediction, predictions_schema
from evaluation.reading.lm_eval import lm_eval_lines
from pipelines.examination.models import ExaminedModel
from pipelines.examination.settings import EvaluateSettings, ExaminationSettings
from pipelines.generate import generate
from pipelines.planning.base_checks import Asking
from pipelines.planning.preflight import (
    SAMPLE,
    describe,
    look_apart,
    refuse_cores_not_here,
    refuse_reserved,
)
from pipelines.questions.loading import QuestionFacts
from pipelines.steps import predictions
from pipelines.steps import questions as questions_step
from pipelines.stored_run import record_config
from pipelines.template_facts import keep_template_facts, template_facts

MODELS = "models"
SCORES_VERSION = 1
"""To be raised when a statistic of `evaluation.model_scores` comes to another number."""


@dataclass(frozen=True)
class PlannedModel:
    """A model, how it is examined, and the step with its answers."""

    examined: ExaminedModel
    model: Model
    """What the engines load: of an adapter its base."""
    evaluation: ExaminationSettings
    """With the date of a template that writes one."""
    step: Step


@dataclass(frozen=True)
class Examination:
    """All steps of an evaluation."""

    settings: EvaluateSettings
    folder: Folder
    questions: QuestionFacts
    questions_step: Step
    models: Sequence[PlannedModel]
    scores: Step

    def steps(self) -> list[Step]:
        """In the order in which they are made."""
        return [self.questions_step, *(planned.step for planned in self.models), self.scores]

    def asked(self) -> Questions:
        """The questions, as workers read them."""
        return Questions(self.questions_step.folder, ("dev", "test"))


@contextmanager
def begin_examination(
    settings: EvaluateSettings,
    models: Sequence[tuple[ExaminedModel, ExaminationSettings]],
    log: KeptLog,
    *,
    take_over: bool = False,
) -> Iterator[Examination]:
    """Hold the folder, keep the log in it, store the questions and look at each model, before
    anything is generated. Each model comes with how it is examined.

    Raises `InputError` for what is wrong with a question, a model, an engine or the folder.
    """
    check_storage_root(settings.storage.root)
    for model, evaluation in models:
        _check_asking(settings, _asking(model, evaluation))
        if evaluation.readings:
            check_engine_continues(model.engine, f"--readings with the model {model.name}")
    folder = Folder.open(settings.storage.root).child(settings.run)
    with ExitStack() as stack:
        # A new folder is left alone until its questions turn out to be good.
        if check_run_folder(folder, settings.run):
            folder = stack.enter_context(hold(folder, take_over=take_over))
            log.keep_in(folder)
        every_s = settings.cluster.progress_every_s
        arguments = (settings.questions, folder, settings.run, every_s)
        facts = run_apart(questions_step.store_questions, *arguments)
        say(questions_step.summary(facts))
        if not facts.num_kept("dev", "test"):
            raise InputError("there is no question to ask; ask another split or other tasks")
        if folder.claim is None:
            folder = stack.enter_context(hold(folder, take_over=take_over))
            log.keep_in(folder)
        planned = [_plan_model(folder, facts, *each) for each in models]
        examination = _plan(settings, folder, facts, planned)
        check_steps(examination.steps(), contents=False)
        for each in planned:
            _look_at(settings, each)
        yield examination


def examine(examination: Examination, stop: StopRequest) -> list[Measure]:
    """Ask every model what it was not asked yet, and score all of them. Needs a session of Ray."""
    for note in check_steps(examination.steps()):
        say(f"note: {note}")
    record_config(examination.settings, examination.folder)
    _record_steps(examination)
    for models in pools_of(examination.models):
        if stop.is_set():
            raise InterruptedRunError("stopped between two models")
        names = ", ".join(planned.examined.name for planned in models)
        with timed("step", model=names, step="predictions"):
            _ask(examination, models, stop)
    return _score(examination)


def pools_of(models: Iterable[PlannedModel]) -> list[list[PlannedModel]]:
    """The models that still have to be asked, together where one pool of engines serves them."""
    pools: dict[str, list[PlannedModel]] = {}
    for planned in models:
        if not planned.step.is_done:
            pools.setdefault(planned.examined.pool, []).append(planned)
    return list(pools.values())


def _asking(model: ExaminedModel, evaluation: ExaminationSettings) -> Asking:
    messages = evaluation.messages(SAMPLE)
    return Asking("evaluation", "evaluation", messages, evaluation.sampling, model.engine)


def _check_asking(settings: EvaluateSettings, asking: Asking) -> None:
    """What the settings alone show to be wrong."""
    check_engine_options(asking.engine, needs_weight_proof=False)
    check_sampling_options(asking.engine, asking.field, asking.sampling)
    refuse_reserved(asking)
    if starts_cluster(settings.cluster):
        refuse_cores_not_here("engine.omp_threads_bind", asking.engine)


def _look_at(settings: EvaluateSettings, planned: PlannedModel) -> None:
    """Ask the server, or make the prompt once with the model's own tokenizer, where the model has
    questions left. Raises `InputError`."""
    examined = planned.examined
    if planned.step.is_done:
        return
    check_engine_server(examined.engine)
    if not examined.is_local:
        return
    asking = _asking(examined, planned.evaluation)
    contexts = {} if asking.engine.is_endpoint else {"engine": asking.engine}
    cache = settings.storage.cache
    found = look_apart(examined.model.path, cache, [asking], contexts, None)
    for line in describe(found):
        say(f"{examined.name}: {line}")


# --- laying out --------------------------------------------------------------------------------


def _plan_model(
    folder: Folder,
    facts: QuestionFacts,
    examined: ExaminedModel,
    evaluation: ExaminationSettings,
) -> PlannedModel:
    model = examined.model
    if examined.is_local:
        keep_template_facts(folder, model)
        template = template_facts(folder, model)
        model, evaluation = template.named(model), template.with_date(evaluation)
    asked = model
    if examined.adapter:
        both = {"base": model.identity, "adapter": examined.adapter_hash}
        asked = replace(model, identity=json.dumps(both))
    content = predictions.content(evaluation, examined.engine, asked)
    below = folder.child(f"{MODELS}/{examined.name}")
    step = Step.below(below, "predictions", content, facts.extent("dev", "test"))
    return PlannedModel(examined, model, evaluation, step)


def _plan(
    settings: EvaluateSettings,
    folder: Folder,
    facts: QuestionFacts,
    models: Sequence[PlannedModel],
) -> Examination:
    scored = {
        "models": {planned.examined.name: planned.step.identity for planned in models},
        "grader": GRADER_VERSION,
    }
    scores = Step.below(folder.child(MODELS), "scores", versioned(scored, SCORES_VERSION))
    stored = questions_step.step_of(folder, facts)
    return Examination(settings, folder, facts, stored, models, scores)


def _record_steps(examination: Examination) -> None:
    prefix = f"{examination.folder.path}/"
    names = [step.folder.path.removeprefix(prefix) for step in examination.steps()]
    write_steps(examination.folder, names)


# --- making ------------------------------------------------------------------------------------


def _ask(examination: Examination, models: Sequence[PlannedModel], stop: StopRequest) -> None:
    """Ask the models that one pool of engines serves."""
    jobs = [(planned.step, _job(examination, planned)) for planned in models]
    first = models[0]
    totals = generate(examination.settings, first.model, jobs, stop, first.examined.engine)
    for planned, rows in zip(models, totals, strict=True):
        say(predictions.summary(planned.step, rows))


def _job(examination: Examination, planned: PlannedModel) -> GenerationJob:
    evaluation = planned.evaluation
    handler = PredictAnswer(
        evaluation.sampling,
        evaluation.shots,
        evaluation.samples,
        evaluation.prompt,
        evaluation.readings,
    )
    schema = predictions_schema(
        samples=evaluation.samples is not None, readings=evaluation.readings
    )
    return GenerationJob(
        planned.examined.name,
        planned.step.folder,
        schema,
        handler,
        examination.asked(),
        adapter=planned.examined.adapter,
    )


def _score(examination: Examination) -> list[Measure]:
    answered = {planned.examined.name: planned.step.folder for planned in examination.models}
    measures: list[Measure] = run_task(score_models, examination.asked(), answered)
    step = examination.scores
    if not step.is_done:
        step.folder.write_table("scores.parquet", measures_table(measures))
        step.folder.write_bytes("scores.md", f"{format_measures(measures)}\n".encode())
        step.commit(made=["scores.parquet", "scores.md"])
    return measures


def write_lm_eval_logs(examination: Examination, folder: Folder) -> None:
    """Write each model's answers as lm-evaluation-harness writes its sample logs."""
    for planned in examination.models:
        run_task(
            _write_logs,
            planned.step.folder,
            examination.asked(),
            planned.evaluation,
            folder.child(planned.examined.name),
        )
    say(f"sample logs: {folder.uri}")


def _write_logs(
    answered: Folder, asked: Questions, evaluation: ExaminationSettings, folder: Folder
) -> None:
    """A file a task, in the order of the questions' ids. Runs as a task."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in Ledger.read(answered).of(asked.read()).rows():
        by_task.setdefault(row["dataset"], []).append(row)
    for task, rows in by_task.items():
        rows.sort(key=lambda row: str(row["question_id"]))
        graded = (Prediction.from_row(row).graded() for row in rows)
        lines = (json.dumps(line) for line in lm_eval_lines(graded, evaluation.messages))
        folder.write_bytes(f"samples_{task}.jsonl", "".join(f"{ln}\n" for ln in lines).encode())
