"""The output of `--dry-run`: the steps that would run, and an upper bound on the generations."""

from __future__ import annotations

from cluster.store.ledger import Ledger
from cluster.store.step import Step
from evaluation.question import Split
from pipelines.config import Config
from pipelines.plan import check_layout, check_run, lay_out_rounds, plan_run
from pipelines.planning.preflight import check_base, describe
from pipelines.questions.loading import QuestionSet, load_questions
from pipelines.run import Round, Run
from pipelines.steps import guidelines
from pipelines.steps import questions as questions_step
from pipelines.synthesis.chain import Recipe
from pipelines.synthesis.handler import MOST_RETRIES, SynthesizePaths
from pipelines.synthesis.propose_guidelines import with_room


def dry_run(config: Config, until: str | None = None) -> str:
    """Describe the steps; the questions are read, but nothing is written."""
    folder, base = check_run(config, until)
    seen = check_base(config, Recipe.load(0, config.synthesis), until, may_fetch=False)
    questions = load_questions(config.questions)
    run = plan_run(config, folder, base, questions.facts())
    check_layout(run)
    lines = [questions_step.summary(run.questions), describe_steps(run, questions)]
    return "\n".join([*lines, *(describe(seen) if seen else [])])


def describe_steps(run: Run, questions: QuestionSet) -> str:
    """A line for each step, and one for the limit on the tokens."""
    lines = [f"run folder: {run.folder.uri}"]
    lines.append(_step_line("", run.questions_step, 0))
    if run.guidelines_step and run.expansion:
        missing = 0 if run.guidelines_step.is_done else run.expansion.number
        lines.append(_step_line("base", run.guidelines_step, missing))
    asked = run.config.asked_splits
    for step in run.base_steps().values():
        parent = step.folder.path.split("/")[-2]
        lines.append(_step_line(parent, step, _num_missing(step, questions, *asked)))
    for round_ in lay_out_rounds(run):
        generations = {round_.paths.name: _num_path_generations(run, round_, questions)} | {
            branch.predictions.name: _num_missing(branch.predictions, questions, *asked)
            for branch in round_.branches
        }
        for step in round_.steps():
            number = generations.get(step.name, 0)
            lines.append(_step_line(f"round_{round_.number}", step, number))
    if bound := run.config.budget.generated_tokens:
        lines.append(f"  the paths of a round stop at about {bound} generated tokens")
    return "\n".join(lines)


def _step_line(parent: str, step: Step, num_generations: int) -> str:
    state = "skip, finished" if step.is_done else "run"
    where = f"{parent}/{step.folder.name}" if parent else step.folder.name
    to_do = num_generations and not step.is_done
    generations = f", at most {num_generations} generations" if to_do else ""
    return f"  {where}: {state}{generations}"


def _num_missing(step: Step, questions: QuestionSet, *splits: Split) -> int:
    """How many questions of some splits have no row in a step's ledger."""
    return int(Ledger.read(step.folder).missing(questions.split(*splits)).num_rows)


def _num_path_generations(run: Run, round_: Round, questions: QuestionSet) -> int:
    """The largest number of generations for a round's missing paths: all proposed guidelines are
    kept, every path is judged, and every question is asked again, as often as it may be."""
    are_there = run.guidelines_step is None or run.guidelines_step.is_done
    recipe = (
        guidelines.with_proposed(round_.recipe, run.guidelines_step)
        if are_there
        else with_room(round_.recipe)
    )
    chains = SynthesizePaths(recipe, run.config.examples.read_last).width
    settings = recipe.settings
    a_chain = len(settings.chain) + (settings.judge != "none")
    passes = 1 + bool(settings.hint_stages) + MOST_RETRIES * settings.unhinted_retries
    return _num_missing(round_.paths, questions, "train") * passes * chains * a_chain
