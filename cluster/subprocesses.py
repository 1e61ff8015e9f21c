"""Work in a process of its own: what it takes of memory is given back, whatever it was.

For what has to run where the driver runs, before there is a Ray: reading the user's files.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

from cluster.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


def run_apart(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function of a module in a new process and wait for it.

    Raises the `InputError` that it raised. Any other error is printed there, as is its trace, and
    is a `RuntimeError` here; so is a process that was killed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, args, kwargs), daemon=True)
    process.start()
    sender.close()  # so that the end of the process is the end of the pipe
    try:
        outcome = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(_ending(function.__qualname__, process.exitcode)) from None
    finally:
        process.kill()  # an answer was its last act; on Ctrl-C there is none
        process.join()
    if isinstance(outcome, InputError):
        raise outcome
    result: R = outcome
    return result


def _answer(
    sender: Connection,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this
    outcome: Any
    try:
        outcome = function(*args, **kwargs)
    except InputError as error:
        outcome = error
    with suppress(BrokenPipeError):
        sender.send(outcome)


def _ending(name: str, code: int | None) -> str:
    if code is not None and code < 0:
        killed = signal.Signals(-code).name
        hint = ", as happens when memory runs out" if killed == "SIGKILL" else ""
        return f"the process of {name} was ended by {killed}{hint}"
    return f"the process of {name} failed; its error is printed above"
