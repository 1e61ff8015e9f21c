"""Read rows of CSV and Parquet files without dropping or altering anything.

A duplicate column and a line with a different number of cells than the header are refused. The
delimiter of a CSV file is detected from its first line if only one of comma, semicolon, tab and bar
is possible; otherwise `source.delimiter` has to name it.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import InputError
from evaluation.reading.files import read_text, suffix_of
from evaluation.reading.json_rows import Placed
from evaluation.reading.values import ExactFloat

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
PARQUET_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class CsvForm:
    """The format of a CSV file, if its first line does not show it."""

    delimiter: str | None = None
    """The delimiter between the cells; None detects it from the first line."""

    header: tuple[str, ...] | None = None
    """The columns of a file without a header line."""


def read_csv(location: str, stream: BinaryIO, form: CsvForm) -> Iterator[Placed]:
    """The rows of a CSV file; an empty cell is None. Blank lines are skipped."""
    # The limit of 131,072 characters per cell applies to the process, so it is raised.
    csv.field_size_limit(sys.maxsize)
    text = read_text(location, stream, "CSV")
    delimiter = form.delimiter or _delimiter(location, text, form.header)
    # Line separators are kept, because a quoted cell may contain some.
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    try:
        names = form.header or _header(location, rows)
        start = rows.line_num + 1
        for cells in rows:
            place = f"{location}:{start}"
            if cells:
                _check_no_header(place, cells, form.header)
                _check_width(place, cells, names, DELIMITERS.get(delimiter, repr(delimiter)))
                yield place, {n: cell or None for n, cell in zip(names, cells, strict=True)}
            start = rows.line_num + 1
    except csv.Error as error:
        raise InputError(f"{location}:{start} is not CSV: {error}; fix the line") from error


def _header(location: str, rows: Iterator[list[str]]) -> tuple[str, ...]:
    """The names in the first nonblank line, without surrounding white space."""
    names = tuple(cell.strip() for cell in next((cells for cells in rows if cells), []))
    _check_unique(location, names)
    return names


def _check_no_header(place: str, cells: Sequence[str], header: Sequence[str] | None) -> None:
    """Raise `InputError` for a line that names the columns although `source.header` does."""
    if header is not None and [cell.strip() for cell in cells] == list(header):
        raise InputError(f"{place} names the columns itself; remove source.header")


def _check_unique(location: str, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        named = f"the column {twice!r}" if twice else "a column without a name"
        raise InputError(
            f"{location} has {named} twice, so one of the two would be lost; rename or remove one"
        )


def _check_width(place: str, cells: Sequence[str], names: Sequence[str], delimiter: str) -> None:
    if len(cells) != len(names):
        more = "more" if len(cells) > len(names) else "fewer"
        raise InputError(
            f"{place} has {more} cells than the header: {len(cells)}, but there are {len(names)} "
            f"columns, split at each {delimiter}; quote cells that contain one, or set "
            "source.delimiter"
        )


def _delimiter(location: str, text: str, header: Sequence[str] | None) -> str:
    """The delimiter between the cells. Raises `InputError` if the first line fits several."""
    if suffix_of(location) == ".tsv":
        return "\t"
    widths = {sign: _first_width(text, sign) for sign in DELIMITERS}
    if header is None:
        fitting = [sign for sign, width in widths.items() if width > 1]
    else:
        fitting = [sign for sign, width in widths.items() if width == len(header)]
        if text.strip() and not fitting:
            raise InputError(
                f"{location}:1 does not have the {len(header)} cells that source.header names "
                "with any delimiter; name a column for each cell"
            )
    if len(fitting) > 1:
        signs = " or a ".join(DELIMITERS[sign] for sign in fitting)
        raise InputError(
            f"{location}: its first line can be split at a {signs}; set source.delimiter"
        )
    return fitting[0] if fitting else ","


def _first_width(text: str, delimiter: str) -> int:
    """The number of cells in the first line; None if it is not CSV with that delimiter."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return len(next((cells for cells in rows if cells), []))
    except csv.Error:
        return 0


def read_parquet(location: str, stream: Any, columns: Sequence[str] | None) -> Iterator[Placed]:
    """Yield the rows; columns that were not requested are not read and are None."""
    number = 0
    try:
        file = pq.ParquetFile(stream)
        names = file.schema_arrow.names
        _check_unique(location, names)
        empty = dict.fromkeys(names)
        for batch in file.iter_batches(PARQUET_ROWS, columns=columns):
            for values in arrow_rows(batch):
                number += 1
                yield f"{location} row {number}", empty | values
    except UnicodeDecodeError as error:
        raise InputError(
            f"{location}, after row {number}: a text is not UTF-8 ({error.reason}); "
            "write the file again with UTF-8 texts"
        ) from error
    except InputError:
        raise
    except (pa.ArrowException, OSError, OverflowError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{location} cannot be read as Parquet: {reason}") from error


def arrow_rows(batch: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """The rows as Python values; a float of 16 or 32 bits becomes its shortest decimal.

    Arrow itself would widen 0.1 to 0.10000000149011612.
    """
    rows: list[dict[str, Any]] = batch.to_pylist()
    for field in batch.schema:
        shorten = _shortener(field.type)
        if shorten is not None:
            for row in rows:
                row[field.name] = shorten(row[field.name])
    return rows


_Shortener = Callable[[Any], Any]


def _shortener(kind: pa.DataType) -> _Shortener | None:
    """A function that shortens small floats anywhere in a value; None if there are none."""
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        number = np.float32 if pa.types.is_float32(kind) else np.float16
        return lambda value: None if value is None else ExactFloat(str(number(value)))
    if pa.types.is_dictionary(kind):
        return _shortener(kind.value_type)
    if pa.types.is_struct(kind):
        return _struct_shortener({f.name: _shortener(f.type) for f in kind.fields})
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = _shortener(kind.value_type)
        if inner is not None:
            return lambda value: None if value is None else [inner(item) for item in value]
    return None


def _struct_shortener(parts: dict[str, _Shortener | None]) -> _Shortener | None:
    inner = {name: part for name, part in parts.items() if part is not None}
    if not inner:
        return None

    def shorten(value: Any) -> Any:
        if value is None:
            return None
        return value | {name: part(value[name]) for name, part in inner.items()}

    return shorten
