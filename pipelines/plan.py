"""Lay out a run: ask each step what its folder is named after, without making any step.

Rounds are laid out one after the other. If a caller makes each round before it asks for the next,
the next round may depend on the results of the previous one. A caller that makes nothing gets all
rounds as far as they are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from cluster.errors import DamagedFileError, InputError
from cluster.events import KeptLog, timed
from cluster.inference.engine import check_engine_continues, check_engine_options
from cluster.models.hub import check_hub_model
from cluster.models.model import Model, base_model, is_hub_name, tuned_model
from cluster.session import check_storage_root
from cluster.store.folder import Folder
from cluster.store.holder import hold
from cluster.store.ledger import is_ledger_file
from cluster.store.network import FIRST_ANSWER_S
from cluster.store.step import Step, check_run_folder, check_steps, write_steps
from cluster.terminal import say
from evaluation.prompt import PromptName
from pipelines.config import NO_DEV, NO_TRAINING, Config, warnings_of
from pipelines.planning.preflight import check_config
from pipelines.questions.loading import QuestionFacts
from pipelines.report.write import write_own_report
from pipelines.rounds.gate import check_gate
from pipelines.run import Branch, Round, Run
from pipelines.steps import (
    decision,
    examples,
    guidelines,
    model,
    paths,
    predictions,
    questions,
    scores,
)
from pipelines.stored_run import record_config
from pipelines.synthesis.chain import Recipe
from pipelines.synthesis.propose_guidelines import Expansion
from pipelines.template_facts import keep_template_facts, template_facts
from pipelines.tracked_run import tracked_run


def check_run(config: Config, until: str | None = None) -> tuple[Folder, Model]:
    """Return the run's folder and the base model; `until` is the last step that will be made.

    Raises `InputError` for problems with either of them, the engines, the guidelines or the
    prompts. It does not look at the questions.
    """
    check_storage_root(config.storage.root)
    _check_engines(config, until)
    folder = Folder.open(config.storage.root, config.storage.outage_s).child(config.run)
    # Nothing is lost yet: an address that is wrong should not be waited for.
    check_run_folder(folder.waiting(min(folder.outage_s, FIRST_ANSWER_S)), config.run)
    base = base_model(config.model, config.storage.cache)
    check_config(config, Recipe.load(0, config.synthesis), until)
    return folder, base


def _check_engines(config: Config, until: str | None) -> None:
    """Raise `InputError` for an engine that cannot do what the run will need."""
    check_engine_options(config.engine, needs_weight_proof=serves_tuned_model(until))
    if config.evaluation.readings:
        check_engine_continues(config.engine, "evaluation.readings: true")
    engine = config.synthesis.engine
    if engine is not None:
        # From the second round on, the paths come from a tuned model if this engine runs it.
        check_engine_options(engine, engine.needs_model and config.rounds > 1)


def serves_tuned_model(until: str | None) -> bool:
    """Whether a run that ends with this step (None means the last one) generates with a model that
    it trained."""
    number, _, step = (until or "").rpartition("/")
    return until is None or step in ("predictions", "scores") or number not in ("", "0")


@contextmanager
def begin_run(
    config: Config, log: KeptLog, until: str | None = None, *, take_over: bool = False
) -> Iterator[Run]:
    """Hold the run's folder, keep the log in it, and make its first step, the questions.

    Raises `InputError` for an invalid question, in which case nothing is left behind; `HeldError`
    when another command works on the run; `DamagedFileError` when a file of a finished step is
    missing.
    """
    for warning in warnings_of(config):
        say(f"warning: {warning}")
    folder, base = check_run(config, until)
    if is_hub_name(base.path):
        check_hub_model(base.path)
    with ExitStack() as stack:
        # A new folder is not touched until its questions turn out to be valid.
        if check_run_folder(folder, config.run):
            folder = stack.enter_context(hold(folder, take_over=take_over))
            log.keep_in(folder)
        with timed("step", step="questions"):
            facts = questions.make(config, folder)
        if missing := nothing_to_report(config, facts):
            say(f"warning: {missing}")
        if folder.claim is None:
            folder = stack.enter_context(hold(folder, take_over=take_over))
            log.keep_in(folder)
        keep_template_facts(folder, base)
        run = plan_run(config, folder, base, facts)
        check_layout(run)
        stack.enter_context(tracked_run(run.folder, run.config.training.tracking))
        yield run


def check_layout(run: Run) -> None:
    """Compare names and sizes of the files of all finished steps, and refuse a run whose model is
    gone. Raises `DamagedFileError`."""
    check_steps(all_steps(run), contents=False)
    rounds = list(lay_out_rounds(run))
    for round_ in rounds:
        for branch in round_.branches:
            made = [branch.predictions, *(r.paths for r in rounds if r.generator == branch.tuned)]
            refuse_lost_model(branch.model, made)


def refuse_lost_model(model: Step, made: list[Step]) -> None:
    """Refuse to train a model again from which rows exist: they would count as the new one's."""
    answered = [step for step in made if any(map(is_ledger_file, step.folder.walk()))]
    if answered and not model.is_done:
        raise DamagedFileError(
            f"the model {model.folder.uri} is not finished or is gone, but "
            f"{answered[0].folder.uri} was made with it; restore the model, or delete that folder "
            "and the later ones to train the model and make them again"
        )


