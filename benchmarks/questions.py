"""The time to begin with many questions, and to continue with them.

    python -m benchmarks.questions --questions 1000 100000 1000000

For each number, it writes a JSONL file of this many questions and makes the run's first step from
it twice, as the driver does, in a subprocess.

* `first_s`: reading, splitting and storing them; `again_s`: finding that nothing has changed
* `driver_peak_gib`: the largest resident memory of the driver so far; `reader_peak_gib`: of the
  subprocess that reads
* `stored_mib`: the step's Parquet file
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_facts
from cluster.store.folder import Folder
from cluster.subprocesses import run_apart
from pipelines.questions.loading import QuestionSettings
from pipelines.steps.questions import QUESTIONS_FILE, step_of, store_questions

TEXT = (
    "A shop sold {lamps} lamps on Monday and half as many on Tuesday, when a delivery came late "
    "and only the lamps of the window were left. How many did it sell, if order number "
    "{order} is left out?"
)


def write_questions(path: Path, number: int) -> None:
    """Write this many different questions of about 200 characters each."""
    with path.open("w") as stream:
        for order in range(number):
            text = TEXT.format(lamps=2 * (order % 50), order=order)
            row = {"id": f"q{order}", "question": text, "answer": 3 * (order % 50)}
            stream.write(json.dumps(row) + "\n")


def settings_of(folder: Path) -> QuestionSettings:
    """All of them are used for training, except for a dev split of one in a hundred."""
    columns = {"answer_type": None, "choices": None, "aliases": None, "grader_data": None}
    source = {"kind": "files", "train": "questions.jsonl", "answer_type": "number"}
    dataset = {"source": source | {"columns": columns}, "dev_share": 0.01}
    tree = {"folder": str(folder), "datasets": {"many": dataset}}
    return QuestionSettings.model_validate_json(json.dumps(tree))


def peak_gib(whose: int) -> float:
    """The largest resident memory of this process, or of its finished subprocesses."""
    return round(resource.getrusage(whose).ru_maxrss / 2**20, 3)


def measure(number: int) -> dict[str, Any]:
    """The figures for one number of questions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_questions(folder / "questions.jsonl", number)
        settings, run = settings_of(folder), Folder.open(str(folder / "run"))
        times = []
        for _ in range(2):
            began = time.monotonic()
            facts = run_apart(store_questions, settings, run, "questions", 10.0)
            times.append(round(time.monotonic() - began, 1))
        step = step_of(run, facts)
        return {
            "questions": number,
            "kept": sum(facts.num_kept("train", "dev").values()),
            "first_s": times[0],
            "again_s": times[1],
            "questions_per_s": round(number / times[0]),
            "driver_peak_gib": peak_gib(resource.RUSAGE_SELF),
            "reader_peak_gib": peak_gib(resource.RUSAGE_CHILDREN),
            "stored_mib": round(step.folder.num_bytes([QUESTIONS_FILE]) / 2**20, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    options = parser.parse_args()
    results = [measure(number) for number in options.questions]
    print(json.dumps({"benchmark": "questions", "results": results, "machine": machine_facts()}))


if __name__ == "__main__":
    main()
