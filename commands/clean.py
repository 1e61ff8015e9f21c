"""`regenesis.py clean RUN`: remove what a run no longer needs."""

from __future__ import annotations

import argparse

from cluster.leftovers import find_leftovers, format_leftovers, remove_leftovers
from cluster.storage import Folder
from cluster.terminal import say
from commands.arguments import add_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, and what may go."""
    add_run(parser)
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.add_argument(
        "--superseded",
        action="store_true",
        help="also remove the steps that the config which was run last does not use",
    )


def run(arguments: argparse.Namespace) -> int:
    """Say what can go, then remove it."""
    leftovers = find_leftovers(Folder.open(arguments.run), superseded=arguments.superseded)
    say(format_leftovers(leftovers))
    if not arguments.dry_run:
        remove_leftovers(leftovers)
    return 0
