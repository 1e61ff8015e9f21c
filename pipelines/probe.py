"""The probe of `regenesis.py plan`: what the run's first rows say of all the others.

The probed questions are questions of the run, and their rows stay: a plan costs nothing but the
time it takes. The measured speed is kept beside them, so that a second plan generates nothing.
"""

from __future__ import annotations

from typing import Any

from cluster.ledger import Ledger
from cluster.schedule import Questions
from cluster.storage import Folder
from pipelines.estimate import ProbedPredictions, ProbedQuestion

PROBE_FILE = "probe.json"
NUM_PROBED = 20


def read_probed_paths(
    folder: Folder, questions: Questions, num_stages: int
) -> list[ProbedQuestion]:
    """Every question of the `paths` step that has its row. Runs as a task."""
    ledger = Ledger.read(folder).of(questions.keys())
    num_bytes = ledger.num_bytes() // max(1, ledger.index.num_rows)
    return [_probed(row, num_bytes, num_stages) for row in ledger.index.to_pylist()]


def _probed(row: dict[str, Any], num_bytes: int, num_stages: int) -> ProbedQuestion:
    return ProbedQuestion(
        dataset=row["dataset"],
        num_paths=row["num_paths"],
        num_generations=row["num_paths"] * num_stages,
        num_tokens=row["num_tokens"],
        num_prompt_tokens=row["num_prompt_tokens"],
        num_accepted=row["num_accepted"],
        num_bytes=num_bytes,
        num_truncated=row["num_truncated"],
    )


def read_probed_predictions(folder: Folder, questions: Questions) -> ProbedPredictions:
    """Every held-out question that has its answer. Runs as a task."""
    index = Ledger.read(folder).of(questions.keys()).index
    return ProbedPredictions(tuple(n or 0 for n in index.column("num_tokens").to_pylist()))
