"""The config tree: typed and frozen; wrong input gives one clear sentence.

Every folder defines its branch as a `Settings` class; the driver joins the branches. Precedence:
defaults < YAML file < `--set a.b=value`. Each field is one of three kinds:

* content (unmarked): decides what is made. A change gives a new step folder; the old one is kept.
* `EXTENT`: decides how much is made. A change costs only the new work.
* `OPERATIONAL`: decides how it is made. A change does not affect what is reused.

A content field that is added later has a `Neutral` value, so that no existing folder is renamed.
"""

from __future__ import annotations

import copy
import difflib
import enum
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import pydantic
import yaml
from pydantic_core import ErrorDetails

from cluster.errors import InputError
from cluster.secrets import refuse_keys


class ChangeEffect(enum.Enum):
    """What changing a setting means for finished work."""

    CONTENT = "content"
    EXTENT = "extent"
    OPERATIONAL = "operational"


EXTENT = ChangeEffect.EXTENT
OPERATIONAL = ChangeEffect.OPERATIONAL


@dataclass(frozen=True)
class Neutral:
    """Marks a content field that was added later, with the value that keeps the earlier behaviour.

    While a field has that value it is left out of the content, so a new field renames no folder of
    an existing run. It is not the default: a changed default has to rename the folders of the runs
    that it changes. For example ``judge_votes: Annotated[int, Neutral(1)] = 3``.
    """

    value: Any


class Settings(pydantic.BaseModel):
    """Base class of every config branch: frozen and strict; unknown keys are refused."""

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
    )