def begin_steps(run: Run) -> None:
    """Check the contents of the finished steps, and record the config and its steps as those of the
    last run, before the work begins.

    Nothing may refuse the run after this, because `clean --superseded` deletes what the last run
    does not use. Raises `DamagedFileError`. Needs Ray if there is much to read.
    """
    for note in check_steps(all_steps(run)):
        say(f"note: {note}")
    record_config(run.config, run.folder)
    record_steps(run)


def end_run(run: Run, until: str | None) -> None:
    """Say where the run is; after its last step also write its report."""
    say(f"run folder: {run.folder.uri}")
    if until is None:
        write_own_report(run.folder)


def plan_run(config: Config, folder: Folder, base: Model, facts: QuestionFacts) -> Run:
    """Lay out what all rounds share. Raises `InputError` when there is nothing to train on."""
    if not facts.num_kept("train"):
        raise InputError(NO_TRAINING)
    check_gate(config.after_round, facts)
    _refuse_lone_questions(config, facts)
    template = template_facts(folder, base)
    config, base = template.dated(config), template.named(base)
    expansion = Expansion.of(Recipe.load(0, config.synthesis))
    below = folder.child("base")
    proposed = guidelines.content(expansion, config.engine, base) if expansion else None
    return Run(
        config=config,
        folder=folder,
        questions=facts,
        base=base,
        questions_step=questions.step_of(folder, facts),
        expansion=expansion,
        guidelines_step=Step.below(below, "guidelines", proposed) if proposed else None,
        base_predictions=_plan_predictions(config, facts, below, base),
        base_prompted=_plan_prompts(config, folder, facts, base),
    )


def _plan_prompts(
    config: Config, folder: Folder, facts: QuestionFacts, base: Model
) -> dict[PromptName, Step]:
    """The steps with the base's answers to further prompts, each in a folder such as `base_bare`.

    Raises `InputError` where no dev question could choose between them.
    """
    if config.further_prompts and not choosing_datasets(config, facts):
        raise InputError(
            "base_prompts: the best prompt is chosen on dev questions in domain that are not the "
            "gate's, and there are none; set num_dev of a dataset, or leave base_prompts out"
        )
    return {
        prompt: _plan_predictions(_asking_with(config, prompt), facts, below, base)
        for prompt in config.further_prompts
        for below in [folder.child(f"base_{prompt}")]
    }


def choosing_datasets(config: Config, facts: QuestionFacts) -> set[str]:
    """The datasets in domain whose dev questions choose the base's prompt."""
    dev, gate = facts.num_kept("dev"), config.after_round.gate_tasks
    in_domain = {c["dataset"] for c in facts.counts if c["domain"] == "in_domain"}
    return {name for name in in_domain if dev.get(name)} - set(gate)


def _asking_with(config: Config, prompt: PromptName) -> Config:
    evaluation = config.evaluation.model_copy(update={"prompt": prompt})
    return config.model_copy(update={"evaluation": evaluation})


def nothing_to_report(config: Config, facts: QuestionFacts) -> str | None:
    """A warning where the run asks for dev and there is none; asking test later costs no more."""
    return NO_DEV if config.report_on == "dev" and not facts.num_kept("dev") else None


