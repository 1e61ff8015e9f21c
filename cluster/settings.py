"""The config tree: typed, frozen, and wrong in one clear sentence.

Every folder owns its branch as a `Settings` class; the driver joins the branches. Precedence:
defaults < YAML file < `--set a.b=value`. Each field is one of three kinds:

* content (unmarked): changes what is made. A change gives a new step folder, the old one stays.
* `EXTENT`: how much is made. A change does only the new work.
* `OPERATIONAL`: how it is made. No effect on what is reused.

A content field that is added later carries a `Neutral` value, so that no existing folder moves.
"""

from __future__ import annotations

import copy
import difflib
import enum
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml
from pydantic_core import ErrorDetails

from cluster.errors import InputError
from cluster.secrets import refuse_keys


class ChangeEffect(enum.Enum):
    """What a change of a setting means for work already done."""

    CONTENT = "content"
    EXTENT = "extent"
    OPERATIONAL = "operational"


EXTENT = ChangeEffect.EXTENT
OPERATIONAL = ChangeEffect.OPERATIONAL


@dataclass(frozen=True)
class Neutral:
    """Marks a content field that came later, with the value that makes what was made before.

    While a field has that value it is left out of the content, so that the new field moves no
    folder of an existing run. It is not the default: a changed default has to move the folders of
    the runs that it changes. For example ``judge_votes: Annotated[int, Neutral(1)] = 3``.
    """

    value: Any


class Settings(pydantic.BaseModel):
    """Base of every config branch: frozen, strict, unknown keys refused."""

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
    """YAML 1.1 with three repairs: `1e-6` is a number, `2024-01-01` is a text, and a key given
    twice is an error."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", node.start_mark
                )
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
    """The settings of a YAML file with `a.b=value` overrides laid over it.

    `complete` may fill in what the tree leaves out, before the defaults do. Raises `InputError`
    that names the file, the field, the value and what to do.
    """
    tree = with_overrides(_read_yaml(Path(path)), overrides)
    refuse_keys("", tree)  # before any other message could show one
    return settings_of(root, complete(tree), str(path))


def settings_of(root: type[AnySettings], tree: Mapping[str, Any], place: str) -> AnySettings:
    """The settings that a tree of plain values holds. Raises `InputError` naming the place."""
    try:
        # JSON mode reads lists as tuples and stays strict about everything else.
        return root.model_validate_json(json.dumps(tree))
    except pydantic.ValidationError as error:
        raise InputError(f"{place}: {_explain(root, error)}") from error
    except TypeError as error:
        raise InputError(f"{place}: a value has no JSON form ({error}); quote it") from error


def with_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a tree with `a.b=value` laid over it. Raises `InputError`."""
    changed = copy.deepcopy(dict(tree))
    for override in overrides:
        _apply_override(changed, override)
    return changed


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees as one: a key that both have is taken from `above`, branch by branch."""
    both = {
        name: laid_over(below[name], value)
        for name, value in above.items()
        if isinstance(value, Mapping) and isinstance(below.get(name), Mapping)
    }
    return {**below, **above, **both}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        known = sorted(str(p) for p in path.parent.glob("*.yaml"))
        there = f"; there are {', '.join(known)}" if known else ""
        raise InputError(f"no config file {path}{there}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the config file {path}: {error}") from error
    try:
        tree = yaml.load(text, Loader=_YamlLoader)  # noqa: S506, a SafeLoader
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
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
            raise InputError(f"--set {override}: {'.'.join(names[:depth])} has no settings below")
    branch[names[-1]] = value


def _explain(root: type[Settings], error: pydantic.ValidationError) -> str:
    """The first thing wrong, as one sentence; a misspelt key comes before what it left missing."""
    # A default that depends on a wrong value was not made; that is not a second error.
    found = [p for p in error.errors() if p["type"] != "default_factory_not_called"]
    problems = sorted(found, key=lambda problem: problem["type"] != "extra_forbidden")
    sentence = _explain_one(root, problems[0])
    rest = len(problems) - 1
    return f"{sentence} (and {rest} more)" if rest else sentence


def _explain_one(root: type[Settings], problem: ErrorDetails) -> str:
    # A union puts the tag it chose into the location; it is not part of what the user wrote.
    location = [str(part) for part in problem["loc"] if part not in _union_tags(root)]
    field = ".".join(location) or "config"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(root, problem["loc"][:-1])
        nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        parent = ".".join(location[:-1])
        if nearest:
            hint = f"did you mean {'.'.join(filter(None, [parent, nearest[0]]))}?"
        else:
            hint = f"known here: {', '.join(known) or 'nothing'}"
        return f"unknown setting {field}; {hint}"
    if problem["type"] == "missing":
        return f"{field} is missing"
    reason = problem["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    shown = repr(problem["input"])
    if not location and problem["type"] == "value_error":
        return reason  # it concerns several fields, and names them
    given = f" (given: {shown})" if len(shown) < 120 and problem["type"] != "value_error" else ""
    return f"{field}: {reason}{given}"


def _children(annotation: Any) -> Iterable[type[Settings]]:
    """Every `Settings` class an annotation holds: itself, union members, values of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _children(argument)


def _union_tags(root: type[Settings]) -> set[str]:
    """The discriminator values used anywhere below `root` (`kind: files` and the like)."""
    tags: set[str] = set()
    for field in root.model_fields.values():
        children = list(_children(field.annotation))
        if field.discriminator or len(children) > 1:
            for child in children:
                kind = child.model_fields.get("kind")
                tags.update(getattr(kind.annotation, "__args__", ()) if kind else ())
        for child in children:
            tags |= _union_tags(child)
    return tags


def _known_keys(root: type[Settings], location: Sequence[str | int]) -> list[str]:
    """The keys allowed at a location of the tree."""
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
    """The settings that change what is made, as plain JSON values.

    A field that came later is left out while it has its `Neutral` value.
    """
    content: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        value = _plain(getattr(settings, name))
        if not any(_leaves_out(mark, value) for mark in field.metadata):
            content[name] = value
    return content


def _leaves_out(mark: Any, value: Any) -> bool:
    """Whether a field with this mark is no part of the content while it has this value."""
    if isinstance(mark, Neutral):
        return bool(value == _plain(mark.value))
    return mark in (EXTENT, OPERATIONAL)


def versioned(content: Mapping[str, Any], version: int) -> dict[str, Any]:
    """A step's content with the version of its code.

    Version 1 is left out: it is what ran before there were versions.
    """
    return {**content, **({"version": version} if version > 1 else {})}


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return content_of(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def fingerprint(*parts: Any) -> str:
    """12 hex digits over JSON values; the order of keys does not count."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
