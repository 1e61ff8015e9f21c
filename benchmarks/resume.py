"""How long a run with many finished questions takes to find what is left to do.

    python -m benchmarks.resume --questions 1000000 [--json]

It writes the questions and a ledger of short rows (one path each) directly to Parquet. Then it
measures without Ray: reading the index of the part files as the workers leave them; reading them
completely, as the first execution of a command does; their compaction; the plan on the compacted
files; and the check of what is finished (its list for the manifest, names and sizes, contents). One
question in a thousand has no row.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from benchmarks.machine import machine_facts
from benchmarks.orchestration import numbered_question
from cluster.inference.schedule import OpenWork, Questions, plan_job
from cluster.store.contents import damaged_files, wrong_files
from cluster.store.folder import Folder
from cluster.store.ledger import PARTS, Ledger, PartWriter, compact
from cluster.store.step import Step
from evaluation.question import question_table
from pipelines.synthesis.handler import PATHS_SCHEMA

ROWS_PER_PART = 256
"""The number of rows that a worker flushes at once."""
QUESTIONS_PER_FILE = 50_000
MISSING_EVERY = 1_000


def write_run(root: Folder, num_questions: int) -> Questions:
    """Write the questions, and the parts with all but a thousandth of their rows."""
    folder = root.child("questions")
    for start in range(0, num_questions, QUESTIONS_PER_FILE):
        end = min(num_questions, start + QUESTIONS_PER_FILE)
        table = question_table([numbered_question(number) for number in range(start, end)])
        folder.write_table(f"questions-{start:09d}.parquet", table)
        _write_parts(root.child("paths"), table, start)
    return Questions(folder, ("train",))


def _write_parts(folder: Folder, questions: pa.Table, first: int) -> None:
    path = {"path_id": "p", "reasoning": "It is \\boxed{72}.", "verdict": "correct"}
    for start in range(0, questions.num_rows, ROWS_PER_PART):
        rows = [
            row
            | {"attempt": 0, "num_paths": 1, "num_accepted": 1, "num_failed": 0, "paths": [path]}
            for number, row in enumerate(questions.slice(start, ROWS_PER_PART).to_pylist(), start)
            if (first + number) % MISSING_EVERY
        ]
        chunk = folder.child(f"{PARTS}/0-a/{first + start:09d}")
        PartWriter(chunk, PATHS_SCHEMA).write(rows)


def timed_plan(root: Folder, questions: Questions) -> tuple[float, OpenWork]:
    """Seconds to plan the next execution; the parts are not changed."""
    started = time.monotonic()
    plan = plan_job(
        root.child("paths"),
        PATHS_SCHEMA,
        questions,
        {},
        execution=f"1-{time.monotonic_ns()}",
        num_slots=8,
        smallest=8,
        max_attempts=3,
    )
    return time.monotonic() - started, plan


def measure(root: Folder, num_questions: int) -> dict[str, Any]:
    """Sizes and seconds, in the order in which they were measured."""
    questions = write_run(root, num_questions)
    paths = root.child("paths")
    started = time.monotonic()
    num_parts = len(Ledger.read(paths).files)
    read_parts_s = time.monotonic() - started
    whole_parts_s = _seconds(lambda: Ledger.read(paths, whole=True))
    compact_s = _seconds(lambda: compact(paths, PATHS_SCHEMA))
    resume_s, plan = timed_plan(root, questions)
    assert plan.num_open == len(range(0, num_questions, MISSING_EVERY))
    paths.child(PARTS).delete()
    step = Step("paths", paths, {})
    commit_s = _seconds(step.commit)
    manifest = step.manifest() or {}
    listing_s = _seconds(lambda: wrong_files(paths, manifest))
    contents_s = _seconds(lambda: damaged_files(paths, manifest["files"]))
    return {
        "questions": num_questions,
        "part_files": num_parts,
        "read_parts_s": read_parts_s,
        "whole_parts_s": whole_parts_s,
        "compact_s": compact_s,
        "files": len(Ledger.read(paths).files),
        "resume_s": resume_s,
        "mib": sum(paths.sizes().values()) / 2**20,
        "commit_s": commit_s,
        "check_names_and_sizes_s": listing_s,
        "check_contents_s": contents_s,
        "left_to_do": plan.num_open,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def _seconds(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true", help="a JSON object as the last line")
    options = parser.parse_args()
    scratch = tempfile.mkdtemp(prefix="resume-")
    try:
        facts = measure(Folder.open(scratch), options.questions)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for name, value in facts.items():
        print(f"{name:>24}  {value:,.2f}" if isinstance(value, float) else f"{name:>24}  {value:,}")
    if options.json:
        print(json.dumps({**facts, "machine": machine_facts()}))


if __name__ == "__main__":
    main()
