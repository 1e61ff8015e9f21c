"""The `questions` step: the questions of a run, which are read again only after a change.

A run's folder contains::

    questions-<extent>/questions.parquet   the questions
    questions-<extent>/overlaps/           which questions overlap; then manifest.json
    questions.json                         what they were read from, and facts for the driver

Reading a million questions takes a minute or two and about a GiB of memory. They are read in a
subprocess, so that its memory is returned to the system. A driver that continues a run reads none
of them: while the config and the files match `questions.json`, its facts are valid.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.errors import InputError, StorageError
from cluster.inference.progress import format_seconds
from cluster.settings import fingerprint, versioned
from cluster.store.folder import Folder
from cluster.store.step import Step, claim_run_folder, is_intact
from cluster.subprocesses import run_apart
from cluster.terminal import ProgressLine, say
from evaluation.extraction.custom_grader import is_file
from evaluation.grader import GRADER_VERSION
from evaluation.question import SPLITS
from pipelines.config import Config
from pipelines.questions.loading import (
    QuestionFacts,
    QuestionSettings,
    load_questions,
    overlaps_by_rule,
)

QUESTIONS_FILE = "questions.parquet"
OVERLAPS = "overlaps"
"""A subfolder, because the Parquet files directly in the step's folder are its questions."""
FACTS_FILE = "questions.json"

VERSION = 2
"""To be raised when the same files give other questions, or the step's folder has other tables:
they are then read again into another folder."""


def content(questions: QuestionFacts) -> dict[str, Any]:
    """The questions themselves: equal questions are the same step, whatever they come from."""
    return versioned({"questions": questions.extent(*SPLITS)}, VERSION)


def step_of(run: Folder, questions: QuestionFacts) -> Step:
    """The step in a run's folder that contains these questions."""
    return Step.below(run, "questions", content(questions))


def make(config: Config, run: Folder) -> QuestionFacts:
    """Claim the run's folder and store its questions, in a subprocess that frees its memory.

    Raises `InputError` for an invalid question, in which case nothing is left behind, and
    `StorageError` when the folder cannot be written.
    """
    every_s = config.cluster.progress_every_s
    facts = run_apart(store_questions, config.questions, run, config.run, every_s)
    say(summary(facts))
    return facts


def summary(questions: QuestionFacts) -> str:
    """A line for each dataset and split, and for each dataset or row that was skipped."""
    lines = [
        f"questions: {c['dataset']}/{c['split']} ({c['domain']}): {c['num_kept']} kept of "
        f"{c['num_read']} read, {c['num_dropped_duplicate']} duplicates and "
        f"{c['num_dropped_overlap']} overlaps dropped{overlaps_by_rule(c)}"
        for c in questions.counts
    ]
    lines += [f"warning: {sentence}" for sentence in questions.shortfalls()]
    for name, rows in questions.wrong_rows.items():
        lines += [f"questions: {name}: a row is SKIPPED: {why}" for why in rows]
    lines += [f"questions: {name} is SKIPPED: {why}" for name, why in questions.broken.items()]
    return "\n".join(lines)


def store_questions(
    settings: QuestionSettings, run: Folder, name: str, progress_every_s: float
) -> QuestionFacts:
    """Load the questions of a run and finish its `questions` step, unless it is still valid.

    The folder becomes that of the run once the questions are valid. Raises `InputError` as
    `load_questions` does, and when the folder belongs to something else or cannot be read, and
    `StorageError` when it cannot be written.
    """
    origin = questions_origin(settings)
    with _keeping(run):
        known = _known_facts(run, origin)
    if known:
        return known
    loaded = load_questions(settings, _Progress(progress_every_s))
    facts = loaded.facts()
    stored = step_of(run, facts)
    with _keeping(run):
        claim_run_folder(run, name)
        if not is_intact(stored):
            stored.folder.child(OVERLAPS).write_table("overlaps.parquet", loaded.overlaps)
            stored.folder.write_table(QUESTIONS_FILE, loaded.table)
            made = [f"{OVERLAPS}/overlaps.parquet", QUESTIONS_FILE]
            kept = dataclasses.asdict(facts)
            stored.commit(made=made, num_questions=loaded.table.num_rows, **kept)
        origin_and_facts = {"origin": origin, "facts": dataclasses.asdict(facts)}
        seal = {"fingerprint": fingerprint(origin_and_facts)}
        run.write_json(FACTS_FILE, origin_and_facts | seal)
    return facts


@contextmanager
def _keeping(run: Folder) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise InputError(f"the run folder {run.uri} cannot be used: {error}") from error


def _known_facts(run: Folder, origin: str | None) -> QuestionFacts | None:
    """The facts that a run has stored, if nothing they were made from has changed."""
    stored = run.read_json(FACTS_FILE)
    if origin is None or not isinstance(stored, dict) or stored.get("origin") != origin:
        return None
    if stored.pop("fingerprint", None) != fingerprint(stored):  # damaged, or an earlier version's
        return None
    facts = QuestionFacts(**stored["facts"])
    if "dev" not in facts.extents:  # an earlier version's
        return None
    # What could not be loaded may work by now: a hub answers again, or a grader can be imported.
    return facts if not facts.broken and is_intact(step_of(run, facts)) else None


def questions_origin(settings: QuestionSettings) -> str | None:
    """A fingerprint of everything the questions follow from, or None if that is not available.

    It exists for files, by their content, and for generated questions. A hub may change, and only
    the reader of a known task knows which files the task has.
    """
    try:
        content = [d.source.digest(settings.folder) for d in settings.datasets.values()]
    except InputError:
        return None  # the reader reports it better
    if None in content:
        return None
    versions = [VERSION, GRADER_VERSION]
    graders = [text for d in settings.datasets.values() if (text := d.own_grader) and is_file(text)]
    given = [settings.model_dump(mode="json"), content, versions]
    return fingerprint(*given, *([graders] if graders else []))


class _Progress:
    """Shows how many questions of a dataset were read, at most once per interval."""

    def __init__(self, every_s: float) -> None:
        self._line = ProgressLine(every_s, sys.stdout)
        self._began = time.monotonic()

    def __call__(self, dataset: str, num_read: int) -> None:
        after = format_seconds(time.monotonic() - self._began)
        self._line.show(f"questions: {dataset}: {num_read} read | {after}")
