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
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import pyarrow as pa
import yaml
from pydantic import Field

from cluster.chat import load_tokenizer
from cluster.engine import EngineSettings
from cluster.errors import InputError, InterruptedRunError, NoExamplesError
from cluster.ledger import Ledger
from cluster.models import Model, ModelSettings, base_model, tuned_model
from cluster.pool import Job, run_jobs
from cluster.progress import format_seconds
from cluster.runtime import (
    ClusterSettings,
    StopRequest,
    StorageSettings,
    check_storage_root,
    log_folder,
    ray_session,
)
from cluster.settings import EXTENT, OPERATIONAL, Settings, content_of, fingerprint, load_settings
from cluster.steps import Step, check_run_folder, claim_run_folder
from cluster.storage import Folder
from evaluation.grader import GRADER_VERSION
from evaluation.predictions import (
    PREDICTIONS_SCHEMA,
    EvaluationSettings,
    PredictAnswer,
    predictions_content,
    regrade,
)
from evaluation.question import QUESTION_SCHEMA, Question
from evaluation.scores import compare_scores, format_scores, scores_table
from pipelines.chain import Recipe, SynthesisSettings
from pipelines.examples import ExampleSelector, ExampleSettings, select_examples, write_selection
from pipelines.questions import QuestionSet, QuestionSettings, load_questions
from pipelines.synthesis import PATHS_SCHEMA, SynthesizePaths, paths_content
from training.fine_tune import fine_tune
from training.settings import TrainingSettings

STEPS = ("questions", "paths", "examples", "model", "predictions", "scores")


class Config(Settings):
    """The whole config tree; each folder owns its branch."""

    run: Annotated[str, OPERATIONAL, Field(pattern=r"^[A-Za-z0-9._-]+$")]
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


# --- the method --------------------------------------------------------------------------------


def improve(run: Run, stop: StopRequest, until: str | None) -> None:
    """All rounds of self-improvement; a finished step is skipped, an unfinished one goes on."""
    save_questions(run)
    if until == "questions":
        return
    for this in run.rounds:
        for name, do in (
            ("paths", synthesize_paths),
            ("examples", choose_examples),
            ("model", tune_model),
            ("predictions", predict_answers),
            ("scores", score_models),
        ):
            do(run, this, stop)
            if stop.is_set():
                raise InterruptedRunError("stopped between two steps")
            if until in (f"{this.number}/{name}", name):
                return


def save_questions(run: Run) -> None:
    """Train, dev and test, disjoint by text; loading them was the check that they can be asked."""
    say(format_counts(run.questions))
    if not run.questions_step.is_done:
        run.questions_step.folder.write_table(
            "questions.parquet", run.table("train", "dev", "test")
        )
        run.questions_step.commit(
            num_questions=len(run.questions.questions), counts=run.questions.counts
        )


def synthesize_paths(run: Run, this: Round, stop: StopRequest) -> None:
    """Guideline -> structure -> path for every training question; graded, nothing dropped.

    The base model's predictions are made on the same warm engines.
    """
    jobs = []
    if not this.paths.is_done:
        handler = SynthesizePaths(this.recipe, run.config.examples.read_last)
        jobs.append(Job("paths", this.paths.folder, PATHS_SCHEMA, handler, run.table("train")))
        if this.number == 0 and not run.base_predictions.is_done:
            jobs.append(run.prediction_job(run.base_predictions))
    generate(run, this.generator, jobs, stop)
    if not this.paths.is_done:
        this.paths.commit(num_questions=run.table("train").num_rows)
    if jobs[1:]:
        run.base_predictions.commit()