AnySettings = TypeVar("AnySettings", bound=Settings)


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.1 with three corrections: `1e-6` is a number, `2024-01-01` is text, and a duplicate
    key is an error."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: list[tuple[Any, int]] = []
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if first := next((n for known, n in lines if known == key), None):
                reason = f"the key {key!r} is given twice, first in line {first}"
                raise yaml.constructor.ConstructorError(None, None, reason, key_node.start_mark)
            lines.append((key, line))
        return super().construct_mapping(node, deep=deep)


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load_settings(
    root: type[AnySettings],
    path: str | Path,
    overrides: Sequence[str] = (),
    complete: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> AnySettings:
    """Read the settings of a YAML file, with `a.b=value` overrides.

    `complete` may fill in what the tree leaves out, before the defaults do. Raises `InputError`
    that names the file or the override, the field, the value and what to do.
    """
    return overridden_settings(root, read_settings(Path(path)), overrides, str(path), complete)


def overridden_settings(
    root: type[AnySettings],
    tree: Mapping[str, Any],
    overrides: Sequence[str],
    place: str,
    complete: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> AnySettings:
    """The same for a tree that was read from a `place`."""
    # This checks their form before their values, and keys before a message could show one.
    refuse_keys("", with_overrides(tree, overrides))

    def load(num_overrides: int) -> AnySettings:
        return _validated(root, complete(with_overrides(tree, overrides[:num_overrides])))

    try:
        return load(len(overrides))
    except InputError as error:
        blamed = _first_that_fails(load, len(overrides), str(error))
        key = overrides[blamed - 1].partition("=")[0].strip() if blamed else ""
        said = str(error).removeprefix(f"{key}: ")  # the override names the field already
        raise InputError(f"{f'--set {key}' if key else place}: {said}") from error


def _first_that_fails(load: Callable[[int], Any], num_overrides: int, sentence: str) -> int:
    """The number of the first override with which the error appears; 0 is the file."""
    for number in range(num_overrides):
        try:
            load(number)
        except InputError as error:
            if str(error).partition(_REST)[0] == sentence.partition(_REST)[0]:
                return number
    return num_overrides


def settings_of(root: type[AnySettings], tree: Mapping[str, Any], place: str) -> AnySettings:
    """Validate a tree of plain values as settings. Raises `InputError` that names the place."""
    try:
        return _validated(root, tree)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _validated(root: type[AnySettings], tree: Mapping[str, Any]) -> AnySettings:
    try:
        text = json.dumps(tree)
    except TypeError as error:
        raise InputError(f"a value has no JSON form ({error}); quote it") from error
    try:
        # JSON mode reads lists as tuples and stays strict about everything else.
        settings = root.model_validate_json(text)
    except pydantic.ValidationError as error:
        raise InputError(_explain(root, json.loads(text), error)) from error
    _refuse_infinite("", tree)
    return settings


def _refuse_infinite(field: str, value: Any) -> None:
    """Refuse a number that is not finite also where any value is allowed, as in
    `engine.options`."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{field}: input should be a finite number (given: {value})")
    for name, each in _items(value):
        _refuse_infinite(f"{field}.{name}" if field else str(name), each)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    """The keys or indices of a value of YAML with what they contain."""
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, list | tuple) else ()


def with_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a tree with `a.b=value` overrides. Raises `InputError`."""
    changed = copy.deepcopy(dict(tree))
    for override in overrides:
        _apply_override(changed, override)
    return changed


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two trees: `above` wins for a key that both have, branch by branch."""
    both = {
        name: laid_over(below[name], value)
        for name, value in above.items()
        if isinstance(value, Mapping) and isinstance(below.get(name), Mapping)
    }
    return {**below, **above, **both}


def read_yaml(path: Path, setting: str | None = None) -> Any:
    """The value in a YAML file, which the setting names if there is one.

    Raises `InputError` with that setting and the line of an error.
    """
    named = f"{setting}: " if setting else ""
    try:
        text = path.read_text(encoding="utf-8")
        return yaml.load(text, Loader=_YamlLoader)  # noqa: S506, a SafeLoader
    except FileNotFoundError as error:
        raise InputError(f"{named}no file {path}; correct the path") from error
    except IsADirectoryError as error:
        raise InputError(f"{named}{path} is a folder; name a YAML file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{named}cannot read {path}: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        reason = " ".join(filter(None, [error.context, error.problem]))
        raise InputError(f"{path}{where}: this is not YAML: {reason}; correct the file") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: this is not YAML: {reason}; correct the file") from error


def read_settings(path: Path) -> dict[str, Any]:
    """Read the tree of settings in a YAML file. Raises `InputError`."""
    if not path.exists():
        known = sorted(str(p) for p in path.parent.glob("*.yaml"))
        there = f"; there are {', '.join(known)}" if known else ""
        raise InputError(f"no config file {path}{there}")
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected settings as `key: value`, found {_name_of(tree)}")
    return tree


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise InputError(f"--set {override}: expected a.b=value")
    try:
        value = yaml.load(text, Loader=_YamlLoader)  # noqa: S506, a SafeLoader
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: the value is not YAML") from error
    branch = tree
    for depth, name in enumerate(names[:-1], start=1):
        branch = branch.setdefault(name, {})
        if not isinstance(branch, dict):
            raise InputError(f"--set {override}: {'.'.join(names[:depth])} is not a branch")
    branch[names[-1]] = value


@dataclass(frozen=True)
class _Problem:
    """What pydantic says about one field."""

    field: tuple[str, ...]
    """Its keys and indices as the user wrote them, from the root."""
    detail: ErrorDetails
    expected: tuple[str, ...]
    """What the input should be, from each member of a union."""


def _explain(root: type[Settings], tree: Any, error: pydantic.ValidationError) -> str:
    """Explain the first problem in a sentence; a misspelt key comes before the one it replaced."""
    # A default that depends on an invalid value was not created; that is not a second error.
    found = [p for p in error.errors() if p["type"] != "default_factory_not_called"]
    problems = sorted(
        _one_per_field(root, tree, found),
        key=lambda problem: problem.detail["type"] != "extra_forbidden",
    )
    sentence = _explain_one(root, problems[0])
    rest = len(problems) - 1
    return f"{sentence}{_REST}{rest} more)" if rest else sentence


_REST = " (and "
"""The beginning of the part of a sentence that counts further errors."""


def _one_per_field(
    root: type[Settings], tree: Any, found: Sequence[ErrorDetails]
) -> list[_Problem]:
    """One problem for each field. Each member of a union reports its own; the member that accepts
    the field, but not something inside it, is the one that was meant."""
    by_field: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for detail in found:
        by_field.setdefault(_as_written(root, tree, detail["loc"]), []).append(detail)
    return [
        _Problem(field, details[0], tuple(dict.fromkeys(map(_expected, details))))
        for field, details in by_field.items()
        if not any(other != field and other[: len(field)] == field for other in by_field)
    ]


def _as_written(root: type[Settings], tree: Any, location: Sequence[str | int]) -> tuple[str, ...]:
    """The keys and indices of a location. A union adds the names of its members to it, such as
    `literal['all-linear']` and `files`, which the user did not write."""
    written: list[str] = []
    value = tree
    for depth, part in enumerate(location):
        inside = dict(_items(value))
        if part in inside or (
            isinstance(value, dict) and part in _known_keys(root, location[:depth])
        ):
            written.append(str(part))
            value = inside.get(part, {})
    return tuple(written)


def _expected(detail: ErrorDetails) -> str:
    """What the input should be, in the words of YAML; empty if the message says something else."""
    said = detail["msg"].removeprefix(_SHOULD_BE)
    return _YAML_WORDS.get(said, said) if detail["msg"].startswith(_SHOULD_BE) else ""


_SHOULD_BE = "Input should be "
_YAML_WORDS = {"a valid array": "a list", "an object": "a mapping"}


def _explain_one(root: type[Settings], problem: _Problem) -> str:
    detail, kind = problem.detail, problem.detail["type"]
    field = ".".join(problem.field) or "config"
    if kind == "extra_forbidden":
        return _explain_unknown(problem.field, _known_keys(root, detail["loc"][:-1]))
    if kind == "missing":
        return f"{field} is missing"
    if kind == "union_tag_not_found":
        return f"{field}.kind is missing"
    if kind == "union_tag_invalid":
        return (
            f"{field}.kind: input should be one of {detail['ctx']['expected_tags']} "
            f"(given: {detail['input']['kind']!r})"
        )
    if kind == "string_pattern_mismatch":
        pattern = detail.get("ctx", {}).get("pattern")
        return f"{field}: {detail['input']!r} is not allowed here; it has to match {pattern}"
    if all(problem.expected):
        reason = f"input should be {' or '.join(problem.expected)}"
    else:
        reason = detail["msg"].removeprefix("Value error, ")
        reason = reason[:1].lower() + reason[1:]
    if not problem.field and kind == "value_error":
        return reason  # it concerns several fields and names them
    shown = repr(detail["input"])
    given = f" (given: {shown})" if len(shown) < 120 and kind != "value_error" else ""
    return f"{field}: {reason}{given}"


def _explain_unknown(field: Sequence[str], known: Sequence[str]) -> str:
    parent = ".".join(field[:-1])
    if nearest := _nearest(field[-1], known):
        hint = f"did you mean {'.'.join(filter(None, [parent, nearest]))}?"
    else:
        hint = f"known here: {', '.join(known) or 'nothing'}"
    return f"unknown setting {'.'.join(field)}; {hint}"


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that was probably meant: one with these initials, such as `lr`, or a similar
    one."""
    with_initials = [each for each in known if _initials(each) == name.lower()]
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.7)
    return next(iter([*with_initials, *close]), None)


def _initials(name: str) -> str:
    words = name.split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def _children(annotation: Any) -> Iterable[type[Settings]]:
    """Every `Settings` class in an annotation: itself, union members, values of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _children(argument)


def _known_keys(root: type[Settings], location: Sequence[str | int]) -> list[str]:
    """The keys that are allowed at a location of the tree."""
    classes: list[type[Settings]] = [root]
    for part in location:
        found = [
            child
            for cls in classes
            if part in cls.model_fields
            for child in _children(cls.model_fields[str(part)].annotation)
        ]
        tagged = [
            cls
            for cls in classes
            if "kind" in cls.model_fields
            and part in getattr(cls.model_fields["kind"].annotation, "__args__", ())
        ]
        classes = found or tagged or classes
    return sorted({key for cls in classes for key in cls.model_fields})


def _name_of(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def content_of(settings: Settings) -> dict[str, Any]:
    """The settings that decide what is made, as plain JSON values.

    A field that was added later is left out while it has its `Neutral` value.
    """
    content: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        value = _plain(getattr(settings, name))
        if not any(_leaves_out(mark, value) for mark in field.metadata):
            content[name] = value
    return content


def _leaves_out(mark: Any, value: Any) -> bool:
    """Whether a field with this mark is left out of the content at this value."""
    if isinstance(mark, Neutral):
        return bool(value == _plain(mark.value))
    return mark in (EXTENT, OPERATIONAL)


def versioned(content: Mapping[str, Any], version: int) -> dict[str, Any]:
    """A step's content together with the version of its code.

    Version 1 is left out, because it denotes the code from before there were versions.
    """
    return {**content, **({"version": version} if version > 1 else {})}


@runtime_checkable
class HasContent(Protocol):
    """A value of a setting that says by itself what of it changes what is made."""

    @property
    def content(self) -> Any: ...


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return content_of(value)
    if isinstance(value, HasContent):
        return value.content
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def fingerprint(*parts: Any) -> str:
    """12 hex digits over JSON values, independent of the order of keys."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
