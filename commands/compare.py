"""`regenesis compare A B [C ...]`: models on the same questions, each against the first.

See docs/EVALUATION.md. It needs no model and no cluster, and changes nothing.
"""

from __future__ import annotations

import argparse

from cluster.errors import InputError
from cluster.terminal import say
from evaluation.comparison import (
    compare,
    format_comparison,
    judged_alike,
    notes_on_judges,
    of_split,
    pair_answers,
    warnings_of,
    with_reading,
)
from evaluation.forced_scores import READINGS
from pipelines.examination.datasets import ASKED
from pipelines.stored_answers import distinct_names, find_answers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the predictions and how they are read."""
    parser.add_argument(
        "predictions",
        nargs="+",
        metavar="[NAME=]PREDICTIONS",
        help="a run, RUN/base, RUN/round_0, an evaluation, a log of lm-evaluation-harness, a JSONL",
    )
    parser.add_argument("--reading", choices=READINGS, default="strict", help="default: strict")
    parser.add_argument("--split", choices=ASKED, default="test", help="default: test")


def run(arguments: argparse.Namespace) -> int:
    """Print the table, with what has to be known of it."""
    found = [(each, place) for place in arguments.predictions for each in find_answers(place)]
    sets = distinct_names([each for each, _ in found], [place for _, place in found])
    if len(sets) < 2:
        raise InputError(
            f"{arguments.predictions[0]} has the answers of one model; name another to compare with"
        )
    judged = judged_alike([of_split(each, arguments.split) for each in sets])
    first, *others = [with_reading(each, arguments.reading) for each in judged]
    pairings = [pair_answers(first, other) for other in others]
    lines = compare(pairings, arguments.reading)
    say(f"{arguments.reading}, {arguments.split}, in percent with 95 % intervals\n")
    say(f"{format_comparison(lines)}\n")
    for sentence in (*warnings_of(pairings), *notes_on_judges([first, *others])):
        say(sentence)
    return 0
