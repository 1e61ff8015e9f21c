"""The `questions` step: made by a process that ends with it, and made again only when it changed.

A run's folder holds::

    questions-<extent>/questions.parquet   the questions, then manifest.json
    questions.json                         what they were read from, and the driver's facts of them

A million questions take a minute or two to read and about a GiB of memory. A driver that goes
on with a run has neither to spend: while the config and the files are those of `questions.json`,
the facts in it hold.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

from cluster.errors import InputError
from cluster.progress import format_seconds
from cluster.settings import fingerprint
from cluster.steps import Step, claim_run_folder, is_intact
from cluster.storage import Folder
from evaluation.grader import GRADER_VERSION
from evaluation.question import SPLITS
from evaluation.rows import open_file, resolve
from pipelines.questions import QuestionFacts, QuestionSettings, load_questions
from pipelines.sources.files import FileSource
from pipelines.sources.reasoning_gym import ReasoningGymSource
from pipelines.sources.tasks import TaskSource

QUESTIONS_FILE = "questions.parquet"
FACTS_FILE = "questions.json"

READER_VERSION = 1
"""To be raised when the same files come to other questions."""


def questions_step(run: Folder, questions: QuestionFacts) -> Step:
    """The step below a run's folder that holds these questions."""
    return Step.below(run, "questions", {"questions": questions.extent(*SPLITS)})


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
    loaded = load_questions(settings, _ProgressPrinter(progress_every_s))
    facts = loaded.facts()
    step = questions_step(run, facts)
    with _keeping(run):
        claim_run_folder(run, name)
        if not is_intact(step):
            step.folder.write_table(QUESTIONS_FILE, loaded.table)
            kept = dataclasses.asdict(facts)
            step.commit(made=[QUESTIONS_FILE], num_questions=loaded.table.num_rows, **kept)
        stored = {"origin": origin, "facts": dataclasses.asdict(facts)}
        run.write_json(FACTS_FILE, stored | {"fingerprint": fingerprint(stored)})
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
    # What could not be loaded may be mended by now: a hub that answers, a grader that imports.
    return facts if not facts.broken and is_intact(questions_step(run, facts)) else None


def questions_origin(settings: QuestionSettings) -> str | None:
    """A fingerprint of all that the questions follow from, or None where that is not at hand.

    It is for files, by their content, and for generated questions. A hub may change, and of the
    files of a known task only its own reader knows which they are.
    """
    try:
        content = [_content_of(d.source, settings.folder) for d in settings.datasets.values()]
    except InputError:
        return None  # said better by who reads it
    if None in content:
        return None
    versions = [READER_VERSION, GRADER_VERSION]
    return fingerprint(settings.model_dump(mode="json"), content, versions)


def _content_of(source: FileSource | ReasoningGymSource | TaskSource, folder: str) -> str | None:
    """What a source's questions come from, beside its settings. Raises `InputError`."""
    if isinstance(source, ReasoningGymSource):
        return metadata.version("reasoning-gym")
    if isinstance(source, TaskSource) or source.hub is not None:
        return None
    paths = [path for split in SPLITS for path in source.paths(split)]
    return fingerprint([_hash(resolve(path, folder)) for path in paths])


def _hash(location: str) -> str:
    with open_file(location) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _ProgressPrinter:
    """Prints how many questions of a dataset were read, at most every so many seconds."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._began = self._printed = time.monotonic()

    def __call__(self, dataset: str, num_read: int) -> None:
        now = time.monotonic()
        if now - self._printed >= self._every_s:
            self._printed = now
            after = format_seconds(now - self._began)
            print(f"questions: {dataset}: {num_read} read | {after}", flush=True)
