"""The questions of a run: read or made, cut into train, dev and test, and told apart by text.

What `load_questions` gives back for one dataset, in short::

    table: question_id          dataset  split  ... question_fingerprint
           gsm8k/train/00042    gsm8k    train  ... 5b0c6f1d2a9e7c34
    counts = [{"dataset": "gsm8k", "split": "train", "domain": "in_domain", "num_read": 7473,
               "num_dropped_duplicate": 1, "num_dropped_overlap": 2, "num_kept": 800,
               "commonest_answer_share": 0.02}, ...]

No question stands in two splits of a run, whichever datasets they belong to: test keeps it before
dev, dev before train. Two questions are the same when their normalized texts are, or differ only
in the order of their options (21 of OpenBookQA's held-out questions stand in its train that way).
That is settled on whole files, before any limit, so raising a limit can neither leak a test
question nor change what was chosen before: limits take a prefix of a fixed order.

A question is a Python object only until the ten thousand of its batch are read; then it is a row
of an Arrow table and two numbers of 8 bytes, one to order it by and one to compare it by. Two of
a million questions share such a number by accident once in 37 million runs.
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
from numpy.typing import NDArray

from cluster.errors import InputError
from cluster.settings import EXTENT, OPERATIONAL, Settings
from evaluation.answers.own_grader import load_grader
from evaluation.question import (
    QUESTION_TABLE_SCHEMA,
    SPLITS,
    Domain,
    Question,
    Split,
    question_table,
)
from pipelines.sources.files import FileSource, read_questions
from pipelines.sources.reasoning_gym import ReasoningGymSource, draw_questions
from pipelines.sources.tasks import TaskSource, read_task_questions

Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
Limit = Annotated[pydantic.NonNegativeInt | None, EXTENT]
Budget = Annotated[pydantic.PositiveInt | None, EXTENT]

GENERATED_SHARE = 0.2
"""The share of a generated stream that is dev, and the share that is test."""

ROWS_PER_BATCH = 10_000
MAX_PIECES = 64
ROWS_AS_OBJECTS = 1_000


class DatasetSettings(Settings):
    """One dataset: where it comes from, what it is for, and how much of it is used."""

    source: FileSource | ReasoningGymSource | TaskSource = pydantic.Field(discriminator="kind")
    """Files, a family of procedural questions, or a task that is known by name."""

    domain: Domain = pydantic.Field(default_factory=lambda values: _domain_of(values["source"]))
    """`out_of_domain` is only ever evaluated on: it has no train. Not given: a task's own domain,
    and `in_domain` for everything else."""

    num_train: Limit = None
    """At most so many training questions of files or a task, null for all; exactly so many
    generated."""

    num_dev: Limit = None
    """The same for dev."""

    num_test: Limit = None
    """The same for test."""

    dev_share: Share = 0.1
    """Files and tasks: the share of train that becomes dev where there is no dev."""

    test_share: Share = 0.0
    """Files and tasks: the share of train that becomes test where there is no test."""

    grader: str | None = None
    """A grader of the user's own for all its questions, as `package.module:function` (see
    docs/GRADING.md). Null: its answers are graded by their type."""

    weight: Annotated[float, OPERATIONAL, pydantic.Field(gt=0)] = 1.0
    """How often its questions come up, relative to the other datasets: with 2.0 twice as often as
    with 1.0. Every dataset advances from the start, whatever its weight."""

    max_generated_tokens: Budget = None
    """About so many tokens are generated for its training questions at most, in each round: once
    reached, no further question of it is begun. Null: no bound."""

    max_accepted_paths: Budget = None
    """The same for right paths: with so many, no further training question of it is begun."""

    @pydantic.field_validator("grader")
    @classmethod
    def _can_be_imported(cls, grader: str | None) -> str | None:
        if grader is not None:
            load_grader(grader)
        return grader

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> DatasetSettings:
        if self.domain == "out_of_domain" and self.num_train:
            raise ValueError("out_of_domain has no train; remove num_train")
        for name in ("max_generated_tokens", "max_accepted_paths"):
            if self.domain == "out_of_domain" and getattr(self, name):
                raise ValueError(f"out_of_domain has no train; remove {name}")
        if isinstance(self.source, ReasoningGymSource):
            self._check_generated()
        elif self.dev_share + self.test_share >= 1:
            raise ValueError("dev_share and test_share leave nothing to train on")
        if isinstance(self.source, FileSource):
            self._check_files(self.source)
        if isinstance(self.source, TaskSource):
            self.source.check_domain(self.domain)
        return self

    @property
    def is_labelled(self) -> bool:
        """Whether its questions come with right answers."""
        return not isinstance(self.source, FileSource) or self.source.columns.answer is not None

    def _check_files(self, source: FileSource) -> None:
        if not self.is_labelled and (self.dev_share or self.test_share):
            raise ValueError(
                "columns.answer is null, so nothing of train can be evaluated on; set dev_share: 0"
            )
        if self.domain == "in_domain" and not source.train:
            raise ValueError("in_domain needs source.train; or set domain to out_of_domain")
        if self.domain == "out_of_domain" and source.train:
            raise ValueError("out_of_domain has no train; remove source.train")
        if not any(source.paths(split) for split in SPLITS):
            raise ValueError("no files; set source.test or source.dev")

    def _check_generated(self) -> None:
        used = SPLITS if self.domain == "in_domain" else SPLITS[1:]
        for split in used:
            if self.limit(split) is None:
                raise ValueError(f"num_{split} is missing; a generated source has no end")
        defaults = type(self).model_fields
        for name in ("dev_share", "test_share"):
            if getattr(self, name) != defaults[name].default:
                raise ValueError(f"{name} is for files; generated splits are set by num_*")

    def given_splits(self) -> tuple[Split, ...]:
        """The splits that the source itself has; the others are carved from train."""
        if isinstance(self.source, TaskSource):
            return self.source.used_splits(self.domain)
        if isinstance(self.source, FileSource):
            source = self.source
            return tuple(split for split in SPLITS if source.paths(split))
        return SPLITS

    def limit(self, split: Split) -> int | None:
        """How many questions of a split are used at most; None is all."""
        limits = {"train": self.num_train, "dev": self.num_dev, "test": self.num_test}
        return limits[split]


def _domain_of(source: FileSource | ReasoningGymSource | TaskSource) -> Domain:
    return source.task.domain if isinstance(source, TaskSource) else "in_domain"


class QuestionSettings(Settings):
    """The questions of a run."""

    folder: Annotated[str, OPERATIONAL] = "."
    """Where relative paths of question files start: a folder or a URI."""

    datasets: Annotated[dict[str, DatasetSettings], EXTENT]
    """Name to dataset; the name is part of every question's id."""

    broken: Annotated[Literal["set_aside", "refuse"], OPERATIONAL] = "set_aside"
    """What becomes of a dataset that cannot be loaded: the run goes on with the others (a mended
    one joins when the command is given again), or is refused."""

    @pydantic.field_validator("datasets")
    @classmethod
    def _are_named(cls, datasets: dict[str, DatasetSettings]) -> dict[str, DatasetSettings]:
        if not datasets:
            raise ValueError("no dataset; name at least one")
        for name in datasets:
            if not re.fullmatch(r"[a-z0-9_]+", name):
                raise ValueError(f"the name {name!r} may only hold a-z, 0-9 and _; rename it")
        return datasets


