"""`regenesis.py clean RUN`: remove files that a run no longer needs."""

from __future__ import annotations

import argparse

from cluster.events import kept_log
from cluster.store.cleanup import (
    ask_to_delete,
    check_is_run,
    find_leftovers,
    format_leftovers,
    remove_leftovers,
)
from cluster.store.holder import hold
from cluster.store.named import folder_to_read
from cluster.terminal import say
from commands.arguments import add_run, add_take_over


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run and the options that select what is removed."""
    add_run(parser)
    parser.add_argument("--dry-run", action="store_true", help="only list what would be deleted")
    parser.add_argument("--yes", action="store_true", help="delete without asking")
    add_take_over(parser)
    parser.add_argument(
        "--superseded",
        action="store_true",
        help="also remove the steps that the last config does not use",
    )


def run(arguments: argparse.Namespace) -> int:
    """List what can be removed, ask, and then remove it."""
    folder = folder_to_read("the run folder", arguments.run)
    check_is_run(folder)
    if arguments.dry_run:
        say(format_leftovers(find_leftovers(folder, superseded=arguments.superseded)))
        return 0
    with hold(folder, take_over=arguments.take_over) as held, kept_log("clean", held):
        leftovers = find_leftovers(held, superseded=arguments.superseded)
        say(format_leftovers(leftovers))
        if leftovers and (arguments.yes or ask_to_delete(leftovers)):
            remove_leftovers(leftovers)
    return 0
