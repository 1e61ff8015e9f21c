"""Reads the records of a run one after another: all paths, then the held-out questions.

Of the paths a few dozen questions are in memory at a time, so a run of any size can be read, and
also one that is not finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from evaluation.predictions import Prediction
from pipelines.analysis.lineage import steps_of, tokenizer_of
from pipelines.analysis.overview import current_ledger
from pipelines.analysis.row_batches import row_batches
from pipelines.report.paths.records import Record, Selected, answers_record, path_record
from pipelines.report.paths.selection import Selection
from pipelines.stored_run import StoredRun


def path_records(run: StoredRun, name: str) -> Iterator[Record]:
    """The records of all paths of a run that is shown by this name. Raises `DamagedFileError`."""
    read_last = (run.config.get("examples") or {}).get("read_last") or ()
    tokenizer = tokenizer_of(run)
    for step in steps_of(run, "paths"):
        selection = Selection(run.beside(step, "examples"), tokenizer)
        for rows in row_batches(current_ledger(run.folder.child(step))):
            ids = [path["path_id"] for row in rows for path in row["paths"] or ()]
            selected = selection.of(ids)
            for row in rows:
                for path in row["paths"] or ():
                    found = selected.get(path["path_id"], Selected())
                    yield path_record(row, path, found, name, read_last)


# --- held-out questions ------------------------------------------------------------------------


def answer_records(run: StoredRun, name: str) -> Iterator[Record]:
    """The records of the held-out questions that have an answer, judged by today's grader."""
    steps = steps_of(run, "predictions")
    if not steps:
        return
    tuned = {step.rpartition("-")[0]: _answers_of(run, step) for step in steps[1:]}
    first = steps[0].rpartition("-")[0]
    seen: set[str] = set()
    for prediction in _predictions(run, steps[0]):
        question = prediction.question
        seen.add(question.question_id)
        later = {s: m[question.question_id] for s, m in tuned.items() if question.question_id in m}
        yield answers_record(question, {first: prediction, **later}, name)
    for step, answers in tuned.items():  # a dataset may have been trained alone
        for question_id in sorted(answers.keys() - seen):
            seen.add(question_id)
            own = {s: m[question_id] for s, m in tuned.items() if question_id in m}
            yield answers_record(own[step].question, own, name)


def _predictions(run: StoredRun, step: str) -> Iterator[Prediction]:
    for rows in row_batches(current_ledger(run.folder.child(step))):
        for row in rows:
            yield replace(Prediction.from_row(row), samples=()).graded()


def _answers_of(run: StoredRun, step: str) -> Mapping[str, Prediction]:
    return {each.question.question_id: each for each in _predictions(run, step)}
