"""Questions from the user's files: JSONL (`.jsonl`) or Parquet (`.parquet`), anywhere.

One line of a JSONL file, its columns named as `Columns` expects them::

    {"id": "gsm8k/train/00042", "question": "Natalia sold ...", "answer": 72,
     "answer_type": "number", "choices": null}

Whatever is wrong with a file raises `InputError` with the file, the line (Parquet: the row), what
is wrong there and the mend. Lines and rows are counted from 1.
"""

from __future__ import annotations

import difflib
import io
import json
import posixpath
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from cluster.errors import InputError
from cluster.settings import Settings
from cluster.storage import Folder
from evaluation.grader import canonical_answer
from evaluation.question import ANSWER_TYPES, SPLITS, AnswerType, Domain, Question, Split

Paths = str | tuple[str, ...] | None
SUFFIXES = (".jsonl", ".parquet")


class Columns(Settings):
    """What the columns are called in the user's files."""

    question_id: str | None = "id"
    """Unique in the dataset. Null: rows are numbered, and then moving a row renames it."""

    question: str = "question"
    """All the model may see, without the options."""

    answer: str = "answer"
    """The truth. Options are named by letter."""

    answer_type: str | None = "answer_type"
    """One of number, choice, boolean, text. Null: `source.answer_type` holds for every row."""

    choices: str | None = "choices"
    """The options' texts as a list; only a choice question needs them. Null: there are none."""


class FileSource(Settings):
    """Questions that stand in files."""

    kind: Literal["files"]

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

    def paths(self, split: Split) -> tuple[str, ...]:
        """The files of a split, possibly none."""
        given: Paths = getattr(self, split)
        if given is None:
            return ()
        return (given,) if isinstance(given, str) else given


@dataclass(frozen=True)
class _Row:
    """A row as it stands in its file, and where: `train.jsonl:12` or `train.parquet row 12`."""

    place: str
    values: Mapping[str, Any]


def read_questions(
    source: FileSource, folder: str, dataset: str, domain: Domain
) -> dict[Split, list[Question]]:
    """The questions of each split that has files, in the order of the files.

    An id that does not begin with the dataset's name gets `<dataset>/<split>/` put before it, so
    that ids differ over all datasets. Raises `InputError`.
    """
    questions: dict[Split, list[Question]] = {}
    places: dict[str, str] = {}
    for split in SPLITS:
        rows = [row for path in source.paths(split) for row in _read_rows(path, folder)]
        for number, row in enumerate(rows):
            question_id = _question_id(row, source.columns.question_id, dataset, split, number)
            if question_id in places:
                raise InputError(
                    f"{row.place}: the id {question_id!r} stands already at "
                    f"{places[question_id]}; every row of a dataset needs an id of its own"
                )
            places[question_id] = row.place
            question = _to_question(row, source, question_id, dataset, split, domain)
            questions.setdefault(split, []).append(question)
    return questions


def _read_rows(path: str, folder: str) -> Iterator[_Row]:
    """The rows of one file; at least one, or `InputError`."""
    location, data = _read_file(path, folder)
    read = _read_parquet if location.endswith(".parquet") else _read_jsonl
    place = None
    for place, values in read(location, data):
        yield _Row(place, values)
    if place is None:
        raise InputError(f"{location} holds no questions; give another file or leave it out")


def _read_file(path: str, folder: str) -> tuple[str, bytes]:
    """The file's full location and its bytes."""
    location = _resolve(path, folder)
    if not location.endswith(SUFFIXES):
        raise InputError(f"question file {location}: its name must end in {' or '.join(SUFFIXES)}")
    try:
        filesystem, inner = pyarrow.fs.FileSystem.from_uri(location)
        parent, name = posixpath.split(inner)
        found = filesystem.get_file_info(inner).type
        if found == pyarrow.fs.FileType.File:
            return location, Folder(filesystem, parent).read_bytes(name)
        there = Folder(filesystem, parent).file_names()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"cannot read the question file {location}: {error}") from error
    if found == pyarrow.fs.FileType.Directory:
        raise InputError(f"question file {location} is a folder; name the file in it")
    raise InputError(
        f"no question file {location}{_nearest(name, there)}; "
        f"relative paths start at questions.folder, which is {folder!r}"
    )


def _resolve(path: str, folder: str) -> str:
    """The absolute path or URI of a path given relative to `folder`."""
    if "://" in path:
        return path
    local = Path(path).expanduser()
    if "://" in folder and not local.is_absolute():
        return posixpath.join(folder, path)
    return str(Path(folder).expanduser().resolve() / local)


