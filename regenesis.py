"""ReGenesis (arXiv 2410.02108): a model improves itself by reasoning that it made itself.

The one driver, on a laptop and under `ray job submit`::

    python regenesis.py run configs/quickstart.yaml
    ray job submit --working-dir . -- python regenesis.py run configs/llama3_8b.yaml

A round is `questions -> paths -> examples -> model -> predictions -> scores`. Each step is a
folder whose manifest is written last; the same command goes on from the first one without it.
"""

from __future__ import annotations

import argparse
import math
import os
import select
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml
from pydantic import Field

from cluster.apart import run_apart
from cluster.engine import EngineSettings, slow_top_p
from cluster.errors import (
    GenerationStoppedError,
    InputError,
    InterruptedRunError,
    NoExamplesError,
    StorageError,
)
from cluster.fitting import fit_engines
from cluster.holder import hold
from cluster.jobs import Job
from cluster.ledger import Ledger
from cluster.leftovers import (
    ask_to_delete,
    check_is_run,
    find_leftovers,
    format_leftovers,
    remove_leftovers,
)
from cluster.models import Model, ModelSettings, base_model, tuned_model
from cluster.pool import PoolSummary, finish_job, num_workers, run_jobs
from cluster.progress import format_seconds
from cluster.runtime import (
    ClusterSettings,
    StopRequest,
    StorageSettings,
    check_storage_root,
    log_folder,
    ray_session,
)
from cluster.schedule import Questions, Share
from cluster.settings import (
    EXTENT,
    OPERATIONAL,
    Settings,
    content_of,
    fingerprint,
    load_settings,
    settings_of,
    with_overrides,
)
from cluster.steps import STEPS_FILE, Step, check_run_folder, check_steps
from cluster.storage import Folder
from cluster.tasks import run_task
from cluster.weights import check_saved
from evaluation.grade_file import format_verdicts, grade_file
from evaluation.grader import GRADER_VERSION
from evaluation.predictions import (
    PREDICTIONS_SCHEMA,
    EvaluationSettings,
    PredictAnswer,
    predictions_content,
)
from evaluation.question import SPLITS, Split
from evaluation.scores import format_scores, score_predictions, scores_table
from pipelines.chain import Recipe, SynthesisSettings
from pipelines.estimate import (
    Budget,
    CostSettings,
    Estimate,
    Speed,
    Workload,
    check_budget,
    estimate_run,
    format_estimate,
)
from pipelines.examples import select_step_examples
from pipelines.expansion import (
    PROPOSALS_SCHEMA,
    Expansion,
    ProposeGuideline,
    read_step_guidelines,
    select_step_guidelines,
    with_room,
    write_prompts,
)
from pipelines.filters import ExampleSettings
from pipelines.probe import (
    NUM_PROBED,
    PROBE_FILE,
    read_probed_paths,
    read_probed_predictions,
)
from pipelines.question_step import questions_step, store_questions
from pipelines.questions import QuestionFacts, QuestionSet, QuestionSettings, load_questions
from pipelines.selection import CONFIG_FILE, StoredRun, format_overlaps, format_selection
from pipelines.strategy import with_strategy
from pipelines.synthesis import PATHS_SCHEMA, SynthesizePaths, paths_content
from pipelines.task_listing import format_task, format_tasks
from training.examples import survey
from training.fine_tune import fine_tune
from training.settings import TrainingSettings

STEPS = ("questions", "guidelines", "paths", "examples", "model", "predictions", "scores")
ROUND_STEPS = STEPS[2:]
NO_TRAINING = "questions.datasets: no question to train on; one has to be in_domain"


