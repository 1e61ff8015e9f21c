"""Rows of files, each with its place: JSON lines, JSON, CSV, Parquet or XML, on any file system.

The first row of `train.jsonl`, for example::

    Row(place="/data/train.jsonl:1", part="/data/train.jsonl", number=0,
        values={"question": "Tom has ...", "answer": "... #### 72"})

Whatever is wrong with a file raises `InputError` with the file, the line (Parquet and the hub: the
row), what is wrong there and the mend. Lines and rows are counted from 1.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import posixpath
import re
import string
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar
from xml.parsers import expat

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from cluster.errors import InputError
from cluster.storage import Folder

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".xml")
BLOCK_BYTES = 8 << 20  # an object store answers each block with a request of its own
PARQUET_ROWS = 1_000
Item = TypeVar("Item")
_Placed = tuple[str, Mapping[str, Any]]

_OTHER_FORMATS = {
    b"\x1f\x8b": ("gzip", "unpack it with gunzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unpack it with unzstd"),
    b"PK\x03\x04": ("zip", "unpack it with unzip"),
    b"PAR1": ("Parquet", "let its name end in .parquet"),
}
"""The first bytes of a file, what they say it is, and the mend."""

# The one list of a JSON file: the file itself, or `examples` of the object that the file is.
_LIST = re.compile(r"\s*\[")
_EXAMPLES = re.compile(r'"examples"\s*:\s*\[')
_OPENING = 10_000  # characters in which `examples` has to begin
_BETWEEN_ITEMS = re.compile(r"[\s,]*")


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it stands in its file, and where."""

    place: str
    """For people: `train.jsonl:12` or `train.parquet row 12`."""

    part: str
    """The file's whole path, or `repository/config/split` on the hub."""

    number: int
    """How many rows of the same part come before it."""

    values: Mapping[str, Any]

    def value(self, column: str, mend: str = "is this file in the upstream format?") -> Any:
        """What stands in a column that must be there and filled; else `InputError`."""
        if column not in self.values:
            raise InputError(
                f"{self.place}: no column {column!r}; there are {', '.join(self.values) or 'none'}"
                f"{nearest(column, self.values)}; {mend}"
            )
        value = self.values[column]
        if value is None:
            raise self.wrong(column, "is null; fill it in or remove the row")
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
            if not isinstance(option, str | int | float) or isinstance(option, bool):
                raise self.wrong(
                    column, f": every option must be a text, one is a {kind_of(option)}"
                )
        texts = [option.strip() if isinstance(option, str) else str(option) for option in options]
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
        """The value as text; JSON's numbers and truth values are written out."""
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int):
            return str(value)
        if isinstance(value, float | Decimal):
            return format(Decimal(str(value)), "f")  # 1e-07 as 0.0000001
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
            reason = f": a broken character at {error.start}; mend the text"
            raise self.wrong(column, reason) from error
        if "\0" in text:
            raise self.wrong(
                column,
                f": a NUL character at {text.index(chr(0))}, as a wrong conversion leaves it; "
                "mend the text",
            )

    def wrong(self, column: str | None, what: str) -> InputError:
        """The complaint about a column of this row: `train.jsonl:12, column 'answer' <what>`."""
        gap = "" if what.startswith(":") else " "
        return InputError(f"{self.place}, column {column!r}{gap}{what}")


