"""The probe of `regenesis.py plan`: an estimate of the run from its first rows.

The probed questions belong to the run, and their rows are kept, so nothing is generated only for
the estimate. The measured speed is also kept: a second estimate generates nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cluster.errors import InputError
from cluster.inference.engine_sizing import fit_engines
from cluster.inference.pool import num_workers
from cluster.inference.schedule import Questions
from cluster.remote import run_task
from cluster.session import StopRequest
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger
from cluster.terminal import say
from evaluation.question import Question
from pipelines.generate import run_engines
from pipelines.plan import first_round, lay_out_rounds
from pipelines.planning.estimate import (
    Budget,
    Estimate,
    PlannedTraining,
    ProbedPredictions,
    ProbedQuestion,
    Speed,
    Workload,
    check_budget,
    estimate_run,
)
from pipelines.run import Round, Run
from pipelines.selection.filters import (
    GOLD,
    ExampleSettings,
    GradedQuestion,
    filter_paths,
    num_learned,
)
from pipelines.selection.retries import Tries
from pipelines.steps import guidelines, paths, predictions
from pipelines.synthesis.handler import stored_paths
from training.settings import TrainingSettings

PROBE_FILE = "probe.json"
NUM_PROBED = 20
MOST_READ = 1_000
"""Limit on the finished questions that are read when a run already has many."""


def read_probed_paths(
    folder: Folder, questions: Questions, settings: ExampleSettings, num_stages: int
) -> list[ProbedQuestion]:
    """The questions of the `paths` step that have a row. Runs as a task."""
    ledger = Ledger.read(folder).of(questions.keys())
    ledger = replace(ledger, index=ledger.index.slice(0, MOST_READ))
    num_bytes = ledger.num_bytes() // max(1, ledger.index.num_rows)
    return [_probed(row, settings, num_bytes, num_stages) for row in ledger.rows()]


def _probed(
    row: dict[str, Any], settings: ExampleSettings, num_bytes: int, num_stages: int
) -> ProbedQuestion:
    question = Question.from_row(row)
    tried = Tries.of(stored_paths(row, question, settings.read_last), settings)
    judged = GradedQuestion(question, tried.used, settings)
    kept, _ = filter_paths(judged)
    num_kept = num_learned(judged, len(kept))
    mean_target = sum(len(path.token_ids) for path in kept) / max(1, len(kept))
    return ProbedQuestion(
        dataset=row["dataset"],
        num_paths=row["num_paths"],
        num_generations=row["num_paths"] * num_stages,
        num_tokens=row["num_tokens"],
        num_prompt_tokens=row["num_prompt_tokens"],
        num_accepted=len(judged.right),
        num_kept=num_kept,
        num_learned_tokens=0 if settings.verdict in GOLD else round(num_kept * mean_target),
        num_bytes=num_bytes,
        num_truncated=row["num_truncated"],
    )


def read_probed_predictions(folder: Folder, questions: Questions) -> ProbedPredictions:
    """Every held-out question that has an answer. Runs as a task."""
    index = Ledger.read(folder).of(questions.keys()).index
    return ProbedPredictions(tuple(n or 0 for n in index.column("num_tokens").to_pylist()))


def estimate_run_from_probe(run: Run, stop: StopRequest) -> Estimate:
    """Estimate the complete run from its first questions, which are generated now and kept."""
    config, round_ = run.config, first_round(run)
    guidelines.make(run, stop)
    speed = _probe_speed(run, round_, stop)
    return estimate_run(
        run_task(
            read_probed_paths,
            round_.paths.folder,
            run.stored_questions("train"),
            config.examples,
            len(config.synthesis.chain),
        ),
        run_task(read_probed_predictions, run.base_predictions.folder, run.held_out()),
        _workload(run, round_),
        speed,
        config.cost,
    )


def _workload(run: Run, round_: Round) -> Workload:
    job, config = paths.job(run, round_), run.config
    return Workload(
        num_questions=run.questions.num_kept("train"),
        paths_per_question=job.handler.width,
        max_per_question=config.examples.max_per_question,
        num_predictions=sum(run.questions.num_kept(*config.asked_splits).values()),
        rounds=config.rounds,
        num_models_predicted=len(run.base_steps())
        + sum(len(each.branches) for each in lay_out_rounds(run)),
        shares=job.shares,
        max_tokens=config.budget.generated_tokens,
        max_examples=config.examples.max_examples,
        training=planned_training(config.training, config.rounds),
    )


def planned_training(training: TrainingSettings, rounds: int) -> PlannedTraining | None:
    """What the estimate has to know of the trainings; None for several models of a round and for
    preferences, whose steps do not follow from the number of the kept paths."""
    if training.mix != "joint" or training.objective != "sft":
        return None
    return PlannedTraining(
        tuple(training.of_round(number).num_epochs for number in range(rounds)),
        training.global_batch_size,
        training.max_steps,
        training.max_learned_tokens,
    )


def _probe_speed(run: Run, round_: Round, stop: StopRequest) -> Speed:
    """Generate the first questions of the run, unless that was done, and measure the speed of the
    paths, which are nearly all of the work. Predictions on another engine are assumed to be as
    fast."""
    engine = run.config.synthesis.engine
    known = round_.paths.folder.read_json(PROBE_FILE)
    if not isinstance(known, dict):
        jobs = [paths.job(run, round_)]
        answers = [predictions.job(run, run.base_predictions)]
        if engine is None:  # the same engines serve both
            jobs, answers = [*jobs, *answers], []
        summary = run_engines(
            run.config, round_.generator, jobs, stop, limit=NUM_PROBED, engine=engine
        )
        if answers:
            run_engines(run.config, run.base, answers, stop, limit=NUM_PROBED)
        if not summary.counts:
            raise InputError(
                "nothing is left to generate in round 0, so the run cannot be estimated"
            )
        known = summary.facts()
        round_.paths.folder.write_json(PROBE_FILE, known)
    fitted, _ = fit_engines(engine or run.config.engine, round_.generator)
    return Speed(
        tokens_per_s=known["tokens_per_s"],
        num_workers_probed=int(known["num_workers"]),
        num_workers=num_workers(fitted)[1],
        gpus_per_worker=fitted.gpus_per_worker,
        start_s=known["wall_s"] - known["generating_s"],
    )


def keep_to_budget(run: Run, stop: StopRequest) -> None:
    """Raise `InputError` when the config has a budget that the run would exceed."""
    budget = run.config.budget
    if not budget.can_refuse or first_round(run).paths.is_done:
        return
    tell_budget(estimate_run_from_probe(run, stop), budget)


def tell_budget(estimate: Estimate, budget: Budget) -> None:
    """Say what may exceed the budget. Raises `OverBudgetError` for what does."""
    for warning in check_budget(estimate, budget):
        say(f"budget: {warning}")