def choose_examples(run: Run, this: Round, stop: StopRequest) -> None:
    """Correct paths only, at most k a question. Raises `NoExamplesError` when none is left."""
    if this.examples.is_done:
        return
    train = {q.question_id: q for q in run.questions.questions if q.split == "train"}
    wanted = {question_id: question.fingerprint for question_id, question in train.items()}
    tokenizer = load_tokenizer(this.start.fetch())
    selector = ExampleSelector(run.config.examples, tokenizer, run.config.evaluation.template_args)
    rows = Ledger.read(this.paths.folder).rows(wanted)
    selection = select_examples(rows, train.__getitem__, selector)
    facts = {
        "num_paths": selection.num_paths,
        "num_examples": len(selection.examples),
        "num_answers_added": selection.num_answers_added,
        "dropped": selection.reasons(),
    }
    say(
        f"examples: kept {len(selection.examples)} of {selection.num_paths} paths "
        f"({selection.num_answers_added} with the boxed answer added); dropped: "
        + (", ".join(f"{n} {reason}" for reason, n in selection.reasons().items()) or "none")
    )
    write_selection(selection, this.examples.folder)
    if not selection.examples:
        raise NoExamplesError(
            f"no example is left to train on; of {selection.num_paths} paths "
            + ", ".join(f"{n} were {reason}" for reason, n in selection.reasons().items())
            + f"; they are kept in {this.paths.folder.uri}"
        )
    this.examples.commit(**facts)


def tune_model(run: Run, this: Round, stop: StopRequest) -> None:
    """Fine-tune on the examples with Ray Train and DeepSpeed ZeRO."""
    if this.model.is_done:
        return
    with stop.at_once():
        facts = fine_tune(
            this.start,
            this.examples.folder,
            this.model.folder,
            run.config.training,
            on_step=TrainingPrinter(run.config.cluster.progress_every_s),
        )
    this.model.commit(**facts)


def predict_answers(run: Run, this: Round, stop: StopRequest) -> None:
    """The tuned model's greedy answers, and the base model's where they are still missing."""
    for model, step in ((run.base, run.base_predictions), (this.tuned, this.predictions)):
        if not step.is_done:
            generate(run, model, [run.prediction_job(step)], stop)
            step.commit()


def score_models(run: Run, this: Round, stop: StopRequest) -> None:
    """Base and tuned side by side, in domain and out of domain."""
    held_out = {q.question_id: q for q in run.questions.questions if q.split != "train"}
    wanted = {question_id: question.fingerprint for question_id, question in held_out.items()}
    base, tuned = (
        {
            row["question_id"]: regrade(row, held_out[row["question_id"]])
            for row in Ledger.read(step.folder).rows(wanted)
        }
        for step in (run.base_predictions, this.predictions)
    )
    scores = compare_scores(list(held_out.values()), base, tuned)
    table = format_scores(scores)
    if not this.scores.is_done:
        this.scores.folder.write_table("scores.parquet", scores_table(scores))
        this.scores.folder.write_bytes("scores.md", f"{table}\n".encode())
        this.scores.commit()
    say(f"\nround {this.number}, base > tuned, in percent with 95 % intervals\n\n{table}\n")


# --- the plan ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """One round: the models that it begins with, and its steps."""

    number: int
    recipe: Recipe
    generator: Model
    """Synthesises the paths."""
    start: Model
    """Is fine-tuned."""
    tuned: Model
    paths: Step
    examples: Step
    model: Step
    predictions: Step
    scores: Step


@dataclass(frozen=True)
class Run:
    """All steps of a run, known before anything is made."""

    config: Config
    folder: Folder
    questions: QuestionSet
    base: Model
    questions_step: Step
    base_predictions: Step
    rounds: tuple[Round, ...]

    def table(self, *splits: str) -> pa.Table:
        """The questions of some splits, with their fingerprints."""
        return question_table([q for q in self.questions.questions if q.split in splits])

    def prediction_job(self, step: Step) -> Job:
        handler = PredictAnswer(self.config.evaluation)
        return Job(
            "predictions", step.folder, PREDICTIONS_SCHEMA, handler, self.table("dev", "test")
        )