class SplitCounts(TypedDict):
    """What became of the questions of one split of one dataset."""

    dataset: str
    split: Split
    domain: Domain
    num_read: int
    num_dropped_duplicate: int
    num_dropped_overlap: int
    num_kept: int
    commonest_answer_share: float


@dataclass(frozen=True)
class QuestionFacts:
    """What a driver has to know of the questions of a run: numbers and names, and no question."""

    extents: Mapping[str, str]
    """Splits, joined by a comma, to what `QuestionSet.extent` says of them."""

    counts: list[SplitCounts]
    """One entry for each split that has questions of each dataset that was loaded."""

    broken: Mapping[str, str]
    """The datasets that were set aside, and the sentence that says what is wrong with each."""

    wrong_rows: Mapping[str, list[str]]
    """The rows that `source.max_wrong_rows` let be left out, by dataset: a sentence each."""

    def extent(self, *splits: Split) -> str:
        """What a step over these splits has to cover; one of train, dev with test, and all."""
        return self.extents[",".join(splits)]

    def num_kept(self, *splits: Split) -> dict[str, int]:
        """How many questions of some splits are used, by dataset; none is left out."""
        kept: dict[str, int] = {}
        for count in self.counts:
            if count["split"] in splits and count["num_kept"]:
                kept[count["dataset"]] = kept.get(count["dataset"], 0) + count["num_kept"]
        return kept


