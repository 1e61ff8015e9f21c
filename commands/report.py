"""`regenesis report RUN [RUN ...]`: one HTML file that shows what came out, without a network."""

from __future__ import annotations

import argparse

from cluster.errors import InputError
from cluster.store.named import file_to_write
from cluster.terminal import say
from pipelines.report.write import FILE, write_report
from pipelines.stored_run import StoredRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The runs, and where the file goes."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="the folder of a run or of an evaluation, or its URI"
    )
    parser.add_argument(
        "-o", "--output", default=FILE, metavar="FILE", help=f"where to write it; default: {FILE}"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the file; the runs are only read. Raises `DamagedFileError`."""
    folder, name = file_to_write("-o", arguments.output)
    if not name.endswith(".html"):
        raise InputError(f"-o {arguments.output}: name a file that ends with .html")
    runs = [StoredRun.read(each) for each in arguments.runs]
    write_report(runs, folder, name)
    say(f"open {arguments.output}")
    return 0