def _read_jsonl(location: str, data: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # Cut at line feeds alone: JSON texts may hold U+2028, at which `str.splitlines` would cut.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            place = f"{location}:{number}"
            yield place, _parse_line(place, line)


def _parse_line(place: str, line: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{place} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except json.JSONDecodeError as error:
        what = f"{error.msg[:1].lower()}{error.msg[1:]} at column {error.colno}"
        raise InputError(f"{place} is not JSON: {what}; every line is one JSON object") from error
    except (ValueError, RecursionError) as error:  # a number or a nesting past Python's limits
        raise InputError(f"{place} is not JSON that can be held: {error}; mend the line") from error
    if not isinstance(value, dict):
        raise InputError(f"{place}: every line is one JSON object, this is a {_kind(value)}")
    return value


def _read_parquet(location: str, data: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        rows = pq.read_table(io.BytesIO(data)).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{location} cannot be read as Parquet: {reason}") from error
    for number, values in enumerate(rows, start=1):
        yield f"{location} row {number}", values


def _to_question(
    row: _Row, source: FileSource, question_id: str, dataset: str, split: Split, domain: Domain
) -> Question:
    text = _text(row, source.columns.question, "question")
    answer_type = _answer_type(row, source)
    choices = _choices(row, source.columns.choices, answer_type)
    answer = _answer(row, source.columns.answer, answer_type)
    try:
        canonical = canonical_answer(answer, answer_type, choices)
    except ValueError as error:
        raise InputError(f"{row.place}, column {source.columns.answer!r}: {error}") from error
    return Question(question_id, dataset, split, domain, text, canonical, answer_type, choices)


def _question_id(row: _Row, column: str | None, dataset: str, split: Split, number: int) -> str:
    if column is None:
        return f"{dataset}/{split}/{number:05d}"
    value = _value(row, column, "question_id")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    own = _checked_text(row, column, value)
    return own if own.startswith(f"{dataset}/") else f"{dataset}/{split}/{own}"


def _answer_type(row: _Row, source: FileSource) -> AnswerType:
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


def _choices(row: _Row, column: str | None, answer_type: AnswerType) -> tuple[str, ...]:
    value = row.values.get(column) if column else None
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
    return _listed_choices(row, column, value)


def _listed_choices(row: _Row, column: str | None, value: Any) -> tuple[str, ...]:
    place = f"{row.place}, column {column!r}"
    if not isinstance(value, list):
        raise InputError(f"{place}: the options must be a list of texts, this is a {_kind(value)}")
    if len(value) > len(string.ascii_uppercase):
        raise InputError(f"{place}: {len(value)} options, but only 26 letters to name them by")
    for option in value:
        if not isinstance(option, str | int | float) or isinstance(option, bool):
            raise InputError(f"{place}: every option must be a text, one is a {_kind(option)}")
    return tuple(option.strip() if isinstance(option, str) else str(option) for option in value)


def _answer(row: _Row, column: str, answer_type: AnswerType) -> str:
    """The answer as text; JSON's numbers and truth values are written out."""
    value = _value(row, column, "answer")
    if isinstance(value, bool):
        words = ("no", "yes") if answer_type == "boolean" else ("false", "true")
        return words[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | Decimal):
        return format(Decimal(str(value)), "f")  # 1e-07 as 0.0000001
    return _checked_text(row, column, value)


def _text(row: _Row, column: str, role: str) -> str:
    return _checked_text(row, column, _value(row, column, role))


def _checked_text(row: _Row, column: str, value: Any) -> str:
    place = f"{row.place}, column {column!r}"
    if not isinstance(value, str):
        raise InputError(f"{place}: expected a text, found a {_kind(value)}")
    if not value.strip():
        raise InputError(f"{place} is empty; fill it in or remove the row")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, as in "\ud83d"
        raise InputError(f"{place}: a broken character at {error.start}; mend the text") from error
    return value.strip()


def _value(row: _Row, column: str, role: str) -> Any:
    """What stands in a column that must be there and filled."""
    if column not in row.values:
        raise InputError(
            f"{row.place}: no column {column!r}; there are {', '.join(row.values) or 'none'}"
            f"{_nearest(column, row.values)}; say with source.columns.{role} what it is called"
        )
    value = row.values[column]
    if value is None:
        raise InputError(f"{row.place}, column {column!r} is null; fill it in or remove the row")
    return value


def _nearest(name: str, known: Any) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f" (nearest: {nearest[0]})" if nearest else ""


def _kind(value: Any) -> str:
    names = {dict: "mapping", list: "list", bool: "true/false", str: "text", type(None): "null"}
    return names.get(type(value), "number" if isinstance(value, int | float) else "other value")