@dataclass(frozen=True)
class QuestionSet:
    """The questions by dataset, split and order of choice, and where the others went."""

    table: pa.Table
    """Rows of `QUESTION_TABLE_SCHEMA`."""

    counts: list[SplitCounts]
    broken: dict[str, str] = field(default_factory=dict)
    wrong_rows: dict[str, list[str]] = field(default_factory=dict)
    """As in `QuestionFacts`."""

    def facts(self) -> QuestionFacts:
        """All that is known of the questions but the questions."""
        asked: tuple[tuple[Split, ...], ...] = (("train",), ("dev", "test"), SPLITS)
        extents = {",".join(splits): self.extent(*splits) for splits in asked}
        return QuestionFacts(extents, self.counts, self.broken, self.wrong_rows)

    def split(self, *splits: Split) -> pa.Table:
        """The rows of some splits, in their order. Batches of one split are shared, not copied."""
        wanted = pa.array(splits, pa.string())
        batches = [
            _filter(batch, pc.is_in(batch.column("split"), wanted))
            for batch in self.table.to_batches()
        ]
        filled = [batch for batch in batches if batch.num_rows]
        return pa.Table.from_batches(filled, QUESTION_TABLE_SCHEMA)

    def questions(self, *splits: Split) -> Iterator[Question]:
        """The questions of some splits, made into objects as they are asked for."""
        for batch in self.split(*splits).to_batches(max_chunksize=ROWS_AS_OBJECTS):
            yield from map(Question.from_row, batch.to_pylist())

    def extent(self, *splits: Split) -> str:
        """What a step over these splits has to cover: 12 hex digits over ids and fingerprints.

        The order of the questions does not count, nor do the settings that led to them.
        """
        names = ["question_id", "question_fingerprint"]
        pairs = self.split(*splits).select(names).sort_by([(name, "ascending") for name in names])
        digest = hashlib.sha256()
        for batch in pairs.to_batches(max_chunksize=ROWS_PER_BATCH):
            columns = (column.to_pylist() for column in batch.columns)
            # One JSON list a line, because ids are the user's and may hold any separator.
            lines = [json.dumps(pair) + "\n" for pair in zip(*columns, strict=True)]
            digest.update("".join(lines).encode())
        return digest.hexdigest()[:12]


def _filter(batch: pa.RecordBatch, mask: pa.BooleanArray) -> pa.RecordBatch:
    return batch if pc.all(mask).as_py() else batch.filter(mask)


@dataclass(frozen=True)
class _Loaded:
    """One split of one dataset: distinct questions, in the order a limit takes them."""

    dataset: str
    split: Split
    limit: int | None
    num_read: int
    rows: pa.Table
    """All rows of the dataset as they were read, shared by its splits."""
    chosen: NDArray[np.int64]
    """Where in `rows` the questions stand."""
    identities: NDArray[np.uint64]
    """The same length: what each question is compared by."""


def load_questions(
    settings: QuestionSettings, on_progress: Callable[[str, int], None] | None = None
) -> QuestionSet:
    """Read, make, split and choose the questions of a run; the same settings give the same table.

    Cheap enough to run before any model is loaded, which is where bad input should be found.
    `on_progress` is told a dataset and how many questions of it were read, every ten thousand.
    Raises `InputError` when nothing is left to train on because of broken datasets, for the only
    dataset of a run, and for any broken one where `settings.broken` is `refuse`.
    """
    broken: dict[str, str] = {}
    wrong: dict[str, list[str]] = {name: [] for name in settings.datasets}
    loaded: dict[str, list[_Loaded]] = {}
    for name, dataset in settings.datasets.items():
        with _setting_aside(name, settings, broken):
            ordered = _ordered_questions(name, dataset, settings.folder, wrong[name])
            loaded[name] = _load_dataset(name, dataset, ordered, on_progress)
    taken = _taken(loaded)
    tables: list[pa.Table] = [QUESTION_TABLE_SCHEMA.empty_table()]
    counts: list[SplitCounts] = []
    for name in list(loaded):
        with _setting_aside(name, settings, broken):
            # Popped, so that what was not chosen is let go before the next dataset's turn.
            chosen = _choose(loaded.pop(name), settings.datasets[name].domain, taken)
            tables += [table for table, _ in chosen]
            counts += [count for _, count in chosen]
    _check_what_is_left(settings, counts, broken)
    left_out = {name: rows for name, rows in wrong.items() if rows and name not in broken}
    return QuestionSet(pa.concat_tables(tables), counts, broken, left_out)


