"""`regenesis.py show RUN [PATH_ID]`: the state of a run, of one path, or of one question.

Only reads: it takes no lock, and works on a run that another command works on.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from cluster.errors import InputError
from cluster.terminal import say
from pipelines.analysis.lineage import (
    format_lineage,
    format_question_paths,
    path_lineage,
    question_paths,
)
from pipelines.analysis.overview import all_runs, format_overview, format_runs, overview
from pipelines.stored_run import StoredRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, and what of it is shown."""
    parser.add_argument("run", nargs="?", help="the folder of the run, or its URI")
    parser.add_argument("path_id", nargs="?", help="show how this path was made and used")
    parser.add_argument("--question", metavar="ID", help="show all paths of this question")
    parser.add_argument("--runs", metavar="ROOT", help="a table of all runs in this folder")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the state as text or JSON."""
    facts, text = _shown(arguments)
    say(json.dumps(facts, indent=2) if arguments.json else text)
    return 0


def _shown(arguments: argparse.Namespace) -> tuple[Any, str]:
    """The facts and their text. Raises `InputError` for arguments that exclude each other."""
    asked = [arguments.path_id, arguments.question]
    if (arguments.run is None) == (arguments.runs is None) or None not in asked:
        raise InputError(
            "show: give the folder of a run, and with it a path id or --question or neither; or "
            "give --runs ROOT alone"
        )
    if arguments.runs is not None:
        if asked != [None, None]:
            raise InputError("show --runs: a path or a question needs the folder of one run")
        runs = all_runs(arguments.runs)
        return runs, format_runs(runs)
    stored = StoredRun.read(arguments.run)
    if arguments.path_id is not None:
        lineage = path_lineage(stored, arguments.path_id)
        return lineage, format_lineage(lineage)
    if arguments.question is not None:
        paths = question_paths(stored, arguments.question)
        return paths, format_question_paths(paths)
    state = overview(stored)
    return state, format_overview(state)
