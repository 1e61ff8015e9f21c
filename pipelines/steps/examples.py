"""The `examples` step: the paths that are learned from. It is the one step that drops."""

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
without either keep what they have, so they stay at the version before."""


def content(config: Config, questions: QuestionFacts, paths: Step) -> dict[str, Any]:
    """The paths, the filters, and the grader that judges anew."""
    made_from: dict[str, Any] = {
        "paths": paths.identity,
        "examples": content_of(config.examples),
        "template_args": config.evaluation.template_args,
        "grader": GRADER_VERSION,
    }
    if config.examples.contamination.drop:  # only then do the held-out questions decide anything
        made_from["held_out"] = questions.extent("dev", "test")
    return versioned(made_from, VERSION if _is_changed(config) else VERSION - 1)


def _is_changed(config: Config) -> bool:
    """Whether the filters of today may keep other paths than those of version 1."""
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
            f"no example is left to train on; of {facts['num_paths']} paths were dropped: "
            f"{_reasons(facts)}; they are kept in {round_.paths.folder.uri}"
        )
    round_.examples.commit(**facts)


def summary(facts: Mapping[str, Any]) -> str:
    """How many paths were kept, why the others were not, and which questions overlap."""
    lines = [
        f"examples: kept {facts['num_kept_paths']} of {facts['num_paths']} paths "
        f"({facts['num_answers_added']} with the boxed answer added); dropped: {_reasons(facts)}"
    ]
    if facts["num_examples"] != facts["num_kept_paths"]:
        lines.append(
            f"examples: {facts['num_examples']} are used for training, because the kept paths are "
            "put in more than one form or what the questions came with is learned"
        )
    lines.append(
        f"examples: {facts['num_learned_tokens']} tokens are learned, after "
        f"{facts['num_prompt_tokens']} of prompts"
    )
    if number := facts["num_control_tokens"]:
        lines.append(
            f"warning: the questions hold {number} control tokens of the model, such as an end of "
            "turn, as somebody typed them; the special ones are read as text"
        )
    return "\n".join([*lines, *overlap_lines(facts)])


def overlap_lines(facts: Mapping[str, Any]) -> list[str]:
    """A line for each dataset whose training questions overlap with some of evaluation."""
    return [
        f"examples: {number} questions of {name} share a run of words with {other}'s of evaluation"
        for name, of_dataset in facts["datasets"].items()
        for other, number in of_dataset["overlaps_with"].items()
    ]


def _reasons(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in facts["dropped"].items()) or "none"
