"""`regenesis settings [BRANCH]`: every setting with its kind, values, default and meaning.

`docs/SETTINGS.md` is its output: `python regenesis.py settings > docs/SETTINGS.md`.
"""

from __future__ import annotations

import argparse
import json
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import annotated_types
from pydantic.fields import FieldInfo

from cluster.errors import InputError
from cluster.settings import ChangeEffect, Settings
from cluster.terminal import say
from pipelines.config import Config

HEAD = """# Settings

This page is the output of `regenesis settings`; a test keeps it current. Later values override
earlier ones: the defaults, the strategy's settings, the config file, `--set a.b=value`.

When a **content** setting changes, the steps that depend on it get new folders, and the old folders
are kept. **extent** settings only add or leave out work; finished work is kept. **operational**
settings change how the work is done but not its result.
"""
PLAIN = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "`true`, `false`",
    Any: "anything",
}
BOUNDS = {
    annotated_types.Gt: ("above", "gt"),
    annotated_types.Ge: ("at least", "ge"),
    annotated_types.Lt: ("below", "lt"),
    annotated_types.Le: ("at most", "le"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the branch of the settings to show."""
    parser.add_argument("branch", nargs="?", help="such as training or training.lora; default: all")


def run(arguments: argparse.Namespace) -> int:
    """Print the sections of one branch, or all of them."""
    sections = dict(sections_of(Config, "", ChangeEffect.CONTENT))
    if arguments.branch is None:
        say(f"{HEAD}\n" + "\n".join(sections.values()).rstrip())
        return 0
    named = arguments.branch
    below = [
        text
        for path, text in sections.items()
        if path == named or path.startswith((f"{named}.", f"{named} "))
    ]
    if not below:
        known = ", ".join(filter(None, sections))
        raise InputError(f"there are no settings at {named}; choose one of {known}")
    say("\n".join(below).rstrip())
    return 0


def sections_of(
    cls: type[Settings], path: str, kind: ChangeEffect, given: Settings | None = None
) -> Iterator[tuple[str, str]]:
    """Return (path, Markdown) of a branch and of all branches below it.

    `kind` is the kind of the branch, and `given` its value when a config leaves it out.
    """
    yield path, section(cls, path, kind, given)
    for name, field in cls.model_fields.items():
        below = f"{path}.{name}" if path else name
        for child, suffix in children(field.annotation):
            default = getattr(given, name, None) if given else field.get_default()
            default = default if isinstance(default, child) else None
            yield from sections_of(child, below + suffix, kind_of(field, kind), default)


def section(cls: type[Settings], path: str, kind: ChangeEffect, given: Settings | None) -> str:
    """Format one branch: its title, its description, and a table of its settings."""
    about = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
    lines = [f"## {path or 'Top level'}", "", about, ""]
    rows = [
        row(name, field, kind, given)
        for name, field in cls.model_fields.items()
        if not list(children(field.annotation)) or field.is_required()
    ]
    if rows:
        lines += [
            "| setting | kind | values | default | meaning |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    return "\n".join(lines)


def row(name: str, field: FieldInfo, kind: ChangeEffect, given: Settings | None) -> str:
    """Format one setting as a row of the table."""
    values = values_of(field.annotation, field.metadata)
    meaning = " ".join((field.description or _about(name, field)).split())
    default = in_json(getattr(given, name)) if given else default_of(field)
    cells = (f"`{name}`", kind_of(field, kind).value, values, default, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _about(name: str, field: FieldInfo) -> str:
    """Describe a field that has no docstring: a branch, or the field that selects its form."""
    if name == "kind":
        return "Selects this form of the settings."
    return " ".join((child.__doc__ or "").split("\n")[0] for child, _ in children(field.annotation))


def kind_of(field: FieldInfo, above: ChangeEffect) -> ChangeEffect:
    """The kind of a field; everything below a branch of extent is extent too, and so on."""
    own = next(
        (mark for mark in field.metadata if isinstance(mark, ChangeEffect)), ChangeEffect.CONTENT
    )
    return above if own is ChangeEffect.CONTENT else own


def children(annotation: Any) -> Iterator[tuple[type[Settings], str]]:
    """Yield the branches that a field holds, with what is appended to the field's name."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation, ""
        return
    in_mapping = typing.get_origin(annotation) is dict
    found = [child for part in typing.get_args(annotation) for child in children(part)]
    for child, suffix in found:
        kinds = typing.get_args(child.model_fields["kind"].annotation) if len(found) > 1 else ()
        which = f" ({', '.join(kinds)})" if kinds else ""
        yield child, f"{'.NAME' if in_mapping else ''}{suffix}{which}"


def values_of(annotation: Any, metadata: typing.Sequence[Any] = ()) -> str:
    """Describe the values that a field accepts."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return values_of(parts[0], [*parts[1:], *metadata])
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value) if value is None else value}`" for value in parts)
    if origin in (typing.Union, types.UnionType):
        texts = [values_of(part) for part in parts if part is not type(None)]
        null = ["`null`"] if type(None) in parts else []
        return " or ".join(dict.fromkeys([*texts, *null])) + bounds(metadata)
    if origin in (tuple, list):
        return "list"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, Settings)):
        return "settings" if list(children(annotation)) else "mapping"
    return PLAIN.get(annotation, "text") + bounds(metadata)


def bounds(metadata: typing.Sequence[Any]) -> str:
    """Describe the limits of a number."""
    found: list[str] = []
    for mark in metadata:
        for limit in mark.metadata if isinstance(mark, FieldInfo) else [mark]:
            if type(limit) in BOUNDS:
                word, attribute = BOUNDS[type(limit)]
                found.append(f"{word} {getattr(limit, attribute)}")
    return f", {' and '.join(found)}" if found else ""


def default_of(field: FieldInfo) -> str:
    """The default as a config would write it."""
    if field.is_required():
        return "required"
    if field.default_factory_takes_validated_data:
        return "depends"
    return in_json(field.get_default(call_default_factory=True))


def in_json(value: Any) -> str:
    """Format a value as code; JSON is also valid YAML."""
    return f"`{json.dumps(value, default=str, ensure_ascii=False)}`"
