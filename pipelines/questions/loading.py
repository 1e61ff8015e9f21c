"""The questions of a run: loaded or generated, split into train, dev and test, and deduplicated.

A short example of what `load_questions` returns for one dataset::

    table: question_id          dataset  split  ... question_fingerprint
           gsm8k/train/00042    gsm8k    train  ... 5b0c6f1d2a9e7c34
    counts = [{"dataset": "gsm8k", "split": "train", "domain": "in_domain", "num_read": 7473,
               "num_dropped_duplicate": 1, "num_dropped_overlap": 45, "num_wanted": 800,
               "num_kept": 800, "overlaps": {"exact": 2, "words": 7, "masked": 36},
               "commonest_answer_share": 0.02}, ...]

No question is in two splits of a run, whichever datasets they belong to: a question is kept in test
before dev, and in dev before train. Two questions are the same if their normalized texts are equal,
or differ only in the order of their options (21 of OpenBookQA's held-out questions are in its train
split that way). This is decided on complete files, before any limit, so raising a limit can neither
leak a test question nor change what was chosen before: limits take a prefix of a fixed order.

Training questions that partly overlap with a held-out one are also dropped
(`pipelines.questions.held_out`), before anything is generated for them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from cluster.errors import InputError
from cluster.settings import EXTENT, OPERATIONAL, Settings
from evaluation.extraction.custom_grader import read_grader
from evaluation.question import (
    QUESTION_TABLE_SCHEMA,
    SPLITS,
    Domain,
    Question,
    Split,
    question_table,
)
from pipelines.questions.held_out import EXACT, OVERLAP_SCHEMA, Compared, HeldOut
from pipelines.questions.sources.files import FileSource
from pipelines.questions.sources.reasoning_gym import ReasoningGymSource
from pipelines.questions.sources.source import DEV_SHARE, TEST_SHARE, Asked, Ordered, Source
from pipelines.questions.sources.tasks import TaskSource
from pipelines.questions.splits import ROWS_PER_BATCH, LoadedSplit, identity, pieces

Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
Limit = Annotated[pydantic.NonNegativeInt | None, EXTENT]
Budget = Annotated[pydantic.PositiveInt | None, EXTENT]

ROWS_AS_OBJECTS = 1_000


class DatasetSettings(Settings):
    """One dataset: where it comes from, what it is used for, and how much of it is used."""

    source: FileSource | ReasoningGymSource | TaskSource = pydantic.Field(discriminator="kind")
    """Files, a family of generated questions, or a task that is known by name."""

    domain: Domain = pydantic.Field(default_factory=lambda values: _domain_of(values["source"]))
    """`out_of_domain` is only used for evaluation and has no train split. By default it is the
    task's domain, and `in_domain` for all other sources."""

    num_train: Limit = None
    """Limit on the training questions of files or a task; null uses all. For generated questions it
    is the exact number."""

    num_dev: Limit = None
    """The same for dev."""

    num_test: Limit = None
    """The same for test."""

    dev_share: Share = DEV_SHARE
    """Files and tasks: the share of train that becomes dev if there is no dev split."""

    test_share: Share = TEST_SHARE
    """Files and tasks: the share of train that becomes test if there is no test split."""

    grader: str | None = None
    """A custom grader for all its questions, as `folder/file.py:function`, or as
    `package.module:function` of an installed package (see docs/EXTENDING.md). Null grades the
    answers by their type."""

    licence: Annotated[str | None, OPERATIONAL] = None
    """The licence of its questions, for the cards of `regenesis export`. Null: that of the
    benchmark; not stated for files."""

    publish: Annotated[bool | None, OPERATIONAL] = None
    """Whether `regenesis export` may write its questions, and a model that was trained on them.
    Null: unless the benchmark is known to forbid it."""

    weight: Annotated[float, OPERATIONAL, pydantic.Field(gt=0)] = 1.0
    """How often its questions are processed, relative to the other datasets: with 2.0 twice as
    often as with 1.0. Every dataset advances from the start, whatever its weight."""

    max_generated_tokens: Budget = None
    """Approximate limit on the tokens generated for its training questions in each round: once it
    is reached, no further question of the dataset is begun. Null means no limit."""

    max_accepted_paths: Budget = None
    """The same for right paths: once there are this many, no further training question is begun."""

    @pydantic.field_validator("grader")
    @classmethod
    def _can_be_imported(cls, grader: str | None) -> str | None:
        if grader is not None:
            read_grader(grader)
        return grader

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> DatasetSettings:
        if self.domain == "out_of_domain" and self.num_train:
            raise ValueError("out_of_domain has no train; remove num_train")
        for name in ("max_generated_tokens", "max_accepted_paths"):
            if self.domain == "out_of_domain" and getattr(self, name):
                raise ValueError(f"out_of_domain has no train; remove {name}")
        self.source.check(self.asked("", []))
        return self

    @property
    def own_grader(self) -> str:
        """The grader as its questions carry it; empty where there is none. Raises `InputError`."""
        return read_grader(self.grader) if self.grader else ""

    @property
    def is_labelled(self) -> bool:
        """Whether its questions come with right answers."""
        return self.source.is_labelled

    def asked(self, name: str, wrong_rows: list[str]) -> Asked:
        """The request of a dataset to its source, which appends wrong rows to the list."""
        return Asked(
            dataset=name,
            domain=self.domain,
            limits={split: self.limit(split) for split in SPLITS},
            dev_share=self.dev_share,
            test_share=self.test_share,
            wrong_rows=wrong_rows,
        )

    def limit(self, split: Split) -> int | None:
        """The limit on the questions of a split; None uses all."""
        limits = {"train": self.num_train, "dev": self.num_dev, "test": self.num_test}
        return limits[split]


