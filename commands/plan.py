"""`regenesis.py plan CONFIG`: generate the first questions and estimate the cost of the run."""

from __future__ import annotations

import argparse

from cluster.events import kept_log
from cluster.session import ray_session
from cluster.terminal import say
from commands.arguments import add_config, add_final, add_take_over
from pipelines.config import load_config
from pipelines.plan import begin_run, begin_steps
from pipelines.planning.estimate import format_estimate
from pipelines.planning.hardware import prepare
from pipelines.planning.probe import estimate_run_from_probe, tell_budget


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the config and the settings that override it."""
    add_config(parser)
    add_final(parser)
    add_take_over(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the estimate. The run keeps the rows that were generated for it."""
    config = load_config(arguments.config, arguments.set)
    with kept_log("plan") as log:
        with (
            begin_run(config, log, take_over=arguments.take_over) as begun,
            ray_session(config.cluster) as stop,
        ):
            prepare(begun, stop)
            begin_steps(begun)
            estimate = estimate_run_from_probe(begun, stop)
        say(format_estimate(estimate))
        tell_budget(estimate, config.budget)
    return 0
