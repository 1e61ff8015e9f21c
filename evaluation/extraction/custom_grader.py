"""A custom grader: `folder/file.py:function`, or `package.module:function` of a package.

It is called like `evaluation.grader.grade`, with the text outside the model's thinking, and returns
an `evaluation.grader.Grade`::

    def my_grader(text: str, question: Question, *, read_last: bool, finished: bool) -> Grade: ...

Every process that grades loads it (the driver and the workers on all nodes) and calls it from
several threads. A question carries the text of its grader's file; a package must be installed on
all nodes. Its exceptions are treated as bugs: during generation the question is marked as failed,
and later they end the run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from cluster.errors import InputError
from cluster.own_code import OwnCode, check_function

FORM = "(text, question, *, read_last, finished)"
_CALLED = {"read_last": False, "finished": True}


def read_grader(given: str) -> str:
    """A grader as a question carries it: what was given, and the text of a file below.

    Raises `InputError` where there is none that can be called.
    """
    if not is_file(given):
        load_grader(given)
        return given
    try:
        code = OwnCode.read(given)
    except InputError as error:
        raise InputError(f"the grader {given!r}: {error}") from error
    carried = f"{code}\n{code.source}"
    load_grader(carried)
    return carried


def is_file(grader: str) -> bool:
    """Whether a grader is given by a file, and not by a package."""
    return shown(grader).rpartition(":")[0].endswith(".py")


def shown(grader: str) -> str:
    """A grader in one line, without the text of its file."""
    return grader.partition("\n")[0]


@lru_cache(maxsize=256)
def load_grader(grader: str) -> Callable[..., Any]:
    """The function that a question carries. Raises InputError where there is none to be called."""
    line, _, source = grader.partition("\n")
    if source:
        path, _, name = line.rpartition(":")
        found = OwnCode(path, name, source).load()
    else:
        found = _import(line)
    return check_function(found, f"the grader {line!r}", FORM, "text", None, **_CALLED)


def _import(path: str) -> Any:
    module_name, _, name = path.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise InputError(
            f"the grader {path!r} names no function; write folder/file.py:function, or "
            "package.module:function"
        )
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise InputError(
            f"the grader {path!r} cannot be imported: {error}; install its package, or name its "
            "file as folder/file.py:function"
        ) from error
    if not hasattr(module, name):
        raise InputError(f"the grader {path!r}: {module_name} has no function {name!r}; name one")
    return getattr(module, name)
