"""Rows of files, each with its place: JSON lines, JSON, CSV, Parquet or XML, on any file system.

The first row of `train.jsonl`, for example::

    SourceRow(place="/data/train.jsonl:1", part="/data/train.jsonl", number=0,
        values={"question": "Tom has ...", "answer": "... #### 72"})

Whatever is wrong with a file raises `InputError` with the file, the line (Parquet and the hub: the
row), what is wrong there and what to do. Lines and rows are counted from 1.
"""

from __future__ import annotations

import posixpath
import string
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from evaluation.reading.files import open_file, suffix_of, unpacked
from evaluation.reading.json_rows import Placed, read_json, read_json_lines
from evaluation.reading.names import nearest
from evaluation.reading.table_rows import CsvForm, read_csv, read_parquet
from evaluation.reading.values import is_missing_number, kind_of, number_text
from evaluation.reading.xml_rows import read_xml


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row as it stands in its file, and where."""

    place: str
    """For people: `train.jsonl:12` or `train.parquet row 12`."""

    part: str
    """The file's whole path, or `repository/config/split` on the hub."""

    number: int
    """How many rows of the same part come before it."""

    values: Mapping[str, Any]

    def value(self, column: str, hint: str = "is this file in the upstream format?") -> Any:
        """What stands in a column that must be there and filled; else `InputError`."""
        if not self.has(column):
            raise InputError(
                f"{self.place}: no column {column!r}; there are {', '.join(self.values) or 'none'}"
                f"{nearest(column, self.values)}; {hint}"
            )
        value = self.get(column)
        if value is None:
            raise self.wrong(column, "is null; fill it in or remove the row")
        return value

    def has(self, column: str) -> bool:
        """Whether there is such a column; `question.stem` is the part `stem` of `question`."""
        return column in self.values or self._found(column) is not None

    def _found(self, column: str) -> Any:
        if column in self.values:
            return self.values[column]
        value: Any = self.values
        for name in column.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def get(self, column: str | None) -> Any:
        """What stands in a column that a row may do without; None where it does, or for None."""
        value = self._found(column) if column is not None else None
        if is_missing_number(value):
            raise self.wrong(column, f"is {value}, which is not a value; write null, or fill it in")
        return value

    def text(self, column: str) -> str:
        """The text of a column that must hold one, without the white space around it."""
        return self.checked_text(column, self.value(column))

    def items(self, column: str) -> list[Any]:
        """The list of a column that must hold one."""
        value = self.value(column)
        if not isinstance(value, list | tuple):
            raise self.wrong(column, f": expected a list, found a {kind_of(value)}")
        return list(value)

    def texts(self, column: str) -> tuple[str, ...]:
        """The texts of a column that must hold a list of them, each without white space around."""
        return tuple(self.checked_text(column, text) for text in self.items(column))

    def options(self, column: str) -> tuple[str, ...]:
        """The options of a column that must list them; numbers are written out."""
        return self.checked_options(column, self.items(column))

    def checked_options(self, column: str, options: Sequence[Any]) -> tuple[str, ...]:
        """1 to 26 options without the white space around them; one may be empty."""
        if len(options) > len(string.ascii_uppercase):
            raise self.wrong(
                column, f": {len(options)} options, but only 26 letters to name them by"
            )
        for option in options:
            if not isinstance(option, str | int | float | Decimal) or isinstance(option, bool):
                raise self.wrong(
                    column, f": every option must be a text, one is a {kind_of(option)}"
                )
        texts = [
            option.strip() if isinstance(option, str) else self.written(column, option)
            for option in options
        ]
        for text in texts:
            self.check_characters(column, text)
        return tuple(texts)

    def checked_text(self, column: str, value: Any) -> str:
        """The text without the white space around it; else every character stays as it stands."""
        if not isinstance(value, str):
            raise self.wrong(column, f": expected a text, found a {kind_of(value)}")
        if _is_blank(value):
            raise self.wrong(column, "is empty; fill it in or remove the row")
        self.check_characters(column, value)
        return value.strip()

    def written(self, column: str, value: Any) -> str:
        """The value as text; numbers and truth values are written out, with the file's digits."""
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int | float | Decimal):
            try:
                return number_text(value)
            except ValueError as error:
                raise self.wrong(column, f": {error}") from error
        return self.checked_text(column, value)

    def check_characters(self, column: str | None, text: str) -> None:
        """Refuse what no text holds on purpose.

        Half of a surrogate pair, as in "\\ud83d", has no UTF-8. NUL has, and Arrow, Parquet and
        tokenizers carry it through, but it only ever comes from a file that was converted wrongly
        (UTF-16 taken for Latin-1, a C buffer with its tail), and the model would be asked the
        damaged text without anybody noticing. Emoji, combining and other control characters are
        left alone.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            reason = f": a broken character at {error.start}; fix the text"
            raise self.wrong(column, reason) from error
        if "\0" in text:
            raise self.wrong(
                column,
                f": a NUL character at {text.index(chr(0))}, as a wrong conversion leaves it; "
                "fix the text",
            )

    def wrong(self, column: str | None, what: str) -> InputError:
        """The complaint about a column of this row: `train.jsonl:12, column 'answer' <what>`."""
        gap = "" if what.startswith(":") else " "
        return InputError(f"{self.place}, column {column!r}{gap}{what}")


def read_rows(
    location: str, columns: Sequence[str] | None = None, form: CsvForm | None = None
) -> Iterator[SourceRow]:
    """The rows of one file, at least one, read as they are asked for.

    `location` is an absolute path or a URI. Of a Parquet file only `columns` are read, where given;
    the others are None. `form` says how a CSV file is written. Raises `InputError`.
    """
    with open_file(location) as stream:
        number = -1
        for number, (place, values) in enumerate(_read(location, stream, columns, form)):
            yield SourceRow(place, location, number, values)
    if number < 0:
        raise InputError(f"{location} contains no questions; give another file or leave it out")


def _read(
    location: str, stream: Any, columns: Sequence[str] | None, form: CsvForm | None
) -> Iterator[Placed]:
    """The rows of an open file with their places, by the end of its name."""
    suffix = suffix_of(location)
    if suffix == ".parquet":
        return read_parquet(location, stream, columns)
    data = unpacked(stream)
    if suffix in (".csv", ".tsv"):
        return read_csv(location, data, form or CsvForm())
    readers = {
        ".jsonl": read_json_lines,
        ".ndjson": read_json_lines,
        ".json": read_json,
        ".xml": read_xml,
    }
    return readers[suffix](location, data)


def resolve(path: str, folder: str) -> str:
    """The absolute path or URI of a path given relative to `folder`."""
    if "://" in path:
        return path
    local = Path(path).expanduser()
    if "://" in folder and not local.is_absolute():
        return posixpath.join(folder, path)
    return str(Path(folder).expanduser().resolve() / local)


def _is_blank(text: str) -> bool:
    """Whether nothing in it can be seen: white space, control and zero-width characters."""
    return all(char.isspace() or unicodedata.category(char) in ("Cc", "Cf") for char in text)
