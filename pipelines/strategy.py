"""Strategies: the settings that a published self-training method uses.

A strategy contains settings only. The stages of a path, its sampling, what is kept and what is
trained on are settings; a file in `pipelines/strategies/` has those of one paper, and the settings
in a config override them. So all strategies share one engine, ledger, filter and trainer. Your own
strategy is a file anywhere that defines `STRATEGY` in the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cluster.errors import InputError
from cluster.own_code import OwnCode
from cluster.package_files import found_in
from cluster.settings import laid_over

DEFAULT = "regenesis"


@dataclass(frozen=True, slots=True)
class Strategy:
    """A self-training method; its name is that of its file."""

    source: str
    summary: str
    settings: Mapping[str, Any]
    """A part of the config tree."""


@functools.cache
def strategies() -> Mapping[str, Strategy]:
    """Every strategy by name, in the order of the names."""
    import pipelines.strategies as package

    found, _ = found_in(package, "STRATEGY")
    own = {name: each for name, each in found.items() if isinstance(each, Strategy)}
    return MappingProxyType(own)


def with_strategy(tree: dict[str, Any]) -> dict[str, Any]:
    """A config tree on top of the settings of the strategy that it names.

    Raises `InputError` for an unknown strategy.
    """
    synthesis = tree.get("synthesis")
    name = synthesis.get("strategy", DEFAULT) if isinstance(synthesis, dict) else DEFAULT
    if isinstance(name, str) and name.endswith(".py"):
        return laid_over(own_strategy(name).settings, tree)
    if not isinstance(name, str) or name not in strategies():
        raise InputError(
            f"synthesis.strategy: {_unknown(name)}; there are {', '.join(strategies())}; your own "
            "strategy is named by the path of its file, which ends in .py"
        )
    return laid_over(strategies()[name].settings, tree)


def own_strategy(path: str) -> Strategy:
    """The strategy that a user's file defines. Raises `InputError`."""
    if name_of(path) in strategies():
        raise InputError(
            f"synthesis.strategy: {path} has the name of a built-in strategy; rename the file"
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
    """The name of a strategy in path ids and tables: that of its file, without the folder."""
    return Path(strategy).stem if strategy.endswith(".py") else strategy


def _unknown(name: object) -> str:
    import pipelines.strategies as package

    reason = found_in(package, "STRATEGY")[1].get(str(name))
    return f"the file of {name!r} has no strategy ({reason})" if reason else f"there is no {name!r}"
