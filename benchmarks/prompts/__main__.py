"""The command line of `benchmarks.prompts`, which describes it."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import prompts
from benchmarks.prompts.measures import Measures, measure, read_side
from cluster.terminal import format_table, say
from pipelines.synthesis.reasoning_path import ReasoningPath


def main(arguments: Sequence[str]) -> int:
    """Print the table of all sides, and texts to read if they are wanted."""
    parser = argparse.ArgumentParser(prog="benchmarks.prompts", description=prompts.__doc__)
    parser.add_argument("runs", nargs="+", help="the folders of runs with paths")
    parser.add_argument("--show", type=int, default=0, help="print this many paths of each run")
    parser.add_argument("--seed", type=int, default=0, help="which paths are printed")
    parser.add_argument("--json", help="write the measures to this file")
    given = parser.parse_args(arguments)
    sides = {run: read_side(run) for run in given.runs}
    for run, side in sides.items():
        drawn = random.Random(given.seed).sample(side.answered, min(given.show, len(side.answered)))
        for question, path in drawn:
            say(f"\n### {run}: {path.path_id}\n{question.text}\n{_texts(path)}")
    measured = {run: measure(side) for run, side in sides.items()}
    if given.json:
        rows = {run: each._asdict() for run, each in measured.items()}
        Path(given.json).write_text(json.dumps(rows, indent=1) + "\n")
    say(format_table([["run", *Measures.titles()], *_rows(measured)]))
    return 0


def _texts(path: ReasoningPath) -> str:
    written = "\n".join(f"--- {name}\n{text}" for name, text in path.texts.items())
    return f"--- guideline {path.guideline_id}\n{written}\n--- {path.verdict}: {path.predicted}"


def _rows(measured: dict[str, Measures]) -> list[list[str]]:
    return [[run, *each.cells()] for run, each in measured.items()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
