"""A custom grader for questions, named by its import path: `my_package.my_module:my_grader`.

It is called like `evaluation.grader.grade`, with the text outside the model's thinking, and returns
an `evaluation.grader.Grade`::

    def my_grader(text: str, question: Question, *, read_last: bool, finished: bool) -> Grade: ...

Every process that grades imports it (the driver and the workers on all nodes) and calls it from
several threads. Its exceptions are treated as bugs: during generation the question is marked as
failed, and later they end the run.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from cluster.errors import InputError


@lru_cache(maxsize=256)
def load_grader(path: str) -> Callable[..., Any]:
    """The function at an import path. Raises InputError if there is no callable."""
    module_name, _, name = path.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise InputError(f"the grader {path!r} is no import path; write package.module:function")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise InputError(
            f"the grader {path!r} cannot be imported: {error}; install its package, or name its "
            "folder in PYTHONPATH"
        ) from error
    grader = getattr(module, name, None)
    if not callable(grader):
        raise InputError(f"the grader {path!r}: {module_name} has no function {name!r}; name one")
    _check_arguments(path, grader)
    found: Callable[..., Any] = grader
    return found


def _check_arguments(path: str, grader: Callable[..., Any]) -> None:
    try:
        inspect.signature(grader).bind("text", None, read_last=False, finished=True)
    except TypeError as error:
        raise InputError(
            f"the grader {path!r} has other parameters ({error}); define it as "
            "(text, question, *, read_last, finished)"
        ) from error
