"""The names that the installed vLLM knows, read from its source, because importing it takes
seconds.

This lets a driver that never imports vLLM refuse a misspelt option. Each function returns an empty
tuple if the source does not have the expected form (another vLLM may define its names elsewhere).
Nothing is refused then, and vLLM itself checks the options when an engine starts.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
from collections.abc import Iterator
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
def literals() -> dict[str, str]:
    """The types `NAME = Literal[...]` of vLLM's config modules, with their source."""
    found: dict[str, str] = {}
    for file in _config_files():
        for node in _parsed(file).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Literal["):
                found |= dict.fromkeys(_names(node), ast.unparse(node.value))
    return found


def _config_files() -> list[str]:
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return []
    below = Path(found.origin).parent
    return sorted(str(file.relative_to(below)) for file in below.glob("config/*.py"))


def _names(node: ast.Assign) -> Iterator[str]:
    return (target.id for target in node.targets if isinstance(target, ast.Name))


@functools.cache
def _parsed(file: str) -> ast.Module:
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return ast.Module([], [])
    try:
        return ast.parse((Path(found.origin).parent / file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return ast.Module([], [])