class Config(Settings):
    """The whole config tree; each folder owns its branch."""

    run: Annotated[str, OPERATIONAL, Field(pattern=r"^\.*[A-Za-z0-9_-][A-Za-z0-9._-]*$")]
    """The name of the run, and of its folder below `storage.root`."""
    rounds: Annotated[int, EXTENT, Field(gt=0)] = 1
    """Rounds of self-improvement; each synthesises with the model of the one before."""
    model: ModelSettings
    questions: QuestionSettings
    synthesis: SynthesisSettings = SynthesisSettings()
    examples: ExampleSettings = ExampleSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    engine: EngineSettings = EngineSettings()
    cluster: ClusterSettings = ClusterSettings()
    storage: StorageSettings = StorageSettings()
    cost: CostSettings = CostSettings()
    budget: Budget = Budget()

    @pydantic.model_validator(mode="after")
    def _one_model_goes_on(self) -> Config:
        if self.rounds > 1 and self.training.mix == "per_dataset":
            raise ValueError(
                f"rounds: {self.rounds} needs one model to go on with, and training.mix: "
                "per_dataset makes several; set rounds: 1 or training.mix: joint"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _thinking_stays_whole(self) -> Config:
        if self.examples.thinking == "keep" and self.training.too_long == "truncate":
            raise ValueError(
                "training.too_long: truncate could cut through the thinking that "
                "examples.thinking: keep leaves in; set too_long: drop or thinking: strip"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _preferences_know_wrong_paths(self) -> Config:
        if self.training.objective != "sft" and self.examples.verdict == "unfiltered":
            raise ValueError(
                f"training.objective: {self.training.objective} learns from right and wrong paths, "
                "and examples.verdict: unfiltered calls none wrong; set objective: sft or another "
                "verdict"
            )
        return self


# --- the method --------------------------------------------------------------------------------


def improve(run: Run, stop: StopRequest, until: str | None) -> None:
    """All rounds of self-improvement; a finished step is skipped, an unfinished one goes on.

    The first step, the questions, stands already: `begin_run` makes it before there is a Ray.
    """
    if until == "questions":
        return
    propose_guidelines(run, stop)
    if until == "guidelines":
        return
    for this in run.rounds:
        for name, do in (
            ("paths", synthesize_paths),
            ("examples", choose_examples),
            ("model", tune_models),
            ("predictions", predict_answers),
            ("scores", score_models),
        ):
            do(run, this, stop)
            if stop.is_set():
                raise InterruptedRunError("stopped between two steps")
            if until in (f"{this.number}/{name}", name):
                return


def propose_guidelines(run: Run, stop: StopRequest) -> None:
    """Further guidelines by the base model, before round 0 and for all rounds, if asked for.

    On one engine, ahead of the others: paths are drawn over all guidelines, so none can begin.
    """
    step, expansion = run.guidelines_step, run.expansion
    if step is None or expansion is None or step.is_done:
        return
    prompts = write_prompts(expansion, step.folder)
    handler = ProposeGuideline(expansion.sampling, expansion.seed)
    job = Job("guidelines", step.folder, PROPOSALS_SCHEMA, handler, prompts)
    summary = run_pool(run, run.base, [job], stop, max_workers=1)
    rows = finish_job(job)
    facts = run_task(select_step_guidelines, step.folder, prompts, expansion.guidelines)
    reasons = ", ".join(f"{len(ids)} {reason}" for reason, ids in facts["dropped"].items())
    say(
        f"guidelines: kept {len(facts['kept'])} of {expansion.number} proposals, beside "
        f"{len(expansion.guidelines)}; dropped: {reasons or 'none'}"
    )
    step.commit(rows=rows, last_execution=summary.facts(), **facts)


def synthesize_paths(run: Run, this: Round, stop: StopRequest) -> None:
    """Guideline -> structure -> path for every training question; graded, nothing dropped.

    The base model's predictions are made on the same warm engines.
    """
    if this.paths.is_done:
        return
    jobs = [(this.paths, run.paths_job(this))]
    if this.number == 0 and not run.base_predictions.is_done:
        jobs.append((run.base_predictions, run.prediction_job(run.base_predictions)))
    generate(run, this.generator, jobs, stop)


def choose_examples(run: Run, this: Round, stop: StopRequest) -> None:
    """Correct paths only, at most k a question. Raises `NoExamplesError` when none is left."""
    if this.examples.is_done:
        return
    this.examples.clear()
    facts = run_task(
        select_step_examples,
        this.paths.folder,
        run.stored_questions("train"),
        run.stored_questions("dev", "test"),
        run.config.examples,
        this.start,
        run.config.evaluation.template_args,
        this.examples.folder,
    )
    reasons = ", ".join(f"{n} {reason}" for reason, n in facts["dropped"].items()) or "none"
    say(
        f"examples: kept {facts['num_kept_paths']} of {facts['num_paths']} paths "
        f"({facts['num_answers_added']} with the boxed answer added); dropped: {reasons}"
    )
    if facts["num_examples"] != facts["num_kept_paths"]:
        say(f"examples: {facts['num_examples']}, in other forms and original solutions, too")
    for line in format_overlaps(facts):
        say(line)
    if not facts["num_examples"]:
        raise NoExamplesError(
            f"no example is left to train on; of {facts['num_paths']} paths were dropped: "
            f"{reasons}; they are kept in {this.paths.folder.uri}"
        )
    this.examples.commit(**facts)


def tune_models(run: Run, this: Round, stop: StopRequest) -> None:
    """Fine-tune on the examples with Ray Train and DeepSpeed ZeRO: one model, or one a dataset."""
    missing = [branch for branch in this.branches if not branch.model.is_done]
    for branch in missing[1:]:  # refused now, not after the trainings before it
        run_task(survey, this.examples.folder, this.training, branch.dataset)
    if missing and this.start.folder:
        run_task(check_saved, this.start)
    for branch in missing:
        with stop.at_once():
            facts = fine_tune(
                this.start,
                this.examples.folder,
                branch.model.folder,
                this.training,
                dataset=branch.dataset,
                on_step=TrainingPrinter(branch.model.name, run.config.cluster.progress_every_s),
            )
        branch.model.commit(**facts)


def predict_answers(run: Run, this: Round, stop: StopRequest) -> None:
    """The tuned models' greedy answers, and the base model's where they are still missing."""
    of_branches = [(branch.tuned, branch.predictions) for branch in this.branches]
    for model, step in ((run.base, run.base_predictions), *of_branches):
        if not step.is_done:
            generate(run, model, [(step, run.prediction_job(step))], stop)


def score_models(run: Run, this: Round, stop: StopRequest) -> None:
    """Base and tuned side by side, in domain and out of domain."""
    for branch in this.branches:
        scores = run_task(
            score_predictions,
            run.stored_questions("dev", "test"),
            run.base_predictions.folder,
            branch.predictions.folder,
            branch.dataset,
        )
        table = format_scores(scores)
        if not branch.scores.is_done:
            branch.scores.folder.write_table("scores.parquet", scores_table(scores))
            branch.scores.folder.write_bytes("scores.md", f"{table}\n".encode())
            branch.scores.commit(made=["scores.parquet", "scores.md"])
        tuned = f"tuned on {branch.dataset}" if branch.dataset else "tuned"
        say(f"\nround {this.number}, base > {tuned}, in percent with 95 % intervals\n\n{table}\n")
    for name, reason in run.questions.broken.items():
        say(f"the dataset {name} was set aside: {reason}")


# --- the plan ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Branch:
    """What a round makes of its examples: a tuned model, its answers, their scores."""

    dataset: str | None
    """Whose examples are learnt; None is all."""
    tuned: Model
    model: Step
    predictions: Step
    scores: Step


@dataclass(frozen=True)
class Round:
    """One round: the models that it begins with, and its steps."""

    number: int
    recipe: Recipe
    generator: Model
    """Synthesises the paths."""
    start: Model
    """Is fine-tuned."""
    training: TrainingSettings
    paths: Step
    examples: Step
    branches: tuple[Branch, ...]
    """One, or with `training.mix: per_dataset` one for each dataset."""

    def steps(self) -> list[Step]:
        """All steps, in the order in which they are made."""
        of_branches = [
            getattr(branch, name) for name in ROUND_STEPS[2:] for branch in self.branches
        ]
        return [self.paths, self.examples, *of_branches]


@dataclass(frozen=True)
class Run:
    """All steps of a run, known before anything is made."""

    config: Config
    folder: Folder
    questions: QuestionFacts
    base: Model
    questions_step: Step
    expansion: Expansion | None
    guidelines_step: Step | None
    """None where no further guidelines are proposed."""
    base_predictions: Step
    rounds: tuple[Round, ...]

    def steps(self) -> list[Step]:
        """All steps, in the order in which they are made."""
        proposed = [self.guidelines_step] if self.guidelines_step else []
        of_rounds = [step for this in self.rounds for step in this.steps()]
        return [self.questions_step, *proposed, self.base_predictions, *of_rounds]

    def step_names(self) -> list[str]:
        """Their folders, relative to the run's."""
        return [step.folder.path.removeprefix(f"{self.folder.path}/") for step in self.steps()]

    def stored_questions(self, *splits: str) -> Questions:
        """The questions of some splits, as workers read them."""
        return Questions(self.questions_step.folder, splits)

    def recipe(self, this: Round) -> Recipe:
        """A round's recipe, with the proposed guidelines once they are there."""
        if self.guidelines_step is None or not self.guidelines_step.is_done:
            return this.recipe
        return replace(this.recipe, guidelines=read_step_guidelines(self.guidelines_step.folder))

    def paths_job(self, this: Round) -> Job:
        handler = SynthesizePaths(self.recipe(this), self.config.examples.read_last)
        shares = {
            name: Share(dataset.weight, dataset.max_generated_tokens, dataset.max_accepted_paths)
            for name, dataset in self.config.questions.datasets.items()
        }
        questions = self.stored_questions("train")
        bound = self.config.budget.generated_tokens
        return Job("paths", this.paths.folder, PATHS_SCHEMA, handler, questions, shares, bound)

    def prediction_job(self, step: Step) -> Job:
        handler = PredictAnswer(self.config.evaluation)
        questions = self.stored_questions("dev", "test")
        return Job("predictions", step.folder, PREDICTIONS_SCHEMA, handler, questions)


def check_run(config: Config) -> tuple[Folder, Model]:
    """The run's folder and the base model. Raises `InputError` for what is wrong without a look
    at the questions."""
    check_storage_root(config.storage.root)
    folder = Folder.open(config.storage.root).child(config.run)
    check_run_folder(folder, config.run)
    base = base_model(config.model, config.storage.cache)
    Recipe.load(0, config.synthesis)
    datasets = config.questions.datasets
    if not any(dataset.domain == "in_domain" for dataset in datasets.values()):
        raise InputError(NO_TRAINING)
    if config.synthesis.hint_stages and config.examples.verdict == "majority":
        raise InputError(
            "synthesis.hint_stages shows the ground truth, and examples.verdict majority is for "
            "runs that do not know it; set one of them otherwise"
        )
    for name, dataset in datasets.items():
        if not dataset.is_labelled and config.examples.verdict != "majority":
            raise InputError(
                f"questions.datasets.{name} has no answers (columns.answer is null); "
                "set examples.verdict=majority"
            )
    return folder, base


@contextmanager
def begin_run(config: Config, *, take_over: bool) -> Iterator[Run]:
    """Hold the run's folder and make its first step: train, dev and test, disjoint by text.

    Raises `InputError`, and leaves nothing, for a question that cannot be asked; `HeldError` when
    another command works on the run.
    """
    folder, base = check_run(config)
    every_s = config.cluster.progress_every_s
    with ExitStack() as stack:
        if check_run_folder(
            folder, config.run
        ):  # a new one is left alone till its questions are good
            folder = stack.enter_context(hold(folder, take_over=take_over))
        questions = run_apart(store_questions, config.questions, folder, config.run, every_s)
        say(format_counts(questions))
        if folder.claim is None:
            folder = stack.enter_context(hold(folder, take_over=take_over))
        run = plan_run(config, folder, base, questions)
        check_steps(run.steps(), contents=False)
        yield run


def begin_steps(run: Run) -> None:
    """Check what is finished, and write down which steps the config uses: its work begins.

    Raises `DamagedFileError`.
    """
    for note in check_steps(run.steps()):
        say(f"note: {note}")
    resolved = resolved_config(run.config)
    for name in (f"config-{fingerprint(resolved)}.yaml", CONFIG_FILE):
        run.folder.write_bytes(name, resolved.encode())
    run.folder.write_json(STEPS_FILE, run.step_names())


def resolved_config(config: Config) -> str:
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def plan_run(config: Config, folder: Folder, base: Model, questions: QuestionFacts) -> Run:
    """Lay out the steps. Raises `InputError` when there is nothing to train on."""
    if not questions.num_kept("train"):
        raise InputError(NO_TRAINING)
    expansion = Expansion.of(Recipe.load(0, config.synthesis))
    run = Run(
        config=config,
        folder=folder,
        questions=questions,
        base=base,
        questions_step=questions_step(folder, questions),
        expansion=expansion,
        guidelines_step=plan_guidelines(config, folder.child("base"), base, expansion),
        base_predictions=plan_predictions(config, folder.child("base"), base, questions),
        rounds=(),
    )
    rounds: list[Round] = []
    for number in range(config.rounds):
        # Several models go no further: `Config` refuses a second round with them.
        rounds.append(plan_round(run, number, rounds[-1].branches[0].tuned if rounds else base))
    return replace(run, rounds=tuple(rounds))


def plan_round(run: Run, number: int, generator: Model) -> Round:
    """The steps of one round; every step's folder follows from what it is made of."""
    config, folder = run.config, run.folder.child(f"round_{number}")
    recipe = Recipe.load(number, config.synthesis)
    limits = [
        (name, dataset.max_generated_tokens, dataset.max_accepted_paths)
        for name, dataset in sorted(config.questions.datasets.items())
        if dataset.max_generated_tokens or dataset.max_accepted_paths
    ]
    bound = config.budget.generated_tokens
    train = fingerprint(run.questions.extent("train"), limits, *([bound] if bound else []))
    content = paths_content(recipe, config.engine, generator.identity)
    if run.guidelines_step:
        content["expansion"] = run.guidelines_step.identity
    paths = Step.below(folder, "paths", content, train)
    start = run.base if config.training.start_from == "base" else generator
    examples = Step.below(
        folder,
        "examples",
        {
            "paths": paths.identity,
            "examples": content_of(config.examples),
            "template_args": config.evaluation.template_args,
            "grader": GRADER_VERSION,
            **held_out_content(run),
        },
    )
    datasets: Sequence[str | None] = [None]
    if config.training.mix == "per_dataset":
        datasets = sorted(run.questions.num_kept("train"))
    made_from = {"examples": examples.identity, "start": start.identity}
    training = config.training.of_round(number)
    branches = tuple(
        plan_branch(run, folder, made_from | {"training": content_of(training)}, name)
        for name in datasets
    )
    return Round(number, recipe, generator, start, training, paths, examples, branches)


def plan_branch(
    run: Run, parent: Folder, made_from: Mapping[str, Any], dataset: str | None
) -> Branch:
    """The steps of one tuned model; with a dataset, its name is in theirs."""
    config, suffix = run.config, f"-{dataset}" if dataset else ""
    model = Step.below(parent, f"model{suffix}", {**made_from, "dataset": dataset})
    tuned = tuned_model(model.folder, config.storage.cache)
    predictions = plan_predictions(config, parent, tuned, run.questions, suffix)
    compared = {
        "base": run.base_predictions.identity,
        "tuned": predictions.identity,
        "grader": GRADER_VERSION,
    }
    scores = Step.below(parent, f"scores{suffix}", compared)
    return Branch(dataset, tuned, model, predictions, scores)


def held_out_content(run: Run) -> dict[str, str]:
    """The held-out questions, where what is trained on hangs on them."""
    drops = run.config.examples.contamination.drop
    return {"held_out": run.questions.extent("dev", "test")} if drops else {}


def plan_guidelines(
    config: Config, parent: Folder, base: Model, expansion: Expansion | None
) -> Step | None:
    """The guidelines that the base model proposes; None where none are asked for."""
    if expansion is None:
        return None
    return Step.below(parent, "guidelines", expansion.content(config.engine, base.identity))


def plan_predictions(
    config: Config, parent: Folder, model: Model, questions: QuestionFacts, suffix: str = ""
) -> Step:
    """The predictions of one model on all held-out questions."""
    content = predictions_content(config.evaluation, config.engine, model.identity)
    return Step.below(parent, f"predictions{suffix}", content, questions.extent("dev", "test"))


def generate(run: Run, model: Model, jobs: Sequence[tuple[Step, Job]], stop: StopRequest) -> None:
    """Run jobs on one pool of engines that serve `model`, then finish their steps."""
    summary = run_pool(run, model, [job for _, job in jobs], stop)
    for step, job in jobs:
        step.commit(rows=finish_job(job), last_execution=summary.facts())


def run_pool(
    run: Run,
    model: Model,
    jobs: Sequence[Job],
    stop: StopRequest,
    *,
    limit: int | None = None,
    max_workers: int | None = None,
) -> PoolSummary:
    """Run jobs, or so many questions of each, on one pool of engines that serve `model`."""
    every_s = run.config.cluster.progress_every_s
    engine, planned = fit_engines(run.config.engine, model)
    if planned:
        say(planned)
    if max_workers is not None:
        fewer = {"min_workers": max_workers, "max_workers": max_workers}
        engine = engine.model_copy(update=fewer)
    return run_jobs(model, jobs, engine, stop=stop, progress_every_s=every_s, limit=limit)


# --- known before the run ----------------------------------------------------------------------


def estimate_run_from_probe(run: Run, stop: StopRequest) -> Estimate:
    """What the whole run will take, from its first questions; they are made now and kept."""
    this, config = run.rounds[0], run.config
    propose_guidelines(run, stop)
    held_out = run.stored_questions("dev", "test")
    speed = probe_speed(run, stop)
    return estimate_run(
        run_task(
            read_probed_paths,
            this.paths.folder,
            run.stored_questions("train"),
            config.examples,
            len(config.synthesis.chain),
        ),
        run_task(read_probed_predictions, run.base_predictions.folder, held_out),
        Workload(
            num_questions=run.questions.num_kept("train"),
            paths_per_question=run.paths_job(this).handler.width,
            max_per_question=config.examples.max_per_question,
            num_predictions=sum(run.questions.num_kept("dev", "test").values()),
            rounds=config.rounds,
            num_models_predicted=1 + sum(len(each.branches) for each in run.rounds),
            shares=run.paths_job(this).shares,
            max_tokens=config.budget.generated_tokens,
        ),
        speed,
        config.cost,
    )


def probe_speed(run: Run, stop: StopRequest) -> Speed:
    """Generate the first questions of the run, unless that was done, and say how fast it went."""
    this = run.rounds[0]
    known = this.paths.folder.read_json(PROBE_FILE)
    if not isinstance(known, dict):
        jobs = [run.paths_job(this), run.prediction_job(run.base_predictions)]
        summary = run_pool(run, this.generator, jobs, stop, limit=NUM_PROBED)
        if not summary.counts:
            raise InputError("nothing is left to generate in round 0, so nothing to estimate from")
        known = summary.facts()
        this.paths.folder.write_json(PROBE_FILE, known)
    engine, _ = fit_engines(run.config.engine, this.generator)
    return Speed(
        tokens_per_s=known["tokens_per_s"],
        num_workers_probed=int(known["num_workers"]),
        num_workers=num_workers(engine)[1],
        gpus_per_worker=engine.gpus_per_worker,
        start_s=known["wall_s"] - known["generating_s"],
    )


def keep_to_budget(run: Run, stop: StopRequest) -> None:
    """Raises `InputError` when the config has a budget and the run would exceed it."""
    budget = run.config.budget
    if not budget.can_refuse or run.rounds[0].paths.is_done:
        return
    estimate = estimate_run_from_probe(run, stop)
    for warning in check_budget(estimate, budget):
        say(f"budget: {warning}")


# --- what a person sees ------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, flush=True)


def say_warnings(config: Config) -> None:
    """What is allowed and slow."""
    stages = config.synthesis.stages
    if slow := slow_top_p((stages.adapt, stages.structure, stages.path), config.engine.use_gpu):
        say(f"warning: {slow}")


def format_counts(questions: QuestionFacts) -> str:
    """One line a dataset and split, and one for each dataset or row that was left out."""
    lines = [
        f"questions: {c['dataset']}/{c['split']} ({c['domain']}): {c['num_kept']} kept of "
        f"{c['num_read']} read, {c['num_dropped_duplicate']} duplicates and "
        f"{c['num_dropped_overlap']} overlaps dropped"
        for c in questions.counts
    ]
    for name, rows in questions.wrong_rows.items():
        lines += [f"questions: {name}: a row is LEFT OUT: {why}" for why in rows]
    lines += [f"questions: {name} is SET ASIDE: {why}" for name, why in questions.broken.items()]
    return "\n".join(lines)


class TrainingPrinter:
    """Prints the progress line of a training, at most every so many seconds, and its last step."""

    def __init__(self, name: str, every_s: float) -> None:
        self._name = name
        self._every_s = every_s
        self._last_s = -math.inf

    def __call__(self, facts: dict[str, float]) -> None:
        steps_left = facts["num_steps"] - facts["step"]
        now = time.monotonic()
        if now - self._last_s < self._every_s and steps_left:
            return
        self._last_s = now
        left = format_seconds(steps_left * facts["tokens"] / facts["tokens_per_s"])
        mfu = f"MFU {facts['mfu']:.0%} | " if "mfu" in facts else ""
        margin = f"margin {facts['reward_margin']:.3f} | " if "reward_margin" in facts else ""
        say(
            f"{self._name}: step {facts['step']:.0f}/{facts['num_steps']:.0f} | "
            f"loss {facts['loss']:.4f} | {margin}lr {facts['learning_rate']:.2e} | "
            f"grad norm {facts['grad_norm']:.2f} | {facts['tokens_per_s']:.0f} tok/s | {mfu}"
            f"{left} left"
        )


def describe_plan(run: Run, questions: QuestionSet) -> str:
    """The steps that would run, and how many generations that is at most."""
    lines = [f"run folder: {run.folder.uri}"]
    lines.append(step_line("", run.questions_step, 0))
    if run.guidelines_step and run.expansion:
        missing = 0 if run.guidelines_step.is_done else run.expansion.number
        lines.append(step_line("base", run.guidelines_step, missing))
    lines.append(
        step_line("base", run.base_predictions, num_predictions(run.base_predictions, questions))
    )
    for this in run.rounds:
        generations = {this.paths.name: num_path_generations(run, this, questions)} | {
            branch.predictions.name: num_predictions(branch.predictions, questions)
            for branch in this.branches
        }
        for step in this.steps():
            lines.append(step_line(f"round_{this.number}", step, generations.get(step.name, 0)))
    if bound := run.config.budget.generated_tokens:
        lines.append(f"  the paths of a round end at about {bound} generated tokens")
    return "\n".join(lines)


def step_line(parent: str, step: Step, num_generations: int) -> str:
    state = "skip, finished" if step.is_done else "run"
    where = f"{parent}/{step.folder.name}" if parent else step.folder.name
    to_do = num_generations and not step.is_done
    generations = f", at most {num_generations} generations" if to_do else ""
    return f"  {where}: {state}{generations}"


def num_missing(step: Step, questions: QuestionSet, *splits: Split) -> int:
    """How many questions of some splits have no row in a step's ledger."""
    return int(Ledger.read(step.folder).missing(questions.split(*splits)).num_rows)


def num_path_generations(run: Run, this: Round, questions: QuestionSet) -> int:
    """At most so many for what is missing of a round's paths: all proposed guidelines kept, every
    path judged, every question asked again with hints."""
    made = run.guidelines_step is None or run.guidelines_step.is_done
    recipe = run.recipe(this) if made else with_room(this.recipe)
    chains = SynthesizePaths(recipe, run.config.examples.read_last).width
    settings = recipe.settings
    a_chain = len(settings.chain) + (settings.judge != "none")
    passes = 2 if settings.hint_stages else 1
    return num_missing(this.paths, questions, "train") * passes * chains * a_chain


def num_predictions(step: Step, questions: QuestionSet) -> int:
    return num_missing(step, questions, "dev", "test")


# --- the command line --------------------------------------------------------------------------


def run_command(arguments: argparse.Namespace) -> int:
    """`regenesis.py run CONFIG`."""
    check_until(arguments.until)
    config = load_settings(Config, arguments.config, arguments.set, with_strategy)
    if arguments.dry_run:
        say(f"{resolved_config(config)}\n{dry_run(config)}")
        return 0
    say_warnings(config)
    with begin_run(config, take_over=arguments.take_over) as run:
        with ray_session(config.cluster) as stop:
            say(f"logs: {log_folder()}")
            begin_steps(run)
            keep_to_budget(run, stop)
            improve(run, stop, arguments.until)
        say(f"run folder: {run.folder.uri}")
    return 0


def dry_run(config: Config) -> str:
    """The plan, from questions that are only looked at: nothing is written."""
    folder, base = check_run(config)
    questions = load_questions(config.questions)
    run = plan_run(config, folder, base, questions.facts())
    check_steps(run.steps(), contents=False)
    return f"{format_counts(run.questions)}\n{describe_plan(run, questions)}"


def plan_command(arguments: argparse.Namespace) -> int:
    """`regenesis.py plan CONFIG`."""
    config = load_settings(Config, arguments.config, arguments.set, with_strategy)
    with (
        begin_run(config, take_over=arguments.take_over) as run,
        ray_session(config.cluster) as stop,
    ):
        begin_steps(run)
        estimate = estimate_run_from_probe(run, stop)
    say(format_estimate(estimate))
    for warning in check_budget(estimate, config.budget):
        say(f"budget: {warning}")
    return 0


def select_command(arguments: argparse.Namespace) -> int:
    """`regenesis.py select RUN`."""
    stored = StoredRun.read(arguments.run)
    config = settings_of(Config, with_overrides(stored.config, arguments.set), arguments.run)
    questions = stored.step("questions")
    with ray_session(config.cluster):
        of_rounds = [Step("paths", paths, {}) for _, paths in stored.rounds_with_paths()]
        check_steps([Step("questions", questions, {}), *of_rounds])
        for number, paths in stored.rounds_with_paths():
            facts = run_task(
                select_step_examples,
                paths,
                Questions(questions, ("train",)),
                Questions(questions, ("dev", "test")),
                config.examples,
                base_model(config.model, config.storage.cache),
                config.evaluation.template_args,
                None,
            )
            say(f"\nround {number}\n\n{format_selection(facts)}")
    return 0


def clean_command(arguments: argparse.Namespace) -> int:
    """`regenesis.py clean RUN`."""
    run = Folder.open(arguments.run)
    check_is_run(run)
    holding = nullcontext(run) if arguments.dry_run else hold(run, take_over=arguments.take_over)
    with holding as run:
        leftovers = find_leftovers(run, superseded=arguments.superseded)
        say(format_leftovers(leftovers))
        if leftovers and not arguments.dry_run and (arguments.yes or ask_to_delete(leftovers)):
            remove_leftovers(leftovers)
    return 0


def tasks_command(arguments: argparse.Namespace) -> int:
    """`regenesis.py tasks [NAME]`."""
    if arguments.name is None:
        say(format_tasks())
    else:
        say(format_task(arguments.name, arguments.path, tuple(arguments.splits or ())))
    return 0


def grade_command(arguments: argparse.Namespace) -> int:
    """`regenesis.py grade FILE`."""
    verdicts = grade_file(Path(arguments.file), sys.stdout)
    print(format_verdicts(verdicts), file=sys.stderr)
    return 0


def check_until(until: str | None) -> None:
    """Raises `InputError` for what is not a step."""
    number, _, step = (until or "").rpartition("/")
    of_round = number.isdigit() and step in ROUND_STEPS
    if until is not None and until not in STEPS and not of_round:
        raise InputError(
            f"--until {until}: expected a step, or a round and a step as in 1/paths; "
            f"the steps are {', '.join(STEPS)}"
        )


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="regenesis.py", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run_parser = commands.add_parser("run", help="run, or go on with, a self-improvement run")
    plan_parser = commands.add_parser(
        "plan", help="generate the first 20 questions and say what the whole run will take"
    )
    select_parser = commands.add_parser(
        "select", help="count what other filters would keep of a run's paths; changes nothing"
    )
    select_parser.add_argument("run", help="the folder of the run, or its URI")
    run_parser.add_argument("config", help="a YAML file, see configs/")
    plan_parser.add_argument("config", help="a YAML file, see configs/")
    for with_config in (run_parser, plan_parser, select_parser):
        with_config.add_argument(
            "--set", action="append", default=[], metavar="a.b=value", help="override one setting"
        )
    run_parser.add_argument(
        "--until", metavar="[ROUND/]STEP", help=f"stop after a step: {', '.join(STEPS)}"
    )
    run_parser.add_argument(
        "--dry-run", action="store_true", help="print the config and the steps, start nothing"
    )
    clean_parser = commands.add_parser("clean", help="remove what a run no longer needs")
    clean_parser.add_argument("run", help="the folder of the run, or its URI")
    clean_parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    clean_parser.add_argument("--yes", action="store_true", help="delete without asking")
    for holds in (run_parser, plan_parser, clean_parser):
        holds.add_argument(
            "--take-over", action="store_true", help="take the run from a command that holds it"
        )
    clean_parser.add_argument(
        "--superseded",
        action="store_true",
        help="also remove the steps that the config which was run last does not use",
    )
    tasks_parser = commands.add_parser(
        "tasks",
        help="list the known benchmarks, or show three questions of one as a model sees them",
    )
    tasks_parser.add_argument("name", nargs="?", help="a task, or reasoning_gym:FAMILY")
    tasks_parser.add_argument("--path", help="a folder or file of it; default: the hub")
    tasks_parser.add_argument("--splits", nargs="+", choices=SPLITS, help="default: its own")
    grade_parser = commands.add_parser(
        "grade", help="grade a JSONL file of responses; docs/GRADING.md says how"
    )
    grade_parser.add_argument(
        "file", help="rows with response, answer, answer_type and, for a choice, choices"
    )
    plan_parser.set_defaults(do=plan_command)
    tasks_parser.set_defaults(do=tasks_command)
    select_parser.set_defaults(do=select_command)
    grade_parser.set_defaults(do=grade_command)
    clean_parser.set_defaults(do=clean_command)
    run_parser.set_defaults(do=run_command)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    arguments = parse_arguments(argv)
    try:
        code = int(arguments.do(arguments))
        sys.stdout.flush()  # here, where a reader that has gone is met
        return code
    except BrokenPipeError:
        if not is_unread(sys.stdout.fileno()):
            raise
        # What is left unwritten would be tried once more, and complained about, at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (
        InputError,
        NoExamplesError,
        GenerationStoppedError,
        InterruptedRunError,
        StorageError,
    ) as error:
        print(f"regenesis: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("regenesis: interrupted", file=sys.stderr)
        return InterruptedRunError.exit_code


def is_unread(descriptor: int) -> bool:
    """Whether a file is a pipe whose reader has gone, as `head` does when it has seen enough."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
