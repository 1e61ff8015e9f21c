"""Strategies: what a published way of self-training sets in the config.

A strategy contains settings only. Which stages a path has, how it is drawn, what is kept and what
is trained from are settings; a file in `pipelines/strategies/` names those of one paper, and what
the config says itself goes before them. So all share one engine, ledger, filter and trainer. A
user's strategy is a file elsewhere that defines `STRATEGY` in the same way.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cluster.errors import InputError
from cluster.own_code import OwnCode
from cluster.settings import laid_over

DEFAULT = "regenesis"


@dataclass(frozen=True, slots=True)
class Strategy:
    """A way of self-training; its name is that of its file."""

    source: str
    summary: str
    settings: Mapping[str, Any]
    """A part of the config tree."""


@functools.cache
def strategies() -> Mapping[str, Strategy]:
    """Every strategy by name, in the order of the names."""
    import pipelines.strategies as package

    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    modules = {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}
    return MappingProxyType({name: module.STRATEGY for name, module in modules.items()})


def with_strategy(tree: dict[str, Any]) -> dict[str, Any]:
    """A config tree with the settings of the strategy that it names beneath its own.

    Raises `InputError` for a strategy that is not there.
    """
    synthesis = tree.get("synthesis")
    name = synthesis.get("strategy", DEFAULT) if isinstance(synthesis, dict) else DEFAULT
    if isinstance(name, str) and name.endswith(".py"):
        return laid_over(own_strategy(name).settings, tree)
    if name not in strategies():
        known = ", ".join(strategies())
        raise InputError(
            f"synthesis.strategy: there is no {name!r}; there are {known}, and a file of yours is "
            "named by its path, which ends with .py"
        )
    return laid_over(strategies()[name].settings, tree)


def own_strategy(path: str) -> Strategy:
    """The strategy that a user's file defines. Raises `InputError`."""
    if name_of(path) in strategies():
        raise InputError(
            f"synthesis.strategy: {path} has the name of a strategy that there is; rename the file"
        )
    try:
        strategy = OwnCode.read(path, "STRATEGY").load()
    except InputError as error:
        raise InputError(f"synthesis.strategy: {error}") from error
    if not isinstance(strategy, Strategy) or not isinstance(strategy.settings, Mapping):
        raise InputError(
            f"synthesis.strategy: STRATEGY in {path} is not a strategy; write it as "
            "Strategy(source=..., summary=..., settings={...})"
        )
    return strategy


def name_of(strategy: str) -> str:
    """What a strategy is called in path ids and tables: its file's name, without the folder."""
    return Path(strategy).stem if strategy.endswith(".py") else strategy
