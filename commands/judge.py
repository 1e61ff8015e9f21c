"""`regenesis judge RUN`: a blinded sheet of paths whose reasoning a person judges."""

from __future__ import annotations

import argparse

from cluster.errors import InputError
from cluster.store.named import file_to_write
from cluster.terminal import say
from commands.arguments import add_run
from pipelines.judging.sheet import make_sheet
from pipelines.report.page import assemble
from pipelines.stored_run import StoredRun

FILE = "judge.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, how many of its paths, and where the sheet goes."""
    add_run(parser)
    parser.add_argument("--number", type=int, default=50, help="how many paths; default: 50")
    parser.add_argument("--seed", type=int, default=0, help="determines which paths; default: 0")
    parser.add_argument(
        "-o", "--output", default=FILE, metavar="FILE", help=f"where to write it; default: {FILE}"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the sheet; the run is only read."""
    if arguments.number < 1:
        raise InputError(f"--number {arguments.number}: give at least 1")
    folder, name = file_to_write("-o", arguments.output)
    stored = StoredRun.read(arguments.run)
    sheet = make_sheet(stored, arguments.number, arguments.seed)
    folder.write_bytes(name, assemble({"sheet": sheet}))
    say(f"open {arguments.output}: {len(sheet['items'])} paths")
    return 0
