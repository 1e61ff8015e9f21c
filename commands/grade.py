"""`regenesis.py grade FILE`: grade a JSONL file of responses (see docs/GRADING.md)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cluster.terminal import say
from evaluation.grade_file import format_verdicts, grade_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file."""
    parser.add_argument(
        "file", help="rows with response, answer, answer_type and, for a choice, choices"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the graded rows to stdout and the number of each verdict to stderr."""
    verdicts = grade_file(Path(arguments.file), sys.stdout)
    say(format_verdicts(verdicts), sys.stderr)
    return 0
