"""The record of the reads of test: a small file in the run's folder for each one, never changed.

test_reads/000001.json::

    {"at": "2026-11-30T04:12:09Z", "config": "config-0f3a9c1b2d4e.yaml", "round": 0,
     "dataset": null, "num_questions": 200, "scores": "round_0/scores-5b0c6f1d2a9e"}

A read is a table of test questions that the command `run` prints, also one that it prints again.
What matters is of how many models test was read: each one after the first was, or could have been,
chosen by what test showed.
"""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

from cluster.events import record
from cluster.store.folder import Folder
from pipelines.config import Config
from pipelines.stored_run import config_file_of

TEST_READS = "test_reads"


def record_test_read(config: Config, run: Folder, **facts: Any) -> None:
    """Add a read of test to the record of the run and to its events."""
    facts = {"config": config_file_of(config), **facts}
    record("test_read", **facts)
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    data = json.dumps({"at": at, **facts}, indent=1).encode()
    folder = run.child(TEST_READS)
    first = len(folder.file_names(".json")) + 1
    next(n for n in itertools.count(first) if folder.create(f"{n:06d}.json", data))


def reads_of_test(run: Folder) -> list[dict[str, Any]]:
    """All reads of test that are recorded, in their order."""
    folder = run.child(TEST_READS)
    return [folder.read_json(name) or {} for name in sorted(folder.file_names(".json"))]


def describe_reads(reads: list[dict[str, Any]]) -> str:
    """One sentence on how often test was read."""
    if not reads:
        return "test was not read"
    tables, times = len({each.get("scores") for each in reads}), len(reads)
    return (
        f"test was read {times} time{'s' * (times != 1)}, of {tables} "
        f"model{'s' * (tables != 1)}, last at {reads[-1].get('at')}"
    )
