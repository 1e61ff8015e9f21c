"""`regenesis judge-import RUN FILE`: read back what a person found on a sheet."""

from __future__ import annotations

import argparse
import json

from cluster.terminal import say
from commands.arguments import add_run
from pipelines.judging.judgements import format_rates, matched, rates, read_judgements, store
from pipelines.selection.vetoes import vetoed_in
from pipelines.stored_run import StoredRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, and the file that the sheet saved."""
    add_run(parser)
    parser.add_argument("file", help="the JSON file that the sheet saved")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Check the file, store it in the run's folder, and print the share of valid reasoning."""
    read = read_judgements(arguments.file)
    stored = StoredRun.read(arguments.run)
    judgements = matched(stored, read, arguments.file)
    found = rates(judgements)
    place = store(stored, judgements, read)
    num_vetoed = len(vetoed_in(judgements, place))
    if arguments.json:
        say(json.dumps({"file": place, "num_vetoed": num_vetoed, "rates": found}, indent=2))
        return 0
    say(format_rates(found))
    say(f"stored in {place}")
    if num_vetoed:
        say(f"--set examples.vetoes={place} leaves out the {num_vetoed} paths that are not valid")
    return 0
