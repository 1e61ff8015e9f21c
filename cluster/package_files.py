"""What the files of a package add to the program: a strategy, a task."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def found_in(package: ModuleType, name: str) -> tuple[dict[str, object], dict[str, str]]:
    """What each file of a package calls `name`, and by file why another one has none.

    A file that somebody left there, whole or broken, is no reason to stop a run that does not ask
    for it.
    """
    found: dict[str, object] = {}
    others: dict[str, str] = {}
    for file in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
        try:
            found[file] = getattr(importlib.import_module(f"{package.__name__}.{file}"), name)
        except Exception as error:  # noqa: BLE001, whatever the file does
            others[file] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return found, others