def _domain_of(source: Source) -> Domain:
    return source.domain


class QuestionSettings(Settings):
    """The questions of a run."""

    folder: Annotated[str, OPERATIONAL] = "."
    """The folder or URI that relative paths of question files start from."""

    datasets: Annotated[dict[str, DatasetSettings], EXTENT]
    """Datasets by name; the name is part of every question's id."""

    on_error: Annotated[Literal["stop", "skip"], OPERATIONAL] = "stop"
    """What happens if a dataset cannot be loaded: stop ends the run with the reason; skip continues
    with the others, and the dataset joins once it is fixed and the command is repeated."""

    overlaps: Literal["drop", "keep"] = "drop"
    """Training questions that partly overlap with a held-out one (docs/QUESTIONS.md): drop or keep
    them. They are counted and stored in both cases; equal ones are always dropped."""

    @pydantic.field_validator("datasets")
    @classmethod
    def _are_named(cls, datasets: dict[str, DatasetSettings]) -> dict[str, DatasetSettings]:
        if not datasets:
            raise ValueError("there is no dataset; name at least one")
        for name in datasets:
            if not re.fullmatch(r"[a-z0-9_]+", name):
                raise ValueError(f"the name {name!r} may only contain a-z, 0-9 and _; rename it")
        return datasets


class SplitCounts(TypedDict):
    """What happened to the questions of one split of one dataset."""

    dataset: str
    split: Split
    domain: Domain
    num_read: int
    num_dropped_duplicate: int
    num_dropped_overlap: int
    """Equal to a held-out question or, unless `questions.overlaps` is keep, partly overlapping."""
    num_wanted: int | None
    """The limit in the config; None means all."""
    num_kept: int
    overlaps: dict[str, int]
    """How many overlap with a held-out question, by the first rule that finds them."""
    commonest_answer_share: float


def overlaps_by_rule(counts: SplitCounts) -> str:
    """` (2 exact, 7 words)`: the overlaps with held-out questions by rule, or an empty text."""
    found = [f"{number} {rule}" for rule, number in counts["overlaps"].items() if number]
    return f" ({', '.join(found)})" if found else ""


@dataclass(frozen=True)
class QuestionFacts:
    """What a driver has to know about the questions of a run: numbers and names, no questions."""

    extents: Mapping[str, str]
    """By splits, joined by a comma: the `QuestionSet.extent` of their questions."""

    counts: list[SplitCounts]
    """One entry for each split with questions, of each dataset that was loaded."""

    broken: Mapping[str, str]
    """The datasets that were skipped, each with a sentence about what is wrong with it."""

    wrong_rows: Mapping[str, list[str]]
    """The rows that `source.max_wrong_rows` allowed to be skipped, by dataset: a sentence each."""

    def extent(self, *splits: Split) -> str:
        """The work of a step over these splits: train, dev, dev with test, or all."""
        return self.extents[",".join(splits)]

    def shortfalls(self) -> list[str]:
        """A sentence for each limit of the config that exceeds the available questions."""
        return [
            f"questions.datasets.{c['dataset']}.num_{c['split']} is {c['num_wanted']}, "
            f"but there are only {c['num_kept']} questions"
            for c in self.counts
            if c["num_wanted"] is not None and c["num_kept"] < c["num_wanted"]
        ]

    def num_kept(self, *splits: Split) -> dict[str, int]:
        """How many questions of some splits are used, for every dataset."""
        kept: dict[str, int] = {}
        for count in self.counts:
            if count["split"] in splits and count["num_kept"]:
                kept[count["dataset"]] = kept.get(count["dataset"], 0) + count["num_kept"]
        return kept