def plan_run(config: Config) -> Run:
    """Load the questions, check the model, and lay out the steps. Raises `InputError`."""
    check_storage_root(config.storage.root)
    folder = Folder.open(config.storage.root).child(config.run)
    check_run_folder(folder, config.run)
    base = base_model(config.model, config.storage.cache)
    questions = load_questions(config.questions)
    if not any(question.split == "train" for question in questions.questions):
        raise InputError("questions.datasets: no question to train on; one has to be in_domain")
    everything = [(q.question_id, q.fingerprint) for q in questions.questions]
    content = {"questions": fingerprint(everything)}
    run = Run(
        config=config,
        folder=folder,
        questions=questions,
        base=base,
        questions_step=Step.below(folder, "questions", content),
        base_predictions=plan_predictions(config, folder.child("base"), base, questions),
        rounds=(),
    )
    rounds: list[Round] = []
    for number in range(config.rounds):
        rounds.append(plan_round(run, number, rounds[-1].tuned if rounds else base))
    return replace(run, rounds=tuple(rounds))


def plan_round(run: Run, number: int, generator: Model) -> Round:
    """The steps of one round; every step's folder follows from what it is made of."""
    config, folder = run.config, run.folder.child(f"round_{number}")
    recipe = Recipe.load(number, config.synthesis)
    train = extent_of(run.questions, "train")
    content = paths_content(recipe, config.engine, generator.identity)
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
        },
    )
    model = Step.below(
        folder,
        "model",
        {
            "examples": examples.identity,
            "start": start.identity,
            "training": content_of(config.training),
        },
    )
    tuned = tuned_model(model.folder, config.storage.cache)
    predictions = plan_predictions(config, folder, tuned, run.questions)
    compared = {
        "base": run.base_predictions.identity,
        "tuned": predictions.identity,
        "grader": GRADER_VERSION,
    }
    scores = Step.below(folder, "scores", compared)
    return Round(
        number, recipe, generator, start, tuned, paths, examples, model, predictions, scores
    )


def plan_predictions(config: Config, parent: Folder, model: Model, questions: QuestionSet) -> Step:
    """The predictions of one model on all held-out questions."""
    content = predictions_content(config.evaluation, config.engine, model.identity)
    return Step.below(parent, "predictions", content, extent_of(questions, "dev", "test"))


def extent_of(questions: QuestionSet, *splits: str) -> str:
    """What a step over these splits has to cover."""
    return fingerprint(
        sorted((q.question_id, q.fingerprint) for q in questions.questions if q.split in splits)
    )


def question_table(questions: Sequence[Question]) -> pa.Table:
    """Questions as Arrow rows, with the fingerprint that ties results to their text."""
    table = pa.Table.from_pylist([q.to_row() for q in questions], schema=QUESTION_SCHEMA)
    fingerprints = pa.array([q.fingerprint for q in questions], pa.string())
    return table.append_column("question_fingerprint", fingerprints)


def generate(run: Run, model: Model, jobs: Sequence[Job], stop: StopRequest) -> None:
    """Run jobs on one pool of engines that serve `model`."""
    config = run.config
    run_jobs(
        model, jobs, config.engine, stop=stop, progress_every_s=config.cluster.progress_every_s
    )


# --- what a person sees ------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, flush=True)


def format_counts(questions: QuestionSet) -> str:
    """One line a dataset and split."""
    return "\n".join(
        f"questions: {c['dataset']}/{c['split']} ({c['domain']}): {c['num_kept']} kept of "
        f"{c['num_read']} read, {c['num_dropped_duplicate']} duplicates and "
        f"{c['num_dropped_overlap']} overlaps dropped"
        for c in questions.counts
    )


