"""The `scores` step: base and tuned model compared, in domain and out of domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.remote import run_task
from cluster.session import StopRequest
from cluster.settings import versioned
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
from evaluation.readings import UNTRAINED
from evaluation.scores import Score, format_scores, score_predictions, scores_table
from pipelines.run import Branch, Round, Run

VERSION = 2
"""Also to be raised when a statistic of `evaluation.scores` gives another number, so that finished
runs get the corrected one."""


def content(base: Step, tuned: Step) -> dict[str, Any]:
    """The predictions that are compared, and the grader that judges them again."""
    compared = {"base": base.identity, "tuned": tuned.identity, "grader": GRADER_VERSION}
    return versioned(compared, VERSION)


def make(run: Run, round_: Round, stop: StopRequest) -> None:
    """Score each tuned model of the round; the table of a finished step is printed again."""
    for branch in round_.branches:
        scores = run_task(
            score_predictions,
            run.stored_questions("dev", "test"),
            run.base_predictions.folder,
            branch.predictions.folder,
            branch.dataset,
        )
        text = f"{format_scores(scores)}\n\n{what_was_learned(round_, branch)}\n"
        forced: list[ForcedScore] = []
        if run.config.evaluation.readings:
            forced = run_task(
                score_readings,
                run.stored_questions("dev", "test"),
                run.base_predictions.folder,
                branch.predictions.folder,
                branch.dataset,
            )
            text += f"\n{format_forced(forced)}\n\n{targets_with_cue(round_, branch)}\n"
        if not branch.scores.is_done:
            _write(branch.scores, scores, forced, text)
        say(f"\n{title(round_, branch)}\n\n{text}")
    for name, reason in run.questions.broken.items():
        say(f"the dataset {name} was skipped: {reason}")


def _write(step: Step, scores: Sequence[Score], forced: Sequence[ForcedScore], text: str) -> None:
    """Write the tables and their text, and finish the step."""
    tables = {"scores.parquet": scores_table(scores)}
    if forced:
        tables["readings.parquet"] = forced_table(forced)
    for name, table in tables.items():
        step.folder.write_table(name, table)
    step.folder.write_bytes("scores.md", text.encode())
    step.commit(made=[*tables, "scores.md"])


def title(round_: Round, branch: Branch) -> str:
    """What is compared in the tables, which are those of the test questions."""
    tuned = f"tuned on {branch.dataset}" if branch.dataset else "tuned"
    return f"round {round_.number}, base > {tuned}, in percent with 95 % intervals"


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
