"""Questions from the user's files: JSONL (`.jsonl`) or Parquet (`.parquet`), anywhere.

One line of a JSONL file, its columns named as `Columns` expects them::

    {"id": "gsm8k/train/00042", "question": "Natalia sold ...", "answer": 72,
     "answer_type": "number", "choices": null}

Whatever is wrong with a file raises `InputError` with the file, the line (Parquet: the row), what
is wrong there and the mend. Lines and rows are counted from 1.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import posixpath
import string
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
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
BLOCK_BYTES = 8 << 20  # an object store answers each block with a request of its own
PARQUET_ROWS = 1_000
Item = TypeVar("Item")

_OTHER_FORMATS = {
    b"\x1f\x8b": ("gzip", "unpack it with gunzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unpack it with unzstd"),
    b"PK\x03\x04": ("zip", "unpack it with unzip"),
    b"PAR1": ("Parquet", "let its name end in .parquet"),
}
"""The first bytes of a file, what they say it is, and the mend."""


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

    def names(self) -> list[str]:
        """The columns that are read."""
        return [name for name in self.model_dump().values() if name is not None]


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


@dataclass(frozen=True, slots=True)
class _Row:
    """A row as it stands in its file, and where: `train.jsonl:12` or `train.parquet row 12`."""

    place: str
    values: Mapping[str, Any]


def read_questions(
    source: FileSource, folder: str, dataset: str, domain: Domain
) -> Iterator[Question]:
    """The questions of each split that has files, split by split, in the order of the files.

    They are read as they are asked for: no file is ever held whole. An id that does not begin with
    the dataset's name gets `<dataset>/<split>/` put before it, so that ids differ over all
    datasets. Raises `InputError`; for an id that stands twice only after the last row, because
    until then no more than 8 bytes of each id are kept.
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
) -> Iterator[tuple[Split, _Row, str]]:
    """Every row of every file with its split and its id."""
    columns = source.columns
    for split in SPLITS:
        number = 0
        for path in source.paths(split):
            for row in _read_rows(path, folder, columns):
                yield split, row, _question_id(row, columns.question_id, dataset, split, number)
                number += 1


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


def _read_rows(path: str, folder: str, columns: Columns) -> Iterator[_Row]:
    """The rows of one file; at least one, or `InputError`."""
    location, stream = _open_file(path, folder)
    row = None
    with stream:
        if location.endswith(".parquet"):
            rows = _read_parquet(location, stream, columns)
        else:
            rows = _read_jsonl(location, stream)
        for row in rows:
            yield row
    if row is None:
        raise InputError(f"{location} holds no questions; give another file or leave it out")


def _open_file(path: str, folder: str) -> tuple[str, Any]:
    """The file's full location, and the file opened for reading."""
    location = _resolve(path, folder)
    if not location.endswith(SUFFIXES):
        raise InputError(f"question file {location}: its name must end in {' or '.join(SUFFIXES)}")
    try:
        filesystem, inner = pyarrow.fs.FileSystem.from_uri(location)
        found = filesystem.get_file_info(inner).type
        if found == pyarrow.fs.FileType.File:
            return location, filesystem.open_input_file(inner)
        parent, name = posixpath.split(inner)
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


def _read_jsonl(location: str, stream: Any) -> Iterator[_Row]:
    # Cut at line feeds alone: JSON texts may hold U+2028, at which `str.splitlines` would cut.
    lines = io.BufferedReader(stream, BLOCK_BYTES)
    for number, line in enumerate(_reading(location, lines), start=1):
        if number == 1:
            _refuse_other_format(location, line)
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            place = f"{location}:{number}"
            yield _Row(place, _parse_line(place, line))


def _reading(location: str, items: Iterable[Item]) -> Iterator[Item]:
    """The items; what the file system says against the next one becomes an `InputError`."""
    try:
        yield from items
    except OSError as error:
        raise InputError(f"cannot read the question file {location}: {error}") from error


def _refuse_other_format(location: str, start: bytes) -> None:
    """Raise `InputError` for what is JSONL by name only, by the first bytes of the file."""
    for magic, (name, mend) in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise InputError(f"{location} is not JSONL but {name}; {mend}")


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


def _read_parquet(location: str, stream: Any, columns: Columns) -> Iterator[_Row]:
    """The rows; columns that nobody asked for are not read and stand as None."""
    number = 0
    try:
        file = pq.ParquetFile(stream)
        empty = dict.fromkeys(file.schema_arrow.names)
        for batch in file.iter_batches(PARQUET_ROWS, columns=columns.names()):
            for values in batch.to_pylist():
                number += 1
                yield _Row(f"{location} row {number}", empty | values)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{location}, after row {number}: a text is not UTF-8 ({error.reason}); "
            "write the file anew with UTF-8 texts"
        ) from error
    except (pa.ArrowException, OSError, OverflowError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{location} cannot be read as Parquet: {reason}") from error


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
    options = [option.strip() if isinstance(option, str) else str(option) for option in value]
    for option in options:
        _check_characters(place, option)
    return tuple(options)


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
    """The text without the white space around it; else every character stays as it stands."""
    place = f"{row.place}, column {column!r}"
    if not isinstance(value, str):
        raise InputError(f"{place}: expected a text, found a {_kind(value)}")
    if _is_blank(value):
        raise InputError(f"{place} is empty; fill it in or remove the row")
    _check_characters(place, value)
    return value.strip()


def _is_blank(text: str) -> bool:
    """Whether nothing in it can be seen: white space, control and zero-width characters."""
    return all(char.isspace() or unicodedata.category(char) in ("Cc", "Cf") for char in text)


def _check_characters(place: str, text: str) -> None:
    """Refuse what no text holds on purpose.

    Half of a surrogate pair, as in "\\ud83d", has no UTF-8. NUL has, and Arrow, Parquet and
    tokenizers carry it through, but it only ever comes from a file that was converted wrongly
    (UTF-16 taken for Latin-1, a C buffer with its tail), and the model would be asked the damaged
    text without anybody noticing. Emoji, combining and other control characters are left alone.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: a broken character at {error.start}; mend the text") from error
    if "\0" in text:
        raise InputError(
            f"{place}: a NUL character at {text.index(chr(0))}, as a wrong conversion leaves it; "
            "mend the text"
        )


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
    names = {
        dict: "mapping",
        list: "list",
        bool: "true/false",
        str: "text",
        bytes: "binary value",
        type(None): "null",
    }
    other = "number" if isinstance(value, int | float | Decimal) else type(value).__name__
    return names.get(type(value), other)
