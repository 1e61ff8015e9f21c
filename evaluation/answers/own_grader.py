"""A question's own grader, named by its import path: `my_package.my_module:my_grader`.

It is called as `evaluation.grader.grade` is, with the text outside the model's thinking, and
returns an `evaluation.grader.Grade`::

    def my_grader(text: str, question: Question, *, read_last: bool, finished: bool) -> Grade: ...

What it raises is a fault of the grader and ends the run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from cluster.errors import InputError


@lru_cache(maxsize=256)
def load_grader(path: str) -> Callable[..., Any]:
    """The function at an import path. Raises InputError where there is none."""
    module_name, separator, name = path.partition(":")
    if not separator or not name:
        raise InputError(f"the grader {path!r} is no import path; write package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"the grader {path!r} cannot be imported: {error}; install its package, or start "
            "the run where Python finds it"
        ) from error
    grader = getattr(module, name, None)
    if not callable(grader):
        raise InputError(f"the grader {path!r}: {module_name} has no function {name!r}; name one")
    found: Callable[..., Any] = grader
    return found
