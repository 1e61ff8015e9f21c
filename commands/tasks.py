"""`regenesis.py tasks [NAME]`: list the known benchmarks, or show three questions of one."""

from __future__ import annotations

import argparse

from cluster.terminal import say
from evaluation.question import SPLITS
from pipelines.questions.task_listing import format_task, format_tasks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark and the place of its files."""
    parser.add_argument("name", nargs="?", help="a task, or reasoning_gym:FAMILY")
    parser.add_argument("--path", help="the folder or file that contains it; default: the hub")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, help="default: all of its splits")


def run(arguments: argparse.Namespace) -> int:
    """Print the table or the questions."""
    if arguments.name is None:
        say(format_tasks())
    else:
        say(format_task(arguments.name, arguments.path, tuple(arguments.splits or ())))
    return 0
