"""The probe of `regenesis.py plan`: what the run's first rows say of all the others.

The probed questions are questions of the run, and their rows stay: a plan costs nothing but the
time it takes. The measured speed is kept beside them, so that a second plan generates nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cluster.ledger import Ledger
from cluster.schedule import Questions
from cluster.storage import Folder
from evaluation.question import Question
from pipelines.estimate import ProbedPredictions, ProbedQuestion
from pipelines.filters import ExampleSettings, Graded, filter_paths
from pipelines.synthesis import grade_path

PROBE_FILE = "probe.json"
NUM_PROBED = 20
MOST_READ = 1_000
"""Finished questions that are looked at, where a run is planned that has many."""


def read_probed_paths(
    folder: Folder, questions: Questions, settings: ExampleSettings, num_stages: int
) -> list[ProbedQuestion]:
    """The questions of the `paths` step that have their row. Runs as a task."""
    ledger = Ledger.read(folder).of(questions.keys())
    ledger = replace(ledger, index=ledger.index.slice(0, MOST_READ))
    num_bytes = ledger.num_bytes() // max(1, ledger.index.num_rows)
    return [_probed(row, settings, num_bytes, num_stages) for row in ledger.rows()]


def _probed(
    row: dict[str, Any], settings: ExampleSettings, num_bytes: int, num_stages: int
) -> ProbedQuestion:
    question = Question.from_row(row)
    paths = row["paths"] or ()
    graded = [path | grade_path(path, question, settings.read_last) for path in paths]
    judged = Graded(question, graded, settings)
    kept, _ = filter_paths(judged)
    return ProbedQuestion(
        dataset=row["dataset"],
        num_paths=row["num_paths"],
        num_generations=row["num_paths"] * num_stages,
        num_tokens=row["num_tokens"],
        num_prompt_tokens=row["num_prompt_tokens"],
        num_accepted=len(judged.right),
        num_kept=len(kept),
        num_bytes=num_bytes,
        num_truncated=row["num_truncated"],
    )


def read_probed_predictions(folder: Folder, questions: Questions) -> ProbedPredictions:
    """Every held-out question that has its answer. Runs as a task."""
    index = Ledger.read(folder).of(questions.keys()).index
    return ProbedPredictions(tuple(n or 0 for n in index.column("num_tokens").to_pylist()))