@dataclass(frozen=True)
class QuestionSet:
    """The questions by dataset, split and order of choice, and what happened to the others."""

    table: pa.Table
    """Rows of `QUESTION_TABLE_SCHEMA`."""

    counts: list[SplitCounts]
    broken: dict[str, str] = field(default_factory=dict)
    wrong_rows: dict[str, list[str]] = field(default_factory=dict)
    """As in `QuestionFacts`."""
    overlaps: pa.Table = field(default_factory=OVERLAP_SCHEMA.empty_table)
    """Which question overlaps with which held-out one: rows of `OVERLAP_SCHEMA`."""

    def facts(self) -> QuestionFacts:
        """Everything that is known about the questions, without the questions."""
        asked: tuple[tuple[Split, ...], ...] = (("train",), ("dev",), ("dev", "test"), SPLITS)
        extents = {",".join(splits): self.extent(*splits) for splits in asked}
        return QuestionFacts(extents, self.counts, self.broken, self.wrong_rows)

    def split(self, *splits: Split) -> pa.Table:
        """The rows of some splits, in order. Batches of a single split are shared, not copied."""
        wanted = pa.array(splits, pa.string())
        batches = [
            _filter(batch, pc.is_in(batch.column("split"), wanted))
            for batch in self.table.to_batches()
        ]
        filled = [batch for batch in batches if batch.num_rows]
        return pa.Table.from_batches(filled, QUESTION_TABLE_SCHEMA)

    def questions(self, *splits: Split) -> Iterator[Question]:
        """The questions of some splits, created one at a time."""
        for batch in self.split(*splits).to_batches(max_chunksize=ROWS_AS_OBJECTS):
            yield from map(Question.from_row, batch.to_pylist())

    def extent(self, *splits: Split) -> str:
        """The work of a step over these splits: 12 hex digits over ids and fingerprints.

        It does not depend on the order of the questions or on the settings that selected them.
        """
        names = ["question_id", "question_fingerprint"]
        pairs = self.split(*splits).select(names).sort_by([(name, "ascending") for name in names])
        digest = hashlib.sha256()
        for batch in pairs.to_batches(max_chunksize=ROWS_PER_BATCH):
            columns = (column.to_pylist() for column in batch.columns)
            # One JSON list per line, because a user's ids may contain any separator.
            lines = [json.dumps(pair) + "\n" for pair in zip(*columns, strict=True)]
            digest.update("".join(lines).encode())
        return digest.hexdigest()[:12]


def _filter(batch: pa.RecordBatch, mask: pa.BooleanArray) -> pa.RecordBatch:
    return batch if pc.all(mask).as_py() else batch.filter(mask)


def load_questions(
    settings: QuestionSettings, on_progress: Callable[[str, int], None] | None = None
) -> QuestionSet:
    """Load, split and choose the questions of a run; the same settings give the same table.

    It is cheap enough to run before any model is loaded, so that bad input is found early.
    `on_progress` is called with a dataset and its number of questions read, every ten thousand.
    Raises `InputError` for a dataset that cannot be loaded; if `settings.on_error` is `skip`, only
    when nothing is left to train on because of it.
    """
    broken: dict[str, str] = {}
    wrong: dict[str, list[str]] = {name: [] for name in settings.datasets}
    loaded: dict[str, list[LoadedSplit]] = {}
    for name, dataset in settings.datasets.items():
        with _setting_aside(name, settings, broken):
            ordered = _ordered_questions(dataset, settings.folder, dataset.asked(name, wrong[name]))
            loaded[name] = _load_dataset(name, dataset, ordered, on_progress)
    # A dataset that is skipped later because of its train split still removes its held-out
    # questions from the others' train, so that they train on the same questions whether or not it
    # is fixed.
    held_out = HeldOut(itertools.chain.from_iterable(loaded.values()))
    chosen: list[_Chosen] = []
    for name in list(loaded):
        with _setting_aside(name, settings, broken):
            # Popped, so that unused questions are freed before the next dataset.
            parts = loaded.pop(name)
            chosen += [_choose(part, settings, held_out) for part in parts]
    counts = [each.counts for each in chosen]
    _check_what_is_left(settings, counts, broken)
    left_out = {name: rows for name, rows in wrong.items() if rows and name not in broken}
    table = pa.concat_tables([QUESTION_TABLE_SCHEMA.empty_table(), *(c.table for c in chosen)])
    overlaps = pa.concat_tables([OVERLAP_SCHEMA.empty_table(), *(c.overlaps for c in chosen)])
    return QuestionSet(table, counts, broken, left_out, overlaps)


