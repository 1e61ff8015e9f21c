"""`regenesis report RUN [RUN ...]`: one HTML file that shows what came out, without a network."""

from __future__ import annotations

import argparse
from pathlib import Path

from cluster.store.folder import Folder
from cluster.terminal import say
from pipelines.report.content import report_data
from pipelines.report.page import assemble
from pipelines.stored_run import StoredRun

FILE = "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The runs, and where the file goes."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="the folder of a run or of an evaluation, or its URI"
    )
    parser.add_argument(
        "-o", "--output", default=FILE, metavar="FILE", help=f"where to write it; default: {FILE}"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the file; the runs are only read."""
    runs = [StoredRun.read(place) for place in arguments.runs]
    made = assemble({"report": report_data(runs)})
    folder, _, name = arguments.output.rpartition("/")
    Folder.open(folder or str(Path.cwd())).write_bytes(name, made)
    say(f"open {arguments.output}")
    return 0
