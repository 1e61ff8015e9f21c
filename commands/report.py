"""`regenesis report RUN [RUN ...]`: one HTML file that shows what came out, without a network."""

from __future__ import annotations

import argparse
from pathlib import Path

from cluster.store.folder import Folder
from cluster.terminal import say
from pipelines.report.content import report_data
from pipelines.report.page import assemble
from pipelines.report.paths.parts import browser_data
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
    place, _, name = arguments.output.rpartition("/")
    folder = Folder.open(place or str(Path.cwd()))
    paths = browser_data(runs, assemble, folder.child(f"{name.removesuffix('.html')}-parts"))
    data = {"report": report_data(runs)} | ({"paths": paths.index} if paths else {})
    folder.write_bytes(name, assemble(data, {"paths": paths.chunks} if paths else {}))
    say(f"open {arguments.output}")
    return 0
