"""Questions from the user's files or from the hub, by mapping columns: JSONL, JSON, CSV or Parquet.

One line of a JSONL file, its columns named as `Columns` expects them::

    {"id": "gsm8k/train/00042", "question": "A shop sold ...", "answer": 72,
     "answer_type": "number", "choices": null, "aliases": null, "grader_data": null}

Whatever is wrong with a file raises `InputError` with the file, the line (Parquet and the hub: the
row), what is wrong there and the mend. Lines and rows are counted from 1.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from typing import Any, Literal, cast

import numpy as np
import pydantic

from cluster.errors import InputError
from cluster.settings import Settings
from evaluation.grader import canonical_answer
from evaluation.hub import load_hub_split
from evaluation.question import ANSWER_TYPES, SPLITS, AnswerType, Domain, Question, Split
from evaluation.rows import Row, kind_of, read_rows, resolve
from evaluation.task import tasks

Paths = str | tuple[str, ...] | None


class Columns(Settings):
    """What the columns are called in the user's files."""

    question_id: str | None = "id"
    """Unique in the dataset. Null: rows are numbered, and then moving a row renames it."""

    question: str = "question"
    """All the model may see, without the options."""

    answer: str | None = "answer"
    """The truth. Options are named by letter. Null: the files have none, and are only trained on,
    with `examples.verdict: majority`."""

    answer_type: str | None = "answer_type"
    """One of number, choice, boolean, text, math. Null: `source.answer_type` holds for all rows."""

    choices: str | None = "choices"
    """The options' texts as a list; only a choice question needs them. Null: there are none."""

    aliases: str | None = "aliases"
    """Other right answers as a list; a row may do without. Null: there are none."""

    grader_data: str | None = "grader_data"
    """What a grader of the user's own has to know of a question: a text, or a value that is given
    to it as JSON; a row may do without. Null: there is none."""

    def names(self) -> list[str]:
        """The columns that are read."""
        return [name for name in self.model_dump().values() if name is not None]


class HubSettings(Settings):
    """A dataset of the Hugging Face hub."""

    repository: str
    """Its name, such as `openai/gsm8k`."""

    config: str | None = None
    """Which of its configurations; null where it has one only."""

    revision: str | None = None
    """A branch, tag or commit; null for what is newest when it is first loaded."""


class FileSource(Settings):
    """Questions that stand in files, or in a dataset of the hub."""

    kind: Literal["files"]

    hub: HubSettings | None = None
    """With it, `train`, `dev` and `test` name the splits of a hub dataset instead of files."""

    train: Paths = None
    """A path or a list of paths, relative to `questions.folder`, or URIs (`s3://`, `gs://`)."""

    dev: Paths = None
    """The same for dev; without it, dev is carved from train."""

    test: Paths = None
    """The same for test; without it, test is carved from train."""

    columns: Columns = Columns()
    """What the files call their columns."""

    answer_type: AnswerType | None = None
    """The type of every answer whose row does not say its own."""

    @pydantic.model_validator(mode="after")
    def _has_truths_to_evaluate_with(self) -> FileSource:
        if self.columns.answer is None and (self.dev or self.test):
            raise ValueError("columns.answer is null, but dev and test need answers; remove them")
        return self

    def paths(self, split: Split) -> tuple[str, ...]:
        """The files of a split, possibly none."""
        given: Paths = getattr(self, split)
        if given is None:
            return ()
        return (given,) if isinstance(given, str) else given


def read_questions(
    source: FileSource, folder: str, dataset: str, domain: Domain
) -> Iterator[Question]:
    """The questions of each split that has files, split by split, in the order of the files.

    They are read as they are asked for: no JSONL or Parquet file is ever held whole. An id that
    does not begin with the dataset's name gets `<dataset>/<split>/` put before it, so that ids
    differ over all datasets. Raises `InputError`; for an id that stands twice only after the last
    row, because until then no more than 8 bytes of each id are kept.
    """
    digests = array("Q")
    for split, row, question_id in _identified_rows(source, folder, dataset):
        digests.append(_digest(question_id))
        yield _to_question(row, source, question_id, dataset, split, domain)
    values, counts = np.unique(np.frombuffer(digests, np.uint64), return_counts=True)
    if (counts > 1).any():
        _refuse_repeated_id(source, folder, dataset, set(values[counts > 1].tolist()))


def _identified_rows(
    source: FileSource, folder: str, dataset: str
) -> Iterator[tuple[Split, Row, str]]:
    """Every row of every file with its split and its id."""
    columns = source.columns
    for split in SPLITS:
        number = 0
        for path in source.paths(split):
            for row in _rows(source, path, folder):
                if split == "train":
                    _check_may_train(row)
                yield split, row, _question_id(row, columns.question_id, dataset, split, number)
                number += 1


def _rows(source: FileSource, path: str, folder: str) -> Iterator[Row]:
    """The rows of one file, or of one split of the hub dataset."""
    if source.hub is None:
        return read_rows(resolve(path, folder), source.columns.names())
    hub = source.hub
    return load_hub_split(hub.repository, hub.config, path, revision=hub.revision)


