"""The contributions of the files in a package, such as strategies or tasks."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def found_in(package: ModuleType, name: str) -> tuple[dict[str, object], dict[str, str]]:
    """The object `name` of each file in a package and, by file, why another file has none.

    A file that does not define it, or that is broken, does not stop a run that does not need it.
    """
    found: dict[str, object] = {}
    others: dict[str, str] = {}
    for file in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
        try:
            found[file] = getattr(importlib.import_module(f"{package.__name__}.{file}"), name)
        except Exception as error:  # noqa: BLE001, whatever the file does
            others[file] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return found, others
