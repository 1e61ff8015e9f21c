"""Report that a run has ended by calling a command or a URL (`cluster.notify`).

A command gets the news as JSON on its standard input and in the variable `REGENESIS_NEWS`. A URL
gets the JSON by POST::

    {"run": "llama3_8b", "event": "failed", "text": "no example is left to train on; ..."}

`event` is `finished`, `failed`, `stopped` (by a person) or `budget` (it would be exceeded). News
that cannot be delivered is logged. It never changes how a run ends.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.errors import InputError, InterruptedRunError, OverBudgetError
from cluster.events import logger

TIMEOUT_S = 30.0


@contextmanager
def announced(target: str | None, run: str) -> Iterator[None]:
    """Report how the block ended, without changing how it ends."""
    try:
        yield
    except BaseException as error:
        notify(target, run=run, event=_event_of(error), text=f"{error}")
        raise
    notify(target, run=run, event="finished", text=f"the run {run} is finished")


def _event_of(error: BaseException) -> str:
    if isinstance(error, OverBudgetError):
        return "budget"
    return "stopped" if isinstance(error, InterruptedRunError | KeyboardInterrupt) else "failed"


def notify(target: str | None, **news: Any) -> None:
    """Send news to a command line or an `http(s)://` URL; None sends nothing."""
    if target is None:
        return
    text = json.dumps(news, ensure_ascii=False)
    try:
        if target.startswith(("http://", "https://")):
            _post(target, text)
        else:
            _call(target, text)
    except (OSError, ValueError, subprocess.SubprocessError, urllib.error.URLError) as error:
        logger.warning("cluster.notify: %s", type(error).__name__)


def refuse_missing_program(target: str | None) -> None:
    """Raise `InputError` for a command whose program this machine does not have; its arguments, in
    which there may be a secret, are not shown."""
    if target is None or target.startswith(("http://", "https://")):
        return
    try:
        program = shlex.split(target)[0]
    except (ValueError, IndexError):
        program = ""
    if shutil.which(program) is None:
        raise InputError(
            f"cluster.notify: there is no program {program!r} here; give one with its path, or an "
            "http(s):// URL"
        )


def _post(url: str, text: str) -> None:
    request = urllib.request.Request(  # noqa: S310, the user named this URL
        url, text.encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310
        pass


def _call(command: str, text: str) -> None:
    subprocess.run(
        shlex.split(command),
        input=text.encode(),
        env=os.environ | {"REGENESIS_NEWS": text},
        timeout=TIMEOUT_S,
        check=True,
    )