def _check_may_train(row: Row) -> None:
    """Raise `InputError` for a row that says itself that it is of a task not to be trained on."""
    name = row.values.get("dataset")
    task = tasks().get(name) if isinstance(name, str) else None
    if task is not None and task.no_training:
        raise InputError(
            f"{row.place}: rows of {task.name} may not be trained on, because {task.no_training}; "
            "take them out of source.train"
        )


def _refuse_repeated_id(source: FileSource, folder: str, dataset: str, digests: set[int]) -> None:
    """Read the files again to name both places of the first id among `digests` seen twice."""
    places: dict[str, str] = {}
    for _, row, question_id in _identified_rows(source, folder, dataset):
        if question_id in places:
            raise InputError(
                f"{row.place}: the id {question_id!r} stands already at "
                f"{places[question_id]}; every row of a dataset needs an id of its own"
            )
        if _digest(question_id) in digests:
            places[question_id] = row.place


def _digest(question_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(question_id.encode(), digest_size=8).digest(), "big")


def _to_question(
    row: Row, source: FileSource, question_id: str, dataset: str, split: Split, domain: Domain
) -> Question:
    columns = source.columns
    text = row.checked_text(columns.question, _value(row, columns.question, "question"))
    answer_type = _answer_type(row, source)
    choices = _choices(row, columns.choices, answer_type)
    return Question(
        question_id=question_id,
        dataset=dataset,
        split=split,
        domain=domain,
        question=text,
        answer=_answer(row, columns.answer, answer_type, choices),
        answer_type=answer_type,
        choices=choices,
        aliases=_aliases(row, columns.aliases, answer_type, choices),
        grader_data=_grader_data(row, columns.grader_data),
    )


def _answer(row: Row, column: str | None, answer_type: AnswerType, choices: tuple[str, ...]) -> str:
    """The canonical truth, or nothing where the files have none."""
    if column is None:
        return ""
    return _canonical(row, column, _value(row, column, "answer"), answer_type, choices)


def _canonical(
    row: Row, column: str, answer: Any, answer_type: AnswerType, choices: tuple[str, ...]
) -> str:
    written = row.written(column, answer)
    try:
        return canonical_answer(written, answer_type, choices)
    except ValueError as error:
        raise row.wrong(column, f": {error}") from error


def _aliases(
    row: Row, column: str | None, answer_type: AnswerType, choices: tuple[str, ...]
) -> tuple[str, ...]:
    """The other right answers, written as the answer is."""
    value = _from_json(row.values.get(column)) if column else None
    if column is None or not value:
        return ()
    if not isinstance(value, list):
        raise row.wrong(
            column,
            f": the aliases must be a list of answers, this is a {kind_of(value)}; mend it, or "
            "set source.columns.aliases to null",
        )
    return tuple(_canonical(row, column, alias, answer_type, choices) for alias in value)


def _grader_data(row: Row, column: str | None) -> str:
    value = row.values.get(column) if column else None
    if column is None or value is None:
        return ""
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except TypeError as error:
        raise row.wrong(column, f": {error}; write it as a text") from error
    row.check_characters(column, text)
    return text


def _question_id(row: Row, column: str | None, dataset: str, split: Split, number: int) -> str:
    if column is None:
        return f"{dataset}/{split}/{number:05d}"
    value = _value(row, column, "question_id")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    own = row.checked_text(column, value)
    return own if own.startswith(f"{dataset}/") else f"{dataset}/{split}/{own}"


def _answer_type(row: Row, source: FileSource) -> AnswerType:
    column = source.columns.answer_type
    value = row.values.get(column) if column else None
    if value is None and source.answer_type is not None:
        return source.answer_type
    if value is None:
        raise InputError(
            f"{row.place}: nothing says the type of the answer; "
            f"set source.answer_type to one of {', '.join(ANSWER_TYPES)}, or map the column "
            f"that says it with source.columns.answer_type (columns: {', '.join(row.values)})"
        )
    if value not in ANSWER_TYPES:
        raise InputError(
            f"{row.place}, column {column!r}: unknown answer type {value!r}; "
            f"known are {', '.join(ANSWER_TYPES)}"
        )
    return cast(AnswerType, value)


def _choices(row: Row, column: str | None, answer_type: AnswerType) -> tuple[str, ...]:
    value = _from_json(row.values.get(column)) if column else None
    if answer_type != "choice":
        if value:
            raise InputError(
                f"{row.place}, column {column!r}: a {answer_type} question has no options; "
                "make its answer type choice, or set source.columns.choices to null"
            )
        return ()
    if not value:
        raise InputError(
            f"{row.place}: a choice question without options (columns: {', '.join(row.values)}); "
            "name the column that lists them with source.columns.choices"
        )
    if not isinstance(value, list):
        what = f": the options must be a list of texts, this is a {kind_of(value)}"
        raise row.wrong(column, what)
    return row.checked_options(column or "choices", value)


def _from_json(value: Any) -> Any:
    """The list that a text holds as JSON, because a cell of CSV holds texts only; else itself."""
    if not isinstance(value, str) or not value.startswith("["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _value(row: Row, column: str, role: str) -> Any:
    return row.value(column, f"say with source.columns.{role} what it is called")