@contextmanager
def _setting_aside(name: str, settings: QuestionSettings, broken: dict[str, str]) -> Iterator[None]:
    """Put an `InputError` about a dataset into `broken`, unless it is refused or the only one."""
    try:
        yield
    except InputError as error:
        if settings.broken == "refuse" or len(settings.datasets) == 1:
            raise
        # A name in a file may hold half a surrogate pair, which could not be written anywhere.
        broken[name] = str(error).encode(errors="backslashreplace").decode()


def _check_what_is_left(
    settings: QuestionSettings, counts: Iterable[SplitCounts], broken: Mapping[str, str]
) -> None:
    """Raise `InputError` when the broken datasets leave none, or none to train on."""
    has_train = any(c["split"] == "train" and c["num_kept"] for c in counts)
    no_dataset = len(broken) == len(settings.datasets)
    lost_train = any(settings.datasets[name].domain == "in_domain" for name in broken)
    if no_dataset or (lost_train and not has_train):
        what = "no dataset is left" if no_dataset else "no dataset to train on is left"
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in broken.items())
        raise InputError(f"questions.datasets: {what}; mend or remove the broken ones:{reasons}")


def _load_dataset(
    name: str,
    settings: DatasetSettings,
    ordered: Iterator[tuple[int, Question]],
    on_progress: Callable[[str, int], None] | None,
) -> list[_Loaded]:
    """The splits of one dataset that have questions, train first."""
    orders, identities = array("Q"), array("Q")
    tables = [QUESTION_TABLE_SCHEMA.empty_table()]
    while batch := list(itertools.islice(ordered, ROWS_PER_BATCH)):
        tables.append(question_table([question for _, question in batch]))
        orders.extend(order for order, _ in batch)
        identities.extend(_identity(question) for _, question in batch)
        if on_progress is not None:
            on_progress(name, len(orders))
    rows = pa.concat_tables(tables)
    parts = []
    for split in SPLITS:
        of_split = np.flatnonzero(pc.equal(rows.column("split"), split).to_numpy())
        chosen = of_split[np.argsort(np.frombuffer(orders, np.uint64)[of_split], kind="stable")]
        part = _Loaded(
            dataset=name,
            split=split,
            limit=settings.limit(split),
            num_read=len(of_split),
            rows=rows,
            chosen=chosen,
            identities=np.frombuffer(identities, np.uint64)[chosen],
        )
        if part.num_read:
            parts.append(_distinct(part))
    return parts


def _ordered_questions(
    name: str, settings: DatasetSettings, folder: str, wrong: list[str]
) -> Iterator[tuple[int, Question]]:
    """The questions of a dataset as they are asked, with the number that a limit goes by."""
    for order, question in _split_questions(name, settings, folder, wrong):
        own = settings.grader
        yield order, question if own is None else replace(question, grader=own)


def _split_questions(
    name: str, settings: DatasetSettings, folder: str, wrong: list[str]
) -> Iterator[tuple[int, Question]]:
    """The questions in their final splits."""
    source, domain = settings.source, settings.domain
    if isinstance(source, FileSource):
        yield from _carve(read_questions(source, folder, name, domain), settings)
    elif isinstance(source, TaskSource):
        yield from _carve(read_task_questions(source, folder, name, domain, wrong), settings)
    else:
        wanted = {split: settings.limit(split) or 0 for split in SPLITS}
        yield from enumerate(draw_questions(source, name, domain, wanted, _generated_split))


