"""Read rows of JSON lines and of JSON lists without dropping or altering anything.

A duplicate key in an object, text after the end of a list, a superfluous comma and an invalid
number are refused; Python's reader would use the last of two keys and accept `NaN`. A number keeps
the digits with which it was written.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from cluster.errors import InputError
from evaluation.reading.files import BYTE_ORDER_MARK, read_text, reading, refuse_other_format
from evaluation.reading.values import ExactFloat, kind_of

Placed = tuple[str, Mapping[str, Any]]
"""The place of the row for people, such as `train.jsonl:12`, and the row."""

_SPACE = re.compile(r"[ \t\r\n]*")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is given twice; keep one of the two")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_float=ExactFloat)


def json_value(text: str) -> Any:
    """The JSON value in a text, parsed as strictly as a file. Raises `ValueError`."""
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError(f"JSON nested too deeply: {error}") from error


def read_json_lines(location: str, stream: Iterable[bytes]) -> Iterator[Placed]:
    """One object per line; blank lines are skipped."""
    # Split at line feeds only: JSON may contain U+2028, where `str.splitlines` would split.
    for number, line in enumerate(reading(location, stream), start=1):
        if number == 1:
            refuse_other_format(location, line, "JSONL")
            line = line.removeprefix(BYTE_ORDER_MARK)
        if line.strip():
            place = f"{location}:{number}"
            yield place, _parse_line(place, line)


def _parse_line(place: str, line: bytes) -> Mapping[str, Any]:
    try:
        value = _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{place} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise _not_json(place, error, _LINES) from error
    return _checked_object(place, value, _LINES)


_LINES = "every line must be one JSON object"
_ITEMS = "every item must be one JSON object"


def _not_json(place: str, error: Exception, rule: str) -> InputError:
    """The error for text that could not be parsed; `rule` says what is expected."""
    if isinstance(error, json.JSONDecodeError):
        reason = error.msg.removesuffix(" at")
        what = f"{reason[:1].lower()}{reason[1:]} at column {error.colno}"
        return InputError(f"{place} is not JSON: {what}; {rule}")
    reason = str(error)  # such as a duplicate key
    if isinstance(error, RecursionError):
        reason = "it is nested too deeply"
    elif "int_max_str_digits" in reason:
        reason = f"a number has more than {sys.get_int_max_str_digits()} digits"
    return InputError(f"{place} is not JSON that can be read: {reason}; {rule}")


def _checked_object(place: str, value: Any, rule: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        is_list = rule == _LINES and isinstance(value, list)
        hint = "; a file with a single list must end in .json" if is_list else ""
        raise InputError(f"{place}: {rule}, but this is a {kind_of(value)}{hint}")
    return value


def read_json(location: str, stream: BinaryIO) -> Iterator[Placed]:
    """The objects of the file's list, or of the list `examples` or `data` of its top-level object.

    Several benchmarks use the suffix `.json` for JSON lines, which are accepted too.
    """
    text = read_text(location, stream, "JSON")
    start = _after_space(text, 0)
    if text.startswith("[", start):
        end = yield from _list_items(location, text, start + 1)
        _refuse_rest(location, text, end)
        return
    examples = None if _is_lines(text) else _start_of_examples(text, start)
    if examples is None:
        yield from read_json_lines(location, (line.encode() for line in text.split("\n")))
        return
    end = yield from _list_items(location, text, examples)
    _refuse_rest(location, text, _end_of_object(location, text, end))


def _is_lines(text: str) -> bool:
    """Whether the first line is a complete object and others follow, as in JSON lines."""
    first, _, rest = text.lstrip().partition("\n")
    try:
        return bool(rest.strip()) and isinstance(_DECODER.decode(first), dict)
    except (ValueError, RecursionError):
        return False


def _start_of_examples(text: str, position: int) -> int | None:
    """Where the items of an object's list `examples` or `data` begin; None if it has neither."""
    if not text.startswith("{", position):
        return None
    try:
        while True:
            key, position = _DECODER.raw_decode(text, _after_space(text, position + 1))
            position = _after_space(text, position)
            if not isinstance(key, str) or not text.startswith(":", position):
                return None
            position = _after_space(text, position + 1)
            if key in ("examples", "data") and text.startswith("[", position):
                return position + 1
            value, position = _DECODER.raw_decode(text, position)
            position = _after_space(text, position)
            if _holds_objects(value) or not text.startswith(",", position):
                return None
    except (ValueError, RecursionError):
        return None


def _holds_objects(value: Any) -> bool:
    """Whether a value is a list that contains objects, which may be rows."""
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _end_of_object(location: str, text: str, position: int) -> int:
    """Where an object ends; `position` is after one of its values."""
    position = _after_space(text, position)
    if text.startswith("}", position):
        return position + 1
    rest = "{" + text[position:].removeprefix(",")
    try:
        values, end = _DECODER.raw_decode(rest)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{_place(location, text, position)} is not JSON: the object around the list is not "
            "closed as it should be; fix the file"
        ) from error
    for name, value in values.items():
        if _holds_objects(value):
            raise InputError(
                f"{_place(location, text, position)}: the list {name!r} follows the list of rows "
                "and would be lost; write one list per file"
            )
    return position + end - (0 if text.startswith(",", position) else 1)


def _list_items(location: str, text: str, position: int) -> Generator[Placed, None, int]:
    """The objects of a list whose bracket is before `position`; returns where the list ends."""
    line, counted = 1, 0
    position = _after_space(text, position)
    if text.startswith("]", position):
        return position + 1
    while True:
        line, counted = line + text.count("\n", counted, position), position
        place = f"{location}:{line}"
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise _not_json(place, error, _ITEMS) from error
        yield place, _checked_object(place, value, _ITEMS)
        position = _after_space(text, position)
        if text.startswith("]", position):
            return position + 1
        if not text.startswith(",", position):
            what = "a comma or the end of the list is missing after an item; fix the file"
            raise InputError(f"{_place(location, text, position)} is not JSON: {what}")
        position = _after_space(text, position + 1)
        if text.startswith(("]", ","), position):
            place = _place(location, text, position)
            raise InputError(f"{place} is not JSON: there is an extra comma; remove it")


def _refuse_rest(location: str, text: str, end: int) -> None:
    """Raise `InputError` for text after the list, such as a second list in the file."""
    position = _after_space(text, end)
    if position < len(text):
        raise InputError(
            f"{_place(location, text, position)}: text follows the end of the list and would be "
            "lost; write one list per file, or JSON lines"
        )


def _after_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _place(location: str, text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    return f"{location}:{line}"