def _refuse_lone_questions(config: Config, facts: QuestionFacts) -> None:
    """Refuse to swap adaptations between questions where a dataset has only one."""
    lone = [name for name, number in facts.num_kept("train").items() if number == 1]
    if lone and config.synthesis.swap_adaptations == "questions":
        raise InputError(
            f"synthesis.swap_adaptations: questions, but questions.datasets.{lone[0]} has one "
            "training question, so there is no other to swap with; add questions or remove it"
        )


def lay_out_rounds(run: Run) -> Iterator[Round]:
    """The rounds, each of which is laid out when it is asked for."""
    generator, previous = run.base, None
    for number in range(run.config.rounds):
        round_ = previous = plan_round(run, number, generator, previous)
        yield round_
        if decision.reason_to_stop(round_):
            return
        generator = next_generator(round_)


def first_round(run: Run) -> Round:
    """The round that begins with the base model."""
    return plan_round(run, 0, run.base)


def next_generator(round_: Round) -> Model:
    """The model with which the next round begins, if the round is decided as far as it is known.
    `Config` then requires a single branch."""
    return decision.next_generator(round_)


def all_steps(run: Run) -> list[Step]:
    """The steps of all rounds, in the order in which they are made."""
    return [*run.steps(), *(step for round_ in lay_out_rounds(run) for step in round_.steps())]


def step_names(run: Run) -> list[str]:
    """The folders of all steps, relative to the run's folder."""
    return [step.folder.path.removeprefix(f"{run.folder.path}/") for step in all_steps(run)]


def record_steps(run: Run) -> None:
    """Record which step folders the run uses, as far as they are known now."""
    write_steps(run.folder, step_names(run))


def plan_round(run: Run, number: int, generator: Model, previous: Round | None = None) -> Round:
    """The steps of one round; each folder is named after what the step is made from."""
    config, folder = run.config, run.folder.child(f"round_{number}")
    recipe = Recipe.load(number, config.synthesis)
    paths_step = Step.below(
        folder,
        "paths",
        paths.content(recipe, config.engine, generator, run.guidelines_step),
        paths.extent(config, run.questions),
    )
    examples_step = Step.below(
        folder, "examples", examples.content(config, run.questions, paths_step)
    )
    start = run.base if config.training.start_from == "base" else generator
    training = config.training.of_round(number)
    names = sorted(run.questions.num_kept("train"))
    branches = tuple(
        _plan_branch(run, folder, model.content(training, examples_step, start, name), name)
        for name in (names if training.mix == "per_dataset" else [None])
    )
    round_ = Round(
        number, recipe, generator, start, training, paths_step, examples_step, branches, previous
    )
    return round_ if config.after_round.is_neutral else _with_decision(run, folder, round_)


def _with_decision(run: Run, below: Folder, round_: Round) -> Round:
    """The round with the step that decides what follows from it."""
    config, [branch] = run.config, round_.branches
    own = (e for e in round_.earlier() if e.branches[0].tuned == round_.generator)
    references = {e.title: e.branches[0].predictions for e in own}
    references |= {"base": run.base_predictions}
    before = round_.previous.decision if round_.previous else None
    made_from = decision.content(
        config.after_round, run.questions, round_.paths, branch, references, before
    )
    step = Step.below(below, "decision", made_from)
    return replace(round_, references=references, decision=step)


def _plan_branch(
    run: Run, below: Folder, content: Mapping[str, Any], dataset: str | None
) -> Branch:
    """The steps of one tuned model. Their names end with the dataset, if there is one."""
    suffix = f"-{dataset}" if dataset else ""
    model_step = Step.below(below, f"model{suffix}", content)
    storage = run.config.storage
    tuned = tuned_model(model_step.folder, storage.cache, storage.cache_limit_gib)
    answered = _plan_predictions(run.config, run.questions, below, tuned, suffix)
    hidden = run.config.after_round.gate_tasks
    compared = scores.content(run.base_predictions, answered, hidden, run.base_prompted)
    scores_step = Step.below(below, f"scores{suffix}", compared)
    return Branch(dataset, tuned, model_step, answered, scores_step)


def _plan_predictions(
    config: Config, facts: QuestionFacts, below: Folder, asked: Model, suffix: str = ""
) -> Step:
    """The step with one model's predictions on all held-out questions."""
    content = predictions.content(config.evaluation, config.engine, asked)
    larger = (facts.extent("dev", "test"),) if config.report_on == "dev" else ()
    extent = facts.extent(*config.asked_splits)
    return Step.below(below, f"predictions{suffix}", content, extent, larger)
