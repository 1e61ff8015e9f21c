"""Rows of files, each with its place: JSON lines, JSON, CSV, Parquet or XML, on any file system.

The first row of `train.jsonl`, for example::

    SourceRow(place="/data/train.jsonl:1", part="/data/train.jsonl", number=0,
        values={"question": "Tom has ...", "answer": "... #### 72"})

An error in a file raises `InputError` with the file, the line (for Parquet and the hub: the row),
the problem and what to do. Lines and rows are counted from 1.
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
    """A row as it is in its file, with its place."""

    place: str
    """The place for people: `train.jsonl:12` or `train.parquet row 12`."""

    part: str
    """The full path of the file, or `repository/config/split` on the hub."""

    number: int
    """The number of earlier rows in the same part."""

    values: Mapping[str, Any]

    def value(self, column: str, hint: str = "is this file in the upstream format?") -> Any:
        """The value of a column that must exist and be filled in; otherwise `InputError`."""
        if not self.has(column):
            raise InputError(
                f"{self.place}: no column {column!r}; the columns are "
                f"{', '.join(self.values) or 'missing'}{nearest(column, self.values)}; {hint}"
            )
        value = self.get(column)
        if value is None:
            raise self.wrong(column, "is null; fill it in or remove the row")
        return value

    def has(self, column: str) -> bool:
        """Whether there is such a column; `question.stem` is the field `stem` of `question`."""
        return column in self.values or self._found(column) is not None

    def _found(self, column: str) -> Any:
        if column in self.values:
            return self.values[column]
        value: Any = self.values
        for name in column.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def get(self, column: str | None) -> Any:
        """The value of an optional column; None if it is missing or null."""
        value = self._found(column) if column is not None else None
        if is_missing_number(value):
            raise self.wrong(column, f"is {value}, which is not a value; write null, or fill it in")
        return value

    def text(self, column: str) -> str:
        """The text of a column that must have one, without surrounding white space."""
        return self.checked_text(column, self.value(column))

    def items(self, column: str) -> list[Any]:
        """The list in a column that must have one."""
        value = self.value(column)
        if not isinstance(value, list | tuple):
            raise self.wrong(column, f": expected a list, found a {kind_of(value)}")
        return list(value)

    def texts(self, column: str) -> tuple[str, ...]:
        """The texts in a column that must list them, each without surrounding white space."""
        return tuple(self.checked_text(column, text) for text in self.items(column))

    def options(self, column: str) -> tuple[str, ...]:
        """The options in a column that must list them; numbers become text."""
        return self.checked_options(column, self.items(column))

    def checked_options(self, column: str, options: Sequence[Any]) -> tuple[str, ...]:
        """1 to 26 options without surrounding white space; one may be empty."""
        if len(options) > len(string.ascii_uppercase):
            raise self.wrong(
                column, f": {len(options)} options, but only 26 letters to name them by"
            )
        for option in options:
            if not isinstance(option, str | int | float | Decimal) or isinstance(option, bool):
                raise self.wrong(
                    column, f": every option must be a text, but one is a {kind_of(option)}"
                )
        texts = [
            option.strip() if isinstance(option, str) else self.written(column, option)
            for option in options
        ]
        for text in texts:
            self.check_characters(column, text)
        return tuple(texts)

    def checked_text(self, column: str, value: Any) -> str:
        """The text without surrounding white space; all other characters are unchanged."""
        if not isinstance(value, str):
            raise self.wrong(column, f": expected a text, found a {kind_of(value)}")
        if _is_blank(value):
            raise self.wrong(column, "is empty; fill it in or remove the row")
        self.check_characters(column, value)
        return value.strip()

    def written(self, column: str, value: Any) -> str:
        """The value as text; numbers (with the file's digits) and truth values are converted."""
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int | float | Decimal):
            try:
                return number_text(value)
            except ValueError as error:
                raise self.wrong(column, f": {error}") from error
        return self.checked_text(column, value)

    def check_characters(self, column: str | None, text: str) -> None:
        """Refuse characters that a text never contains on purpose.

        Half of a surrogate pair, as in "\\ud83d", has no UTF-8. NUL has, and Arrow, Parquet and
        tokenizers pass it on, but it only comes from a file that was converted wrongly (UTF-16
        read as Latin-1, or a C buffer with its tail), and the model would silently get the damaged
        text. Emoji, combining and other control characters are accepted.
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
        """The error about a column of this row: `train.jsonl:12, column 'answer' <what>`."""
        gap = "" if what.startswith(":") else " "
        return InputError(f"{self.place}, column {column!r}{gap}{what}")


def read_rows(
    location: str, columns: Sequence[str] | None = None, form: CsvForm | None = None
) -> Iterator[SourceRow]:
    """Yield the rows of one file, at least one, lazily.

    `location` is an absolute path or a URI. Of a Parquet file only `columns` are read, if given;
    the others are None. `form` is the format of a CSV file. Raises `InputError`.
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
    """The rows of an open file with their places, by the suffix of its name."""
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
    """The absolute path or URI of a path that is relative to `folder`."""
    if "://" in path:
        return path
    local = Path(path).expanduser()
    if "://" in folder and not local.is_absolute():
        return posixpath.join(folder, path)
    return str(Path(folder).expanduser().resolve() / local)


def _is_blank(text: str) -> bool:
    """Whether nothing in it is visible: white space, control and zero-width characters."""
    return all(char.isspace() or unicodedata.category(char) in ("Cc", "Cf") for char in text)
