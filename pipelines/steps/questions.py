"""The `questions` step: the questions of a run, read again only when something changed.

A run's folder holds::

    questions-<extent>/questions.parquet   the questions
    questions-<extent>/overlaps/           which overlaps with which; then manifest.json
    questions.json                         what they were read from, and the driver's facts of them

A million questions take a minute or two to read and about a GiB of memory. They are read in a
subprocess, so that its memory is returned to the system. A driver that goes on with a run reads
none of them: as long as the config and the files are those of `questions.json`, the facts in it
hold.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.errors import InputError
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
"""A folder below, because the Parquet files of the step itself are its questions."""
FACTS_FILE = "questions.json"

VERSION = 2
"""To be raised when the same files come to other questions, or the step's folder to other tables:
then they are read again, into another folder."""


def content(questions: QuestionFacts) -> dict[str, Any]:
    """The questions themselves: whatever led to them, the same ones are the same step."""
    return versioned({"questions": questions.extent(*SPLITS)}, VERSION)


def step_of(run: Folder, questions: QuestionFacts) -> Step:
    """The step below a run's folder that holds these questions."""
    return Step.below(run, "questions", content(questions))


def make(config: Config, run: Folder) -> QuestionFacts:
    """Take the run's folder and store its questions, in a process whose memory is given back.

    Raises `InputError`, and leaves nothing, for a question that cannot be asked.
    """
    every_s = config.cluster.progress_every_s
    facts = run_apart(store_questions, config.questions, run, config.run, every_s)
    say(summary(facts))
    return facts


def summary(questions: QuestionFacts) -> str:
    """A line for each dataset and split, and for each dataset or row that was left out."""
    lines = [
        f"questions: {c['dataset']}/{c['split']} ({c['domain']}): {c['num_kept']} kept of "
        f"{c['num_read']} read, {c['num_dropped_duplicate']} duplicates and "
        f"{c['num_dropped_overlap']} overlaps dropped{overlaps_by_rule(c)}"
        for c in questions.counts
    ]
    lines += [f"warning: {sentence}" for sentence in questions.shortfalls()]
    for name, rows in questions.wrong_rows.items():
        lines += [f"questions: {name}: a row is LEFT OUT: {why}" for why in rows]
    lines += [f"questions: {name} is SET ASIDE: {why}" for name, why in questions.broken.items()]
    return "\n".join(lines)


def store_questions(
    settings: QuestionSettings, run: Folder, name: str, progress_every_s: float
) -> QuestionFacts:
    """Load the questions of a run and finish its `questions` step, unless that is still right.

    The folder becomes that of the run of this name once the questions are good. Raises
    `InputError` as `load_questions` does, and when the folder is another's or cannot be written.
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
    except OSError as error:
        raise InputError(f"the run folder {run.uri} cannot be used: {error}") from error


def _known_facts(run: Folder, origin: str | None) -> QuestionFacts | None:
    """The facts that a run has stored, where nothing changed that they were made from."""
    stored = run.read_json(FACTS_FILE)
    if origin is None or not isinstance(stored, dict) or stored.get("origin") != origin:
        return None
    if stored.pop("fingerprint", None) != fingerprint(stored):  # damaged, or by an earlier version
        return None
    facts = QuestionFacts(**stored["facts"])
    # What could not be loaded may work by now: a hub answers again, a grader can be imported.
    return facts if not facts.broken and is_intact(step_of(run, facts)) else None


def questions_origin(settings: QuestionSettings) -> str | None:
    """A fingerprint of all that the questions follow from, or None where that is not at hand.

    It exists for files, by their content, and for generated questions. A hub may change, and only
    the reader of a known task knows which files that task has.
    """
    try:
        content = [d.source.digest(settings.folder) for d in settings.datasets.values()]
    except InputError:
        return None  # said better by who reads it
    if None in content:
        return None
    versions = [VERSION, GRADER_VERSION]
    graders = [text for d in settings.datasets.values() if (text := d.own_grader) and is_file(text)]
    given = [settings.model_dump(mode="json"), content, versions]
    return fingerprint(*given, *([graders] if graders else []))


class _Progress:
    """Shows how many questions of a dataset were read, at most every so many seconds."""

    def __init__(self, every_s: float) -> None:
        self._line = ProgressLine(every_s, sys.stdout)
        self._began = time.monotonic()

    def __call__(self, dataset: str, num_read: int) -> None:
        after = format_seconds(time.monotonic() - self._began)
        self._line.show(f"questions: {dataset}: {num_read} read | {after}")
