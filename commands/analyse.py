"""`regenesis.py analyse RUN`: the tables behind a report, as text and as Parquet."""

from __future__ import annotations

import argparse
import json

from cluster.store.named import folder_to_write, refuse_within
from cluster.terminal import say
from commands.arguments import add_run
from pipelines.analysis.reading import (
    analysis_tables,
    format_analysis,
    grader_note,
    unfinished_note,
)
from pipelines.stored_run import StoredRun

TEXT_FILE = "analysis.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, and where the tables go."""
    add_run(parser)
    parser.add_argument(
        "--to", metavar="FOLDER", help=f"also write the tables as Parquet, and {TEXT_FILE}"
    )
    parser.add_argument("--json", action="store_true", help="print the tables as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the tables, and write them where that is asked for; the run is only read."""
    to = None if arguments.to is None else folder_to_write("--to", arguments.to)
    stored = StoredRun.read(arguments.run)
    if to is not None:
        refuse_within("--to", to, stored.folder)
    found = analysis_tables(stored)
    text = "\n\n".join([*unfinished_note(stored), *grader_note(stored), format_analysis(found)])
    if arguments.json:
        say(json.dumps({name: table.to_pylist() for name, table in found.items()}))
    else:
        say(text)
    if to is not None:
        for name, table in found.items():
            to.write_table(f"{name}.parquet", table)
        to.write_bytes(TEXT_FILE, f"{text}\n".encode())
    return 0
