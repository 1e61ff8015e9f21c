"""Run a function in a subprocess, so that all its memory is returned to the system.

It is used on the driver before Ray starts, to read the user's files.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

from cluster.errors import InputError, StorageError

P = ParamSpec("P")
R = TypeVar("R")
_PASSED_ON = (InputError, StorageError)


def run_apart(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function of a module in a new process and wait for it.

    Raises the `InputError` or `StorageError` that the function raised. Any other error is printed
    with its traceback in the subprocess and raised as a `RuntimeError` here; so is a killed
    subprocess.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, args, kwargs), daemon=True)
    process.start()
    sender.close()  # so that the pipe ends when the process ends
    try:
        outcome = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(_ending(function.__qualname__, process.exitcode)) from None
    finally:
        process.kill()  # it has answered already, or Ctrl-C has interrupted the wait
        process.join()
    if isinstance(outcome, _PASSED_ON):
        raise outcome
    result: R = outcome
    return result


def _answer(
    sender: Connection,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this process
    outcome: Any
    try:
        outcome = function(*args, **kwargs)
    except _PASSED_ON as error:
        outcome = error
    with suppress(BrokenPipeError):
        sender.send(outcome)


def _ending(name: str, code: int | None) -> str:
    if code is not None and code < 0:
        killed = signal.Signals(-code).name
        hint = ", as happens when memory runs out" if killed == "SIGKILL" else ""
        return f"the process of {name} was ended by {killed}{hint}"
    return f"the process of {name} failed; its error is printed above"
