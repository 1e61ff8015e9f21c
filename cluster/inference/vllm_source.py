"""The names that the installed vLLM knows, read from its source, because importing it takes
seconds.

This lets a driver that never imports vLLM refuse a misspelt option. Each function returns an empty
tuple if the source does not have the expected form (another vLLM may define its names elsewhere).
Nothing is refused then, and vLLM itself checks the options when an engine starts.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


def argument_names() -> tuple[str, ...]:
    """The fields of `AsyncEngineArgs`, which are those of `EngineArgs` and its additions."""
    return tuple(argument_types())


def sampling_types() -> dict[str, str]:
    """The arguments of `SamplingParams.from_optional`, with their types in the source."""
    for node in ast.walk(_parsed("sampling_params.py")):
        if isinstance(node, ast.FunctionDef) and node.name == "from_optional":
            arguments = [*node.args.args, *node.args.kwonlyargs]
            return {a.arg: ast.unparse(a.annotation) for a in arguments if a.annotation}
    return {}


def sampling_fields(name: str) -> tuple[str, ...]:
    """The public fields of a dataclass that is the value of a sampling option."""
    return tuple(
        field
        for node in _parsed("sampling_params.py").body
        if isinstance(node, ast.ClassDef) and node.name == name
        for field in _fields(node)
        if not field.startswith("_")
    )


def argument_types() -> dict[str, str]:
    """The fields of `AsyncEngineArgs`, with their types in the source."""
    return {name: kind for node in _argument_classes() for name, kind in _fields(node).items()}


@dataclass(frozen=True)
class ConfigField:
    """A field of one of vLLM's config classes."""

    bounds: Mapping[str, float]
    """The limits of its value by `ge`, `gt`, `le` and `lt`."""
    may_be_null: bool


@functools.cache
def argument_fields() -> dict[str, ConfigField]:
    """The field of a config class that each field of `AsyncEngineArgs` sets, as far as known.

    The source names it as the default (`SchedulerConfig.policy`). Where the default is another one,
    the only field with limits that has the same name is meant.
    """
    fields = {name: _config_fields(node) for name, node in _config_classes().items()}
    found: dict[str, ConfigField] = {}
    for each in (part for node in _argument_classes() for part in node.body):
        if not isinstance(each, ast.AnnAssign) or not isinstance(each.target, ast.Name):
            continue
        name, (owner, theirs) = each.target.id, _default_of(each.value)
        same = [own[name] for own in fields.values() if name in own and own[name].bounds]
        if theirs in fields.get(owner, {}):
            found[name] = fields[owner][theirs]
        elif len(same) == 1:
            is_null = isinstance(each.value, ast.Constant) and each.value.value is None
            found[name] = ConfigField(same[0].bounds, is_null)
    return found


def config_names(class_name: str) -> tuple[str, ...]:
    """The fields that a config class of vLLM takes; empty if it is not known or has a parent."""
    node = _config_classes().get(class_name)
    if node is None or node.bases:
        return ()
    taken = {name: kind for name, kind in _fields(node).items() if not kind.startswith("ClassVar")}
    return tuple(name for name in taken if not name.startswith("_"))


def _default_of(value: ast.expr | None) -> tuple[str, str]:
    """The class and the field in `Class.field` and `get_field(Class, "field")`."""
    match value:
        case ast.Attribute(value=ast.Name(id=owner), attr=name):
            return owner, name
        case ast.Call(
            func=ast.Name(id="get_field"), args=[ast.Name(id=owner), ast.Constant(value=str(name))]
        ):
            return owner, name
    return "", ""


def _config_fields(node: ast.ClassDef) -> dict[str, ConfigField]:
    return {
        each.target.id: ConfigField(_bounds(each.value), _is_null(each))
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }


def _keywords(value: ast.expr | None) -> dict[str, ast.expr]:
    """The arguments of `Field(...)`."""
    is_field = isinstance(value, ast.Call) and ast.unparse(value.func) == "Field"
    given = value.keywords if is_field and isinstance(value, ast.Call) else []
    return {each.arg: each.value for each in given if each.arg}


