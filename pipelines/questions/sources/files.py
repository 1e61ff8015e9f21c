"""Questions from the user's files or from the hub, by mapping columns: JSONL, JSON, CSV or Parquet.

A line of a JSONL file whose columns have the default names of `Columns`::

    {"id": "gsm8k/train/00042", "question": "A shop sold ...", "answer": 72,
     "answer_type": "number", "choices": null, "aliases": null, "grader_data": null}

docs/QUESTIONS.md shows the settings for well-known public files. An error in a file raises
`InputError` with the file, the line (for Parquet and the hub: the row), the problem and what to do.
Lines and rows are counted from 1.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import pydantic

from cluster.errors import InputError
from cluster.settings import Settings, fingerprint
from evaluation.question import SPLITS, AnswerType, Domain, Question, Split
from evaluation.reading.files import check_shards, matching_files, open_file, suffix_of
from evaluation.reading.hub_rows import load_hub_split
from evaluation.reading.rows import SourceRow, read_rows, resolve
from evaluation.reading.table_rows import CsvForm
from evaluation.task import tasks
from pipelines.questions.sources.columns import Columns
from pipelines.questions.sources.mapping import (
    AnswerIndex,
    OptionLetters,
    Plain,
    bring_letters,
    column_value,
    to_question,
)
from pipelines.questions.sources.source import Asked, Ordered, carve, check_splits_exist

Paths = str | tuple[str, ...] | None
OneCharacter = Annotated[str, pydantic.Field(min_length=1, max_length=1)]


class HubSettings(Settings):
    """A dataset of the Hugging Face hub."""

    repository: str
    """Its name, such as `openai/gsm8k`."""

    config: str | None = None
    """The configuration to use; null if there is only one."""

    revision: str | None = None
    """A branch, tag or commit; null is the newest one when it is first loaded."""


class FileSource(Settings):
    """Questions in files, or in a dataset of the hub."""

    kind: Literal["files"]

    hub: HubSettings | None = None
    """With it, `train`, `dev` and `test` name the splits of a hub dataset instead of files."""

    train: Paths = None
    """A path or a list of paths, relative to `questions.folder`, or URIs (`s3://`, `gs://`). The
    last part may contain stars: `data/train-*.parquet`."""

    dev: Paths = None
    """The same for dev; without it, dev is carved from train."""

    test: Paths = None
    """The same for test; without it, test is carved from train."""

    columns: Columns = Columns()
    """The names of the columns in the files."""

    answer_type: AnswerType | None = None
    """The type of the answers in rows that do not specify it."""

    choices: tuple[str, ...] | None = None
    """The options of every choice question, if no column lists them, such as
    `[entailment, neutral, contradiction]`."""

    answer_map: dict[str, Plain] | None = None
    """The meaning of the answers in the files, such as `{0: no, 1: yes}`; an answer that is not in
    it is refused. Null means that the files contain the answers themselves."""

    answer_index: AnswerIndex | None = None
    """0 or 1: the answer is the position of the right option, counted from this number. `never`: it
    is the option's text or letter, even if it looks like a position. Null: text or letter, and
    refused if it could also be a position."""

    answer_after: str | None = None
    """The answer is the text after the last such mark in its column: `"####"` for GSM8K."""

    option_letters: OptionLetters | None = None
    """What to do with letters that are part of the options (`A. ice`): `strip` or `keep`. With
    null, a file is refused if most questions have them, because they would be shown twice."""

    shuffle_options: bool = False
    """Show the options of each question in an order that is drawn by its id, for files that list
    the right option first."""

    delimiter: OneCharacter | None = None
    """The delimiter of CSV files, such as `";"`. Null detects it from the first line."""

    header: tuple[str, ...] | None = None
    """The columns of CSV files without a header line. Null means that the first line names them."""

    @pydantic.field_validator("answer_map")
    @classmethod
    def _says_one_thing(cls, answers: dict[str, Plain] | None) -> dict[str, Plain] | None:
        if answers is not None and not answers:
            raise ValueError("there is no answer; name at least one, or remove it")
        return answers

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> FileSource:
        if self.columns.answer is None and (self.dev or self.test):
            raise ValueError("columns.answer is null, but dev and test need answers; remove them")
        if self.choices is not None and self.columns.choices not in (None, "choices"):
            raise ValueError("choices and columns.choices both give the options; remove one")
        if self.columns.answer in self.columns.options and not self.shuffle_options:
            raise ValueError(
                "the right answer would always be at the same letter; set shuffle_options: true"
            )
        if self.delimiter is not None or self.header is not None:
            self._check_csv()
        return self

    def _check_csv(self) -> None:
        others = [
            path
            for split in SPLITS
            for path in self.paths(split)
            if suffix_of(path) not in (".csv", ".tsv")
        ]
        if self.hub is not None or others:
            where = others[0] if others else "the hub"
            raise ValueError(f"delimiter and header are for CSV files, and {where} is not one")
        if self.header is not None and len(set(self.header)) < len(self.header):
            raise ValueError("header: a column is named twice; rename one")

    def paths(self, split: Split) -> tuple[str, ...]:
        """The files of a split as the config names them; may be empty."""
        given: Paths = getattr(self, split)
        if given is None:
            return ()
        return (given,) if isinstance(given, str) else given

    @property
    def form(self) -> CsvForm:
        """The format of its CSV files."""
        return CsvForm(self.delimiter, self.header)

    @property
    def domain(self) -> Domain:
        return "in_domain"

    @property
    def is_labelled(self) -> bool:
        return self.columns.answer is not None

    @property
    def is_generated(self) -> bool:
        return False

    def given_splits(self, domain: Domain) -> tuple[Split, ...]:
        return tuple(split for split in SPLITS if self.paths(split))

    def check(self, asked: Asked) -> None:
        if asked.dev_share + asked.test_share >= 1:
            raise ValueError("dev_share and test_share leave nothing to train on")
        if not self.is_labelled and (asked.dev_share or asked.test_share):
            raise ValueError(
                "columns.answer is null, so train cannot be evaluated on; set dev_share: 0"
            )
        if asked.domain == "in_domain" and not self.train:
            raise ValueError("in_domain needs source.train; or set domain to out_of_domain")
        if asked.domain == "out_of_domain" and self.train:
            raise ValueError("out_of_domain has no train; remove source.train")
        if not self.given_splits(asked.domain):
            raise ValueError("there are no files; set source.test or source.dev")
        check_splits_exist(asked, self.given_splits(asked.domain))

    def read(self, folder: str, asked: Asked) -> Iterator[Ordered]:
        questions = read_questions(self, folder, asked.dataset, asked.domain)
        return carve(questions, asked, self.given_splits(asked.domain))

    def digest(self, folder: str) -> str | None:
        if self.hub is not None:
            return None  # it may change
        return fingerprint(
            [_hash(file) for split in SPLITS for file in _files(self, split, folder)]
        )


def _hash(location: str) -> str:
    with open_file(location) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_questions(
    source: FileSource, folder: str, dataset: str, domain: Domain
) -> Iterator[Question]:
    """Yield the questions of each split that has files, split by split, in the order of the files.

    They are read lazily: a JSONL or Parquet file is never completely in memory. An id that does not
    begin with the dataset's name gets the prefix `<dataset>/<split>/`, so that ids are unique over
    all datasets. Raises `InputError`; for a duplicate id only after the last row, because until
    then at most 8 bytes of each id are kept.
    """
    digests = array("Q")
    unseen = source.columns.set_by_hand()
    num_choice = num_lettered = 0
    row: SourceRow | None = None
    for split, row, question_id in _identified_rows(source, folder, dataset):
        digests.append(_digest(question_id))
        if unseen:
            unseen = {n: column for n, column in unseen.items() if not row.has(column)}
        question = to_question(row, source, question_id, dataset, split, domain)
        num_choice += bool(question.choices)
        num_lettered += bool(question.choices) and bring_letters(question.choices)
        yield question
    if row is not None:
        _check_columns_seen(dataset, unseen, row)
    if source.option_letters is None and num_lettered > num_choice / 2:
        _refuse_letters(dataset, num_lettered)
    values, counts = np.unique(np.frombuffer(digests, np.uint64), return_counts=True)
    if (counts > 1).any():
        _refuse_repeated_id(source, folder, dataset, set(values[counts > 1].tolist()))


def _check_columns_seen(dataset: str, unseen: dict[str, str], row: SourceRow) -> None:
    """Raise `InputError` for a column that the config names but no row has."""
    if unseen:
        setting, column = next(iter(unseen.items()))
        raise InputError(
            f"questions.datasets.{dataset}.source.columns.{setting}: no row has a column "
            f"{column!r}; the columns are {', '.join(row.values)}; fix the name, or set it to null"
        )


def _refuse_letters(dataset: str, number: int) -> None:
    raise InputError(
        f"questions.datasets.{dataset}.source: the options of {number} questions contain "
        "letters, such as 'A. ice', and would be shown with two; set source.option_letters to "
        "strip, or to keep"
    )


def _identified_rows(
    source: FileSource, folder: str, dataset: str
) -> Iterator[tuple[Split, SourceRow, str]]:
    """Every row of every file, with its split and its id."""
    columns = source.columns
    for split in SPLITS:
        for number, row in enumerate(_rows(source, split, folder)):
            if split == "train":
                _check_may_train(row)
            yield split, row, _question_id(row, columns.question_id, dataset, split, number)


def _files(source: FileSource, split: Split, folder: str) -> list[str]:
    """The files of a split. Raises `InputError` if a shard is missing."""
    files = [file for path in source.paths(split) for file in matching_files(resolve(path, folder))]
    check_shards(files)
    return files


def _rows(source: FileSource, split: Split, folder: str) -> Iterator[SourceRow]:
    """The rows of a split, from its files or from the splits of a hub dataset."""
    hub = source.hub
    if hub is None:
        for file in _files(source, split, folder):
            yield from read_rows(file, source.columns.names(), source.form)
        return
    for name in source.paths(split):
        yield from load_hub_split(hub.repository, hub.config, name, revision=hub.revision)


def _check_may_train(row: SourceRow) -> None:
    """Raise `InputError` for a row that declares a task which may not be used for training."""
    name = row.values.get("dataset")
    task = tasks().get(name) if isinstance(name, str) else None
    if task is not None and task.no_training:
        raise InputError(
            f"{row.place}: rows of {task.name} may not be trained on, because {task.no_training}; "
            "take them out of source.train"
        )


def _question_id(
    row: SourceRow, column: str | None, dataset: str, split: Split, number: int
) -> str:
    if column is None:
        return f"{dataset}/{split}/{number:05d}"
    value = column_value(row, column, "question_id")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    own = row.checked_text(column, value)
    return own if own.startswith(f"{dataset}/") else f"{dataset}/{split}/{own}"


def _refuse_repeated_id(source: FileSource, folder: str, dataset: str, digests: set[int]) -> None:
    """Read the files again to name both places of the first duplicate id among `digests`."""
    places: dict[str, str] = {}
    for _, row, question_id in _identified_rows(source, folder, dataset):
        if question_id in places:
            raise InputError(
                f"{row.place}: the id {question_id!r} is already used at "
                f"{places[question_id]}; every row of a dataset needs its own id"
            )
        if _digest(question_id) in digests:
            places[question_id] = row.place


def _digest(question_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(question_id.encode(), digest_size=8).digest(), "big")
