"""The `examples` step: the paths to train on. It is the only step that drops rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.errors import NoExamplesError
from cluster.remote import run_task
from cluster.session import StopRequest
from cluster.settings import content_of, versioned
from cluster.store.step import Step
from cluster.terminal import say
from evaluation.grader import GRADER_VERSION
from pipelines.config import Config
from pipelines.questions.loading import QuestionFacts
from pipelines.run import Round, Run
from pipelines.selection.select_examples import select_step_examples

VERSION = 2
"""2: more citations of a guideline are found, and the unfiltered control ignores the verdict. Runs
without either are unaffected, so they keep the previous version."""


def content(config: Config, questions: QuestionFacts, paths: Step) -> dict[str, Any]:
    """The paths, the filters, and the grader that judges them again."""
    made_from: dict[str, Any] = {
        "paths": paths.identity,
        "examples": content_of(config.examples),
        "template_args": config.evaluation.template_args,
        "grader": GRADER_VERSION,
    }
    if config.examples.contamination.drop:  # only then do the held-out questions matter
        made_from["held_out"] = questions.extent("dev", "test")
    return versioned(made_from, VERSION if _is_changed(config) else VERSION - 1)


def _is_changed(config: Config) -> bool:
    """Whether the current filters may keep other paths than those of version 1."""
    cites = "guideline" in config.examples.drop_leaks and config.synthesis.follows_guidelines
    return cites or config.examples.verdict == "unfiltered"


def make(run: Run, round_: Round, stop: StopRequest) -> None:
    """Select the examples. Raises `NoExamplesError` when none is left."""
    if round_.examples.is_done:
        return
    round_.examples.clear()
    facts = run_task(
        select_step_examples,
        round_.paths.folder,
        run.stored_questions("train"),
        run.stored_questions("dev", "test"),
        run.config.examples,
        round_.start,
        run.config.evaluation.template_args,
        round_.examples.folder,
    )
    say(summary(facts))
    if not facts["num_examples"]:
        raise NoExamplesError(
            f"no example is left to train on; the {facts['num_paths']} paths were dropped "
            f"({_reasons(facts)}); they are kept in {round_.paths.folder.uri}"
        )
    round_.examples.commit(**facts)


def summary(facts: Mapping[str, Any]) -> str:
    """How many paths were kept, why the others were dropped, and which questions overlap."""
    lines = [
        f"examples: kept {facts['num_kept_paths']} of {facts['num_paths']} paths "
        f"({facts['num_answers_added']} with the boxed answer added); dropped: {_reasons(facts)}"
    ]
    if facts["num_examples"] != facts["num_kept_paths"]:
        lines.append(
            f"examples: {facts['num_examples']} are used for training, because kept paths are "
            "used in more than one form or given solutions are used as well"
        )
    lines.append(
        f"examples: {facts['num_learned_tokens']} tokens are learned, besides "
        f"{facts['num_prompt_tokens']} prompt tokens"
    )
    if tokens := facts.get("retry_tokens"):
        lines.append(
            f"examples: retries generated {tokens['hinted']} tokens with the answer shown, and "
            f"{tokens['unhinted']} without it count as equally many"
        )
    if number := facts["num_control_tokens"]:
        lines.append(
            f"warning: the questions contain {number} control tokens of the model, such as an end "
            "of turn, as typed text; special tokens are treated as plain text"
        )
    return "\n".join([*lines, *overlap_lines(facts)])


def overlap_lines(facts: Mapping[str, Any]) -> list[str]:
    """A line for each dataset whose training questions overlap with evaluation questions."""
    return [
        f"examples: {number} questions of {name} share a run of words with {other} in evaluation"
        for name, of_dataset in facts["datasets"].items()
        for other, number in of_dataset["overlaps_with"].items()
    ]


def _reasons(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in facts["dropped"].items()) or "none"