def _bounds(value: ast.expr | None) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, limit in _keywords(value).items():
        if name in ("ge", "gt", "le", "lt"):
            with contextlib.suppress(ValueError):  # it is computed
                found[name] = ast.literal_eval(limit)
    return found


def _is_null(field: ast.AnnAssign) -> bool:
    default = _keywords(field.value).get("default", field.value)
    is_null = isinstance(default, ast.Constant) and default.value is None
    return is_null or "None" in ast.unparse(field.annotation)


@functools.cache
def _config_classes() -> dict[str, ast.ClassDef]:
    """The classes of vLLM's config modules that are no enumerations."""
    return {
        node.name: node
        for file in _config_files()
        for node in _parsed(file).body
        if isinstance(node, ast.ClassDef) and not _is_enumeration(node)
    }


def _is_enumeration(node: ast.ClassDef) -> bool:
    return any("Enum" in ast.unparse(base) for base in node.bases)


def is_config_class(name: str) -> bool:
    """Whether this is a class of vLLM's config modules, which a config gives as a mapping."""
    return name in _config_classes()


def dtypes() -> tuple[str, ...]:
    """The values of `dtype`."""
    return _literal("config/model.py", "ModelDType")


def load_formats() -> tuple[str, ...]:
    """The values of `load_format`."""
    return _literal("model_executor/model_loader/__init__.py", "LoadFormats")


def quantization_methods() -> tuple[str, ...]:
    """The values of `quantization`."""
    return _literal("model_executor/layers/quantization/__init__.py", "QuantizationMethods")


def has_plugins() -> bool:
    """Whether other packages extend vLLM, for example by load formats and quantizations."""
    found = importlib.metadata.entry_points(group="vllm.general_plugins")
    return any(not (each.dist and each.dist.name.startswith("vllm")) for each in found)


def _argument_classes() -> list[ast.ClassDef]:
    return [
        node
        for node in _parsed("engine/arg_utils.py").body
        if isinstance(node, ast.ClassDef) and node.name in ("EngineArgs", "AsyncEngineArgs")
    ]


def _fields(node: ast.ClassDef) -> dict[str, str]:
    """The fields of a dataclass and their types."""
    return {
        field.target.id: ast.unparse(field.annotation)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def _literal(file: str, name: str) -> tuple[str, ...]:
    """The texts in `name = Literal[...]` of a module."""
    for node in _parsed(file).body:
        if isinstance(node, ast.Assign) and name in _names(node):
            return tuple(
                part.value
                for part in ast.walk(node.value)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            )
    return ()


@functools.cache
def type_names() -> dict[str, str]:
    """The types that vLLM's config modules name, as in `NAME = Literal[...]`, with their source;
    enumerations are given by name or number."""
    found: dict[str, str] = {}
    for node in (node for file in _config_files() for node in _parsed(file).body):
        match node:
            case ast.Assign(value=value) if ast.unparse(value).startswith(_TYPES):
                found |= dict.fromkeys(_names(node), ast.unparse(value))
            case ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id="TypeAlias")):
                found[name] = ast.unparse(node.value) if node.value else "Any"
            case ast.ClassDef(name=name) if _is_enumeration(node):
                found[name] = "int | str"
    return found


_TYPES = ("Literal[", "dict[", "list[", "str |", "int |")


def _config_files() -> list[str]:
    below = _package()
    return sorted(str(file.relative_to(below)) for file in below.glob("config/*.py"))


def _names(node: ast.Assign) -> Iterator[str]:
    return (target.id for target in node.targets if isinstance(target, ast.Name))


@functools.cache
def _parsed(file: str) -> ast.Module:
    try:
        return ast.parse((_package() / file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return ast.Module([], [])


def _package() -> Path:
    """The folder of vLLM's source. Raises `FileNotFoundError` where vLLM is not installed."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        raise FileNotFoundError("vLLM is not installed")
    return Path(found.origin).parent
