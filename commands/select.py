"""`regenesis.py select RUN`: count which paths of a run other filters would keep.

`regenesis.py select RUN --set examples.verdict=majority` reads the config and paths of the run,
generates nothing, and prints a table for each round, with one row per dataset::

    | dataset | paths | kept | of paths | expected guessed | dropped                 |
    |---------|-------|------|----------|------------------|-------------------------|
    | gsm8k   | 25000 | 4120 | 16.5 %   | 0.0 %            | 17800 wrong, 3080 error |
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from cluster.events import kept_log
from cluster.inference.schedule import Questions
from cluster.models.model import base_model
from cluster.remote import run_task
from cluster.session import ray_session
from cluster.settings import overridden_settings
from cluster.store.folder import Folder
from cluster.store.step import Step, check_steps
from cluster.terminal import format_table, say
from commands.arguments import add_overrides, add_run
from pipelines.config import Config
from pipelines.selection.select_examples import select_step_examples
from pipelines.steps.examples import overlap_lines
from pipelines.stored_run import StoredRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run and the settings that override its config."""
    add_run(parser)
    add_overrides(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print a table for each round."""
    stored = StoredRun.read(arguments.run)
    config = overridden_settings(Config, stored.config, arguments.set, arguments.run)
    with kept_log("select", stored.folder), ray_session(config.cluster):
        of_rounds = [Step("paths", paths, {}) for _, paths in stored.rounds_with_paths()]
        check_steps([Step("questions", stored.step("questions"), {}), *of_rounds])
        for number, paths in stored.rounds_with_paths():
            facts = _select(config, stored.step("questions"), paths)
            say(f"\nround {number}\n\n{format_selection(facts)}")
    return 0


def _select(config: Config, questions: Folder, paths: Folder) -> dict[str, Any]:
    """Count what the config's filters keep of the paths; nothing is written."""
    return run_task(
        select_step_examples,
        paths,
        Questions(questions, ("train",)),
        Questions(questions, ("dev", "test")),
        config.examples,
        base_model(config.model, config.storage.cache),
        config.evaluation.template_args,
        None,
    )


def format_selection(facts: Mapping[str, Any]) -> str:
    """Format the facts of `select_step_examples` as a table with a row per dataset and a total."""
    rows = [["dataset", "paths", "kept", "of paths", "examples", "expected guessed", "dropped"]]
    rows += [_row(name, of_dataset) for name, of_dataset in facts["datasets"].items()]
    if len(facts["datasets"]) > 1:
        rows.append(_row("all", facts))
    return "\n".join([format_table(rows), *overlap_lines(facts)])


def _row(name: str, facts: Mapping[str, Any]) -> list[str]:
    num_paths, num_kept = facts["num_paths"], facts["num_kept_paths"]
    of_paths = f"{100 * num_kept / num_paths:.1f} %" if num_paths else ""
    share = facts.get("expected_lucky_share")
    guessed = f"{100 * share:.1f} %" if share is not None else ""
    dropped = ", ".join(f"{number} {reason}" for reason, number in facts["dropped"].items())
    numbers = [str(num_paths), str(num_kept), of_paths, str(facts["num_examples"])]
    return [name, *numbers, guessed, dropped]
