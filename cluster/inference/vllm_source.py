"""Which names the installed vLLM knows, read from its source: importing it takes seconds.

So a misspelt option is refused by a driver that never imports vLLM. Each function gives an empty
tuple where there is no such source (another vLLM keeps its names elsewhere): nothing is refused
then, and vLLM itself has the last word when an engine starts.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path


def argument_names() -> tuple[str, ...]:
    """The fields of `AsyncEngineArgs`, that is of `EngineArgs` and what it adds."""
    tree = _parsed("engine/arg_utils.py")
    classes = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in ("EngineArgs", "AsyncEngineArgs")
    ]
    return tuple(
        field.target.id
        for node in classes
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )


def load_formats() -> tuple[str, ...]:
    """The values of `load_format`."""
    return _literal("model_executor/model_loader/__init__.py", "LoadFormats")


def quantization_methods() -> tuple[str, ...]:
    """The values of `quantization`."""
    return _literal("model_executor/layers/quantization/__init__.py", "QuantizationMethods")


def has_plugins() -> bool:
    """Whether other packages add to vLLM, for example load formats and quantizations."""
    found = importlib.metadata.entry_points(group="vllm.general_plugins")
    return any(not (each.dist and each.dist.name.startswith("vllm")) for each in found)


def _literal(file: str, name: str) -> tuple[str, ...]:
    """The texts in a module's `name = Literal[...]`."""
    for node in _parsed(file).body:
        if isinstance(node, ast.Assign) and name in _names(node):
            return tuple(
                part.value
                for part in ast.walk(node.value)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            )
    return ()


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
