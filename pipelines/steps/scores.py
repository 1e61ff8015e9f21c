"""The `scores` step: base and tuned model compared, in domain and out of domain."""

from __future__ import annotations

from typing import Any

from cluster.remote import run_task
from cluster.session import StopRequest
from cluster.settings import versioned
from cluster.store.step import Step
from cluster.terminal import say
from evaluation.grader import GRADER_VERSION
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
        if not branch.scores.is_done:
            branch.scores.folder.write_table("scores.parquet", scores_table(scores))
            text = f"{format_scores(scores)}\n\n{what_was_learned(round_, branch)}\n"
            branch.scores.folder.write_bytes("scores.md", text.encode())
            branch.scores.commit(made=["scores.parquet", "scores.md"])
        say(summary(round_, branch, scores))
    for name, reason in run.questions.broken.items():
        say(f"the dataset {name} was skipped: {reason}")


def summary(round_: Round, branch: Branch, scores: list[Score]) -> str:
    """The table of the test questions."""
    tuned = f"tuned on {branch.dataset}" if branch.dataset else "tuned"
    title = f"round {round_.number}, base > {tuned}, in percent with 95 % intervals"
    return f"\n{title}\n\n{format_scores(scores)}\n\n{what_was_learned(round_, branch)}\n"


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