def _carve(
    questions: Iterable[Question], settings: DatasetSettings
) -> Iterator[tuple[int, Question]]:
    """Give the splits that the source has not their share of train, by the hash of each id.

    Hash order makes the choice independent of the file's order and of how many are asked for.
    """
    given = settings.given_splits()
    dev_share = 0.0 if "dev" in given else settings.dev_share
    test_share = 0.0 if "test" in given else settings.test_share
    for question in questions:
        order = _hash(question.question_id)
        split = question.split
        if split == "train":
            split = _split_of(order, dev_share, test_share)
        yield order, question if split == question.split else replace(question, split=split)


def _generated_split(text: str) -> Split:
    # By text and not by index: a text falls on the same side in every family, seed and dataset.
    return _split_of(_hash(text), GENERATED_SHARE, GENERATED_SHARE)


def _split_of(hashed: int, dev_share: float, test_share: float) -> Split:
    """A split by the key's hash alone, so that it never changes as questions are added."""
    position = (hashed >> 16) / 2**48
    if position < test_share:
        return "test"
    return "dev" if position < test_share + dev_share else "train"


def _hash(key: str) -> int:
    """The first 8 bytes of the SHA-256, as a number."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def _identity(question: Question) -> int:
    """What is the same for the same question: a hash of its text with the options sorted."""
    if question.choices:
        question = replace(question, choices=tuple(sorted(question.choices)))
    return _hash(question.normalized_text)


def _distinct(part: _Loaded) -> _Loaded:
    """The first of each set of questions that are the same one."""
    _, first = np.unique(part.identities, return_index=True)
    first.sort()
    return replace(part, chosen=part.chosen[first], identities=part.identities[first])


def _taken(loaded: Mapping[str, list[_Loaded]]) -> dict[Split, NDArray[np.uint64]]:
    """What the questions of each split must not be: those of the splits that come before it.

    A dataset that is set aside later, for its train, still keeps what it holds out from the
    others' train: whether it is mended or not, they train on the same questions.
    """
    parts = list(itertools.chain.from_iterable(loaded.values()))
    nothing = np.empty(0, np.uint64)
    dev, test = (
        np.concatenate([nothing, *(part.identities for part in parts if part.split == split)])
        for split in ("dev", "test")
    )
    return {"train": np.concatenate([dev, test]), "dev": test, "test": nothing}


def _choose(
    parts: list[_Loaded], domain: Domain, taken: Mapping[Split, NDArray[np.uint64]]
) -> list[tuple[pa.Table, SplitCounts]]:
    """The rows that are used of each split of a dataset, and what became of the others."""
    chosen = []
    for part in parts:
        free = part.chosen[~np.isin(part.identities, taken[part.split])]
        if part.split == "train" and not len(free) and part.limit != 0:
            raise InputError(
                f"questions.datasets.{part.dataset}: all of its {len(part.chosen)} training "
                "questions also stand in a dev or test split; give train other questions"
            )
        table = _take(part.rows, free[: part.limit])
        chosen.append((table, _count(part, domain, len(free), table)))
    return chosen


def _take(rows: pa.Table, chosen: NDArray[np.int64]) -> pa.Table:
    """The chosen rows, in the order of `chosen`.

    Piece by piece, because `Table.take` copies every chunk it takes from into one, which doubles
    the table and ends at 2 GiB of text; `filter` goes chunk by chunk.
    """
    size = max(ROWS_PER_BATCH, -(-len(chosen) // MAX_PIECES))
    pieces = [QUESTION_TABLE_SCHEMA.empty_table()]
    for start in range(0, len(chosen), size):
        wanted = chosen[start : start + size]
        mask = np.zeros(rows.num_rows, bool)
        mask[wanted] = True
        piece = rows.filter(pa.array(mask))  # in the order of `rows`
        pieces.append(piece.take(np.searchsorted(np.sort(wanted), wanted)))
    return pa.concat_tables(pieces)


def _count(part: _Loaded, domain: Domain, num_free: int, kept: pa.Table) -> SplitCounts:
    num_commonest = pc.max(kept.column("answer").value_counts().field("counts")).as_py() or 0
    return {
        "dataset": part.dataset,
        "split": part.split,
        "domain": domain,
        "num_read": part.num_read,
        "num_dropped_duplicate": part.num_read - len(part.chosen),
        "num_dropped_overlap": len(part.chosen) - num_free,
        "num_kept": kept.num_rows,
        "commonest_answer_share": num_commonest / max(kept.num_rows, 1),
    }
