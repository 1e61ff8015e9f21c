"""The `scores` step: base and tuned model compared, in domain and out of domain."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cluster.models.model import PACKAGED_MODELS
from cluster.remote import run_task
from cluster.session import StopRequest
from cluster.settings import fingerprint, versioned
from cluster.store.folder import Folder
from cluster.store.step import Step
from cluster.terminal import say
from evaluation.forced_scores import (
    ForcedScore,
    forced_table,
    format_forced,
    score_readings,
)
from evaluation.grader import GRADER_VERSION
from evaluation.prompt import PromptName
from evaluation.readings import UNTRAINED
from evaluation.run_table import Asked, run_table, shares_on_dev
from evaluation.scores import percent, score_predictions, scores_table
from pipelines.reads_of_test import record_test_read
from pipelines.run import Branch, Round, Run

VERSION = 2
"""Also to be raised when a statistic of `evaluation.scores` gives another number, so that finished
runs get the corrected one."""


def content(
    base: Step,
    tuned: Step,
    hidden: Collection[str] = (),
    prompted: Mapping[PromptName, Step] | None = None,
) -> dict[str, Any]:
    """The predictions that are compared, those of the base with other prompts, the grader that
    judges them again, and the datasets that are not reported."""
    compared: dict[str, Any] = {"base": base.identity, "tuned": tuned.identity}
    compared["grader"] = GRADER_VERSION
    if hidden:
        compared["hidden"] = sorted(hidden)
    if prompted:
        compared["prompted"] = {prompt: step.identity for prompt, step in prompted.items()}
    return versioned(compared, VERSION)


def make(run: Run, round_: Round, stop: StopRequest) -> None:
    """Score each tuned model of the round; the table of a finished step is printed again."""
    best, said = best_base(run)
    for branch in round_.branches:
        models = _models_so_far(run, round_, branch, best)
        table = run_task(run_table, _asked(run, branch), models)
        forced = _forced_scores(run, branch)
        below = "\n".join([_below(run, round_, branch, forced), *(f"- {line}" for line in said)])
        if not branch.scores.is_done:
            _store(run, round_, branch, forced, below, best)
        if table and run.config.report_on == "test":
            _record_read(run, round_, branch)
        say(summary(run, round_, branch, table, below))
    for name, reason in run.questions.broken.items():
        say(f"the dataset {name} was skipped: {reason}")


def _store(
    run: Run,
    round_: Round,
    branch: Branch,
    forced: Sequence[ForcedScore],
    below: str,
    best: Mapping[str, Folder],
) -> None:
    """Finish the step: the scores of both splits, and the table of base and tuned model."""
    base, tuned = run.base_predictions.folder, branch.predictions.folder
    hidden = run.config.after_round.gate_tasks
    scores = run_task(score_predictions, run.held_out(), base, tuned, branch.dataset, hidden)
    models = {"base": base, **best, round_.title: tuned}
    table = run_task(run_table, _asked(run, branch), models)
    tables = {"scores.parquet": scores_table(scores)}
    if forced:
        tables["readings.parquet"] = forced_table(forced)
    for name, of_numbers in tables.items():
        branch.scores.folder.write_table(name, of_numbers)
    text = f"{summary(run, round_, branch, table, below).strip()}\n"
    branch.scores.folder.write_bytes("scores.md", text.encode())
    branch.scores.commit(made=[*tables, "scores.md"])


def _forced_scores(run: Run, branch: Branch) -> list[ForcedScore]:
    """Those of base and tuned model; none if the config asks for no forced readings."""
    if not run.config.evaluation.readings:
        return []
    base, tuned = run.base_predictions.folder, branch.predictions.folder
    hidden = run.config.after_round.gate_tasks
    return run_task(score_readings, run.held_out(), base, tuned, branch.dataset, hidden)


def _asked(run: Run, branch: Branch) -> Asked:
    """The questions that the table is of; those of the gate are not reported."""
    hidden = run.config.after_round.gate_tasks
    return Asked(run.held_out(), run.config.report_on, hidden, branch.dataset)


def best_base(run: Run) -> tuple[dict[str, Folder], list[str]]:
    """The base's predictions with the prompt that is best on dev, by their name in tables, and a
    sentence about the choice; both are empty without further prompts, and the first also where
    the prompt of all models is the best."""
    if not run.base_prompted:
        return {}, []
    hidden = run.config.after_round.gate_tasks
    answered: dict[str, Folder] = {name: step.folder for name, step in run.base_steps().items()}
    shares = run_task(shares_on_dev, Asked(run.held_out(), "dev", hidden), answered)
    best = max(shares, key=lambda prompt: shares[prompt])
    each = ", ".join(f"{prompt} {percent(share)}" for prompt, share in shares.items())
    said = f"base: the best prompt on dev is {best} (mean over tasks in domain, in percent: {each})"
    is_further = best != run.config.evaluation.prompt
    return ({f"base ({best})": answered[best]} if is_further else {}), [said]


def _models_so_far(
    run: Run, round_: Round, branch: Branch, best: Mapping[str, Folder]
) -> dict[str, Folder]:
    """The predictions of the base, also with its best prompt, of each earlier round's model and of
    this one."""
    earlier = {e.title: e.branches[0].predictions.folder for e in round_.earlier()}
    return {
        "base": run.base_predictions.folder,
        **best,
        **earlier,
        round_.title: branch.predictions.folder,
    }


def _record_read(run: Run, round_: Round, branch: Branch) -> None:
    record_test_read(
        run.config,
        run.folder,
        round=round_.number,
        dataset=branch.dataset,
        num_questions=sum(run.questions.num_kept("test").values()),
        scores=f"round_{round_.number}/{branch.scores.folder.name}",
    )


# --- what people see ---------------------------------------------------------------------------


def summary(run: Run, round_: Round, branch: Branch, table: str, below: str) -> str:
    """The table of the questions that are reported, and what has to be known to judge it."""
    shown = table or f"there is no question of {run.config.report_on}"
    return f"\n{title(run, round_, branch)}\n\n{shown}\n\n{below}\n"


def title(run: Run, round_: Round, branch: Branch) -> str:
    """What is compared in the tables, and on which questions."""
    tuned = f"tuned on {branch.dataset}" if branch.dataset else "tuned"
    split = run.config.report_on
    return f"{round_.title}, base > {tuned}, on {split} in percent with 95 % intervals"


def _below(run: Run, round_: Round, branch: Branch, forced: Sequence[ForcedScore]) -> str:
    """The tables of the forced readings, if there are any, and the facts beside the scores."""
    beside = "\n".join(f"- {line}" for line in _beside(run, round_, branch))
    if not (tables := format_forced(forced, run.config.report_on)):
        return beside
    return f"{tables}\n\n{beside}\n- {targets_with_cue(round_, branch)}"


def _beside(run: Run, round_: Round, branch: Branch) -> list[str]:
    """Which model file, how many seeds, how many tokens, and how many targets were edited."""
    seeds = f"synthesis.seed {run.config.synthesis.seed}, training.seed {round_.training.seed}"
    lines = [
        f"model: {_model_file(run)}",
        f"one seed ({seeds}): the numbers are of this checkpoint and not of the method",
        f"{round_.title}: {what_was_generated(round_)}",
        f"{round_.title}: {what_was_learned(round_, branch)}",
    ]
    if run.config.report_on == "dev":
        lines.append("dev is for choosing settings; `--final` asks the test questions")
    return lines


def _model_file(run: Run) -> str:
    path = run.config.model.path
    if (packaged := PACKAGED_MODELS.get(path)) is not None:
        return f"{path}, {packaged.file_name}: {packaged.precision}"
    return f"{path} (fingerprint {fingerprint(run.base.identity)})"


def targets_with_cue(round_: Round, branch: Branch) -> str:
    """One sentence on how many training targets hold the cue that none of them should hold."""
    found, num = run_task(count_targets, round_.examples.folder, UNTRAINED.strip(), branch.dataset)
    return (
        f'forced and no_reasoning continue behind "{UNTRAINED.strip()}", which {found} of {num} '
        "training targets contain"
    )


def count_targets(examples: Folder, text: str, dataset: str | None) -> tuple[int, int]:
    """How many training targets contain a text, of how many. Runs as a task."""
    rows = examples.read_table(columns=["dataset", "messages"]).to_pylist()
    said = [row["messages"][-1]["content"] for row in rows if dataset in (None, row["dataset"])]
    return sum(text in each for each in said), len(said)


def what_was_generated(round_: Round) -> str:
    """How many tokens the paths of a round took, and how many of prompts were read for them."""
    rows: Mapping[str, Any] = (round_.paths.manifest() or {}).get("rows", {})
    return (
        f"{rows.get('num_tokens', 0):,} tokens generated in {rows.get('num_paths', 0):,} paths, "
        f"{rows.get('num_prompt_tokens', 0):,} prompt tokens read for them"
    )


def what_was_learned(round_: Round, branch: Branch) -> str:
    """One sentence on how much the tuned model was trained on, and how much of that was edited."""
    facts = round_.examples.manifest() or {}
    if branch.dataset:
        facts = facts.get("datasets", {}).get(branch.dataset, {})
    num = facts.get("num_examples", 0)
    tokens = facts.get("num_learned_tokens")
    size = f"{num} examples" + (f" of {tokens} learned tokens" if tokens else "")
    edited = facts.get("num_answers_added")
    of_edited = "" if edited is None else f"; the boxed answer was added to {edited} of them"
    return f"tuned on {size}{of_edited}"