@contextmanager
def _setting_aside(name: str, settings: QuestionSettings, broken: dict[str, str]) -> Iterator[None]:
    """Record an `InputError` about a dataset in `broken` if the config says to skip it."""
    try:
        yield
    except InputError as error:
        if settings.on_error == "stop" or len(settings.datasets) == 1:
            raise
        # A name in a file may contain half a surrogate pair, which cannot be written anywhere.
        broken[name] = str(error).encode(errors="backslashreplace").decode()


def _check_what_is_left(
    settings: QuestionSettings, counts: Iterable[SplitCounts], broken: Mapping[str, str]
) -> None:
    """Raise `InputError` when the broken datasets leave nothing, or nothing to train on."""
    has_train = any(c["split"] == "train" and c["num_kept"] for c in counts)
    no_dataset = len(broken) == len(settings.datasets)
    lost_train = any(settings.datasets[name].domain == "in_domain" for name in broken)
    if no_dataset or (lost_train and not has_train):
        what = "no dataset is left" if no_dataset else "no dataset to train on is left"
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in broken.items())
        raise InputError(f"questions.datasets: {what}; fix or remove the broken ones:{reasons}")


def _load_dataset(
    name: str,
    settings: DatasetSettings,
    ordered: Iterator[tuple[int, Question]],
    on_progress: Callable[[str, int], None] | None,
) -> list[LoadedSplit]:
    """The splits of one dataset that have questions, train first."""
    orders, identities = array("Q"), array("Q")
    tables = [QUESTION_TABLE_SCHEMA.empty_table()]
    while batch := list(itertools.islice(ordered, ROWS_PER_BATCH)):
        tables.append(question_table([question for _, question in batch]))
        orders.extend(order for order, _ in batch)
        identities.extend(identity(question) for _, question in batch)
        if on_progress is not None:
            on_progress(name, len(orders))
    rows = pa.concat_tables(tables)
    parts = []
    for split in SPLITS:
        of_split = np.flatnonzero(pc.equal(rows.column("split"), split).to_numpy())
        chosen = of_split[np.argsort(np.frombuffer(orders, np.uint64)[of_split], kind="stable")]
        part = LoadedSplit(
            dataset=name,
            split=split,
            limit=settings.limit(split),
            num_read=len(of_split),
            is_generated=settings.source.is_generated,
            rows=rows,
            chosen=chosen,
            identities=np.frombuffer(identities, np.uint64)[chosen],
        )
        if part.num_read:
            parts.append(part.distinct())
    return parts


def _ordered_questions(settings: DatasetSettings, folder: str, asked: Asked) -> Iterator[Ordered]:
    """The questions of a dataset in their final splits, with the grader of the dataset."""
    own = settings.own_grader
    for order, question in settings.source.read(folder, asked):
        yield order, replace(question, grader=own) if own else question


@dataclass(frozen=True)
class _Chosen:
    """The rows of a dataset's split that are used, and what happened to the others."""

    table: pa.Table
    overlaps: pa.Table
    counts: SplitCounts


def _by_rule(compared: Compared) -> str:
    return ", ".join(f"{len(places)} {rule}" for rule, places in compared.places.items())


def _choose(part: LoadedSplit, settings: QuestionSettings, held_out: HeldOut) -> _Chosen:
    """Take the questions that overlap with no held-out question, up to the limit."""
    compared = held_out.compare(part)
    dropping = compared.places if settings.overlaps == "drop" else {EXACT: compared.places[EXACT]}
    dropped = np.concatenate([*dropping.values()])
    free = np.delete(part.chosen, dropped)
    if part.split == "train" and not len(free) and part.limit != 0:
        raise InputError(
            f"questions.datasets.{part.dataset}: all of its {len(part.chosen)} training questions "
            "are also in a dev or test split or overlap with one of its questions "
            f"({_by_rule(compared)}); give train other questions, or set "
            "questions.overlaps: keep, which retains partial overlaps"
        )
    rows = [QUESTION_TABLE_SCHEMA.empty_table(), *pieces(part.rows, free[: part.limit])]
    table = pa.concat_tables(rows)
    num_commonest = pc.max(table.column("answer").value_counts().field("counts")).as_py() or 0
    counts: SplitCounts = {
        "dataset": part.dataset,
        "split": part.split,
        "domain": settings.datasets[part.dataset].domain,
        "num_read": part.num_read,
        "num_dropped_duplicate": part.num_read - len(part.chosen),
        "num_dropped_overlap": len(dropped),
        "num_wanted": part.limit,
        "num_kept": table.num_rows,
        "overlaps": {rule: len(places) for rule, places in compared.places.items()},
        "commonest_answer_share": num_commonest / max(table.num_rows, 1),
    }
    return _Chosen(table, compared.table, counts)