def read_rows(location: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of one file, at least one, read as they are asked for.

    `location` is an absolute path or a URI. Of a Parquet file only `columns` are read, where given;
    the others stand as None. Raises `InputError`.
    """
    with open_file(location) as stream:
        number = -1
        for number, (place, values) in enumerate(_read(location, stream, columns)):
            yield Row(place, location, number, values)
    if number < 0:
        raise InputError(f"{location} holds no questions; give another file or leave it out")


def resolve(path: str, folder: str) -> str:
    """The absolute path or URI of a path given relative to `folder`."""
    if "://" in path:
        return path
    local = Path(path).expanduser()
    if "://" in folder and not local.is_absolute():
        return posixpath.join(folder, path)
    return str(Path(folder).expanduser().resolve() / local)


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (nearest: gsm8k)``, or nothing where nothing is near."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (nearest: {found[0]})" if found else ""


def kind_of(value: Any) -> str:
    """What a person would call the value: `text`, `list`, `number`, `null`."""
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


def open_file(location: str) -> Any:
    """The file opened for reading. Raises `InputError`, with the nearest name there."""
    if not location.endswith(SUFFIXES):
        known = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise InputError(f"question file {location}: its name must end in {known}")
    try:
        filesystem, inner = pyarrow.fs.FileSystem.from_uri(location)
        found = filesystem.get_file_info(inner).type
        if found == pyarrow.fs.FileType.File:
            return filesystem.open_input_file(inner)
        parent, name = posixpath.split(inner)
        there = Folder(filesystem, parent).file_names()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"cannot read the question file {location}: {error}") from error
    if found == pyarrow.fs.FileType.Directory:
        raise InputError(f"question file {location} is a folder; name the file in it")
    raise InputError(
        f"no question file {location}{nearest(name, there)}; "
        "relative paths start at questions.folder"
    )


def _read(location: str, stream: Any, columns: Sequence[str] | None) -> Iterator[_Placed]:
    """The rows of an open file with their places, by the end of its name."""
    if location.endswith(".parquet"):
        return _read_parquet(location, stream, columns)
    if location.endswith(".jsonl"):
        return _read_jsonl(location, stream)
    whole = {".json": _read_json, ".csv": _read_csv, ".xml": _read_xml}
    return whole[posixpath.splitext(location)[1]](location, stream)


def _read_jsonl(location: str, stream: Any) -> Iterator[_Placed]:
    # Cut at line feeds alone: JSON texts may hold U+2028, at which `str.splitlines` would cut.
    lines = io.BufferedReader(stream, BLOCK_BYTES)
    for number, line in enumerate(_reading(location, lines), start=1):
        if number == 1:
            _refuse_other_format(location, line, "JSONL")
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            place = f"{location}:{number}"
            yield place, _parse_line(place, line)


def _reading(location: str, items: Iterable[Item]) -> Iterator[Item]:
    """The items; what the file system says against the next one becomes an `InputError`."""
    try:
        yield from items
    except OSError as error:
        raise InputError(f"cannot read the question file {location}: {error}") from error


def _refuse_other_format(location: str, start: bytes, wanted: str) -> None:
    """Raise `InputError` for what is text by name only, by the first bytes of the file."""
    for magic, (name, mend) in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise InputError(f"{location} is not {wanted} but {name}; {mend}")


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
        raise InputError(f"{place}: every line is one JSON object, this is a {kind_of(value)}")
    return value


def _read_whole(location: str, stream: Any, wanted: str) -> bytes:
    data = b"".join(_reading(location, iter(lambda: stream.read(BLOCK_BYTES), b"")))
    _refuse_other_format(location, data, wanted)
    return data.removeprefix(b"\xef\xbb\xbf")


def _decode(location: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{location}:{line} is not UTF-8 ({error.reason}); save it as UTF-8"
        ) from error


def _read_json(location: str, stream: Any) -> Iterator[_Placed]:
    """The objects of the file's one list; several benchmarks call JSON lines `.json`, too."""
    data = _read_whole(location, stream, "JSON")
    text = _decode(location, data)
    start = _LIST.match(text) or _EXAMPLES.search(text, 0, _OPENING)
    if start is None:
        yield from _read_jsonl(location, pa.BufferReader(data))
    else:
        yield from _list_items(location, text, start.end())


def _list_items(location: str, text: str, position: int) -> Iterator[_Placed]:
    """The objects of a list whose bracket ends at `position`, each with the line it begins on."""
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    while True:
        gap = _BETWEEN_ITEMS.match(text, position)
        position = gap.end() if gap else position
        line, counted = line + text.count("\n", counted, position), position
        place = f"{location}:{line}"
        if text.startswith("]", position):
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise InputError(f"{place} is not JSON: {what}; mend the item") from error
        if not isinstance(value, dict):
            raise InputError(f"{place}: every item is one JSON object, this is a {kind_of(value)}")
        yield place, value


def _read_csv(location: str, stream: Any) -> Iterator[_Placed]:
    """The rows of a CSV file with a header; an empty cell stands as None."""
    text = _decode(location, _read_whole(location, stream, "CSV"))
    # The separators of lines stay as they are, because a cell in quotes may hold some.
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    start = 2
    try:
        for row in rows:
            place = f"{location}:{start}"
            if None in row:
                raise InputError(f"{place} has more cells than the header; quote cells with commas")
            yield place, {name: cell or None for name, cell in row.items()}
            start = rows.line_num + 1
    except csv.Error as error:
        raise InputError(f"{location}:{start} is not CSV: {error}; mend the line") from error


def _read_parquet(location: str, stream: Any, columns: Sequence[str] | None) -> Iterator[_Placed]:
    """The rows; columns that nobody asked for are not read and stand as None."""
    number = 0
    try:
        file = pq.ParquetFile(stream)
        empty = dict.fromkeys(file.schema_arrow.names)
        for batch in file.iter_batches(PARQUET_ROWS, columns=columns):
            for values in batch.to_pylist():
                number += 1
                yield f"{location} row {number}", empty | values
    except UnicodeDecodeError as error:
        raise InputError(
            f"{location}, after row {number}: a text is not UTF-8 ({error.reason}); "
            "write the file anew with UTF-8 texts"
        ) from error
    except (pa.ArrowException, OSError, OverflowError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{location} cannot be read as Parquet: {reason}") from error


@dataclass
class _Element:
    """An XML element that is still open."""

    line: int
    values: dict[str, Any]
    text: list[str] = field(default_factory=list)
    is_leaf: bool = True
    holds_leaves_only: bool = True


def _read_xml(location: str, stream: Any) -> Iterator[_Placed]:
    """The elements whose children are all leaves: their attributes and their children's texts."""
    rows: list[_Placed] = []
    stack: list[_Element] = []
    # Expat of 2.4.1 and later bounds what entities expand to.
    parser = expat.ParserCreate()

    def start(name: str, attributes: dict[str, str]) -> None:
        stack.append(_Element(parser.CurrentLineNumber, dict(attributes)))

    def end(name: str) -> None:
        element = stack.pop()
        if not element.is_leaf and element.holds_leaves_only:
            rows.append((f"{location}:{element.line}", element.values))
        if stack:
            stack[-1].is_leaf = False
            stack[-1].holds_leaves_only &= element.is_leaf
            stack[-1].values[name] = "".join(element.text) or None

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = lambda text: stack[-1].text.append(text)
    try:
        parser.Parse(_read_whole(location, stream, "XML"), True)
    except expat.ExpatError as error:
        raise InputError(f"{location} is not XML: {error}; mend the file") from error
    yield from rows


def _is_blank(text: str) -> bool:
    """Whether nothing in it can be seen: white space, control and zero-width characters."""
    return all(char.isspace() or unicodedata.category(char) in ("Cc", "Cf") for char in text)