class TrainingPrinter:
    """Prints the progress line of a training, at most every so many seconds, and its last step."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._last_s = -math.inf

    def __call__(self, facts: dict[str, float]) -> None:
        steps_left = facts["num_steps"] - facts["step"]
        now = time.monotonic()
        if now - self._last_s < self._every_s and steps_left:
            return
        self._last_s = now
        left = format_seconds(steps_left * facts["tokens"] / facts["tokens_per_s"])
        say(
            f"model: step {facts['step']:.0f}/{facts['num_steps']:.0f} | "
            f"loss {facts['loss']:.4f} | lr {facts['learning_rate']:.2e} | "
            f"grad norm {facts['grad_norm']:.2f} | {facts['tokens_per_s']:.0f} tok/s | {left} left"
        )


def describe_plan(run: Run) -> str:
    """The steps that would run, and how many generations that is."""
    lines = [f"run folder: {run.folder.uri}"]
    lines.append(step_line("", run.questions_step, 0))
    lines.append(step_line("base", run.base_predictions, num_missing(run, run.base_predictions)))
    for this in run.rounds:
        chains = sum(len(this.recipe.tasks(q)) for q in missing_questions(run, this.paths, "train"))
        generations = {"paths": 3 * chains, "predictions": num_missing(run, this.predictions)}
        for name in STEPS[1:]:
            lines.append(
                step_line(f"round_{this.number}", getattr(this, name), generations.get(name, 0))
            )
    return "\n".join(lines)


def step_line(parent: str, step: Step, num_generations: int) -> str:
    state = "skip, finished" if step.is_done else "run"
    where = f"{parent}/{step.folder.name}" if parent else step.folder.name
    generations = f", {num_generations} generations" if num_generations else ""
    return f"  {where}: {state}{generations}"


def missing_questions(run: Run, step: Step, *splits: str) -> list[Question]:
    """The questions of some splits without a row in a step's ledger."""
    asked = {q.question_id: q for q in run.questions.questions if q.split in splits}
    wanted = {question_id: q.fingerprint for question_id, q in asked.items()}
    return [asked[question_id] for question_id in Ledger.read(step.folder).missing(wanted)]


def num_missing(run: Run, step: Step) -> int:
    return len(missing_questions(run, step, "dev", "test"))


# --- the command line --------------------------------------------------------------------------


def run_command(arguments: argparse.Namespace) -> int:
    """`regenesis.py run CONFIG`."""
    check_until(arguments.until)
    config = load_settings(Config, arguments.config, arguments.set)
    run = plan_run(config)
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    if arguments.dry_run:
        say(f"{resolved}\n{describe_plan(run)}")
        return 0
    claim_run_folder(run.folder, config.run)
    run.folder.write_bytes(f"config-{fingerprint(resolved)}.yaml", resolved.encode())
    with ray_session(config.cluster) as stop:
        say(f"logs: {log_folder()}")
        improve(run, stop, arguments.until)
    say(f"run folder: {run.folder.uri}")
    return 0


def check_until(until: str | None) -> None:
    """Raises `InputError` for what is not a step."""
    number, _, step = (until or "").rpartition("/")
    if until is not None and (step not in STEPS or not (number.isdigit() or until == step)):
        raise InputError(
            f"--until {until}: expected a step, or a round and a step as in 1/paths; "
            f"the steps are {', '.join(STEPS)}"
        )


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="regenesis.py", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run_parser = commands.add_parser("run", help="run, or go on with, a self-improvement run")
    run_parser.add_argument("config", help="a YAML file, see configs/")
    run_parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=value", help="override one setting"
    )
    run_parser.add_argument(
        "--until", metavar="[ROUND/]STEP", help=f"stop after a step: {', '.join(STEPS)}"
    )
    run_parser.add_argument(
        "--dry-run", action="store_true", help="print the config and the steps, start nothing"
    )
    run_parser.set_defaults(do=run_command)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    arguments = parse_arguments(argv)
    try:
        return int(arguments.do(arguments))
    except (InputError, NoExamplesError, InterruptedRunError) as error:
        print(f"regenesis: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("regenesis: interrupted", file=sys.stderr)
        return InterruptedRunError.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
