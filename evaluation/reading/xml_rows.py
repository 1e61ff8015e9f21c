"""Read rows of XML: the elements whose children are all leaves, as in ASDiv."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from xml.parsers import expat

from cluster.errors import InputError
from evaluation.reading.files import read_bytes
from evaluation.reading.json_rows import Placed


@dataclass
class _Element:
    """An XML element that is still open."""

    line: int
    values: dict[str, Any]
    text: list[str] = field(default_factory=list)
    is_leaf: bool = True
    holds_leaves_only: bool = True
    twice: str | None = None
    """A duplicate child or attribute, of which one would be lost."""


def read_xml(location: str, stream: BinaryIO) -> Iterator[Placed]:
    """The attributes of each row's element and its children's texts. Raises `InputError`."""
    rows: list[Placed] = []
    stack: list[_Element] = []
    # Expat 2.4.1 and later limits the expansion of entities.
    parser = expat.ParserCreate()

    def start(name: str, attributes: dict[str, str]) -> None:
        stack.append(_Element(parser.CurrentLineNumber, dict(attributes)))

    def end(name: str) -> None:
        element = stack.pop()
        if not element.is_leaf and element.holds_leaves_only:
            rows.append(_row(location, element))
        if stack:
            _add_child(stack[-1], name, element)

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = lambda text: stack[-1].text.append(text)
    try:
        parser.Parse(read_bytes(location, stream, "XML"), True)
    except expat.ExpatError as error:
        raise InputError(f"{location} is not XML: {error}; fix the file") from error
    yield from rows


def _add_child(parent: _Element, name: str, child: _Element) -> None:
    if name in parent.values:
        parent.twice = name
    parent.is_leaf = False
    parent.holds_leaves_only &= child.is_leaf
    parent.values[name] = "".join(child.text) or None


def _row(location: str, element: _Element) -> Placed:
    place = f"{location}:{element.line}"
    if element.twice:
        raise InputError(
            f"{place}: the element {element.twice!r} is there twice, so one of the two would be "
            "lost; remove one"
        )
    return place, element.values
