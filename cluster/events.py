"""The log and the events of a command, kept in the run's folder.

Runs on the driver only. A person reads the terminal (`cluster.terminal`). The same lines with times
and levels, and the events that a program reads, go to a folder for each command,
`logs/TIME-COMMAND`::

    log.txt
        2026-11-29T17:15:02.120Z INFO paths: 200 of 50 questions; 31 with the right answer ...
    events.jsonl
        {"at": "2026-11-29T17:21:40.003Z", "event": "step_finished", "step": "paths", ...}

Both use Python's `logging`: an event is a log record with facts. On a disk each line is written as
soon as it is logged. Objects in a store cannot grow, so there both files are rewritten once a
minute and at the end.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.secrets import hide
from cluster.store.folder import Folder

LOGS = "logs"
LOG_FILE = "log.txt"
EVENTS_FILE = "events.jsonl"
WRITE_EVERY_S = 60.0

logger = logging.getLogger("regenesis")
logger.propagate = False
logger.addHandler(logging.NullHandler())


def record(event: str, **facts: Any) -> None:
    """Log an event with its facts, which must be JSON values."""
    text = ", ".join(f"{name}={value}" for name, value in facts.items())
    logger.info("%s %s", event, text, extra={"event": event, "facts": facts})


@contextmanager
def timed(event: str, **facts: Any) -> Iterator[None]:
    """Record when something began and when it finished or failed, with its duration in seconds."""
    record(f"{event}_started", **facts)
    began = time.monotonic()
    outcome = "failed"
    try:
        yield
        outcome = "finished"
    finally:
        record(f"{event}_{outcome}", **facts, seconds=round(time.monotonic() - began, 1))


@contextmanager
def kept_log(run: Folder, command: str) -> Iterator[None]:
    """Keep the log and the events of a command, and how it ended, in the folder of its run."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    folder = run.child(LOGS).child(f"{stamp}-{command}")
    with tempfile.TemporaryDirectory() as local:
        kept = _KeptFiles(folder, Path(folder.path if folder.is_local else local))
        level = logger.level
        logger.setLevel(logging.INFO)
        for handler in kept.handlers:
            logger.addHandler(handler)
        try:
            with timed("command", command=command, pid=os.getpid()):
                yield
        except BaseException as error:
            logger.error("%s ended with %s: %s", command, type(error).__name__, error)
            raise
        finally:
            for handler in kept.handlers:
                logger.removeHandler(handler)
            logger.setLevel(level)
            kept.close()


class _KeptFiles:
    """The two files, which grow on a local disk and are copied from there to the folder."""

    def __init__(self, folder: Folder, local: Path) -> None:
        local.mkdir(parents=True, exist_ok=True)
        self._folder, self._local = folder, local
        self.handlers = [logging.FileHandler(local / name) for name in (LOG_FILE, EVENTS_FILE)]
        self.handlers[0].setFormatter(_LineFormatter())
        self.handlers[1].setFormatter(_EventFormatter())
        self.handlers[1].addFilter(lambda entry: hasattr(entry, "event"))
        self._closed = threading.Event()
        self._writer = threading.Thread(target=self._write_forever, name="log", daemon=True)
        if not folder.is_local:
            self._writer.start()

    def _write_forever(self) -> None:
        while not self._closed.wait(WRITE_EVERY_S):
            self._write()

    def _write(self) -> None:
        for name in (LOG_FILE, EVENTS_FILE):
            try:
                self._folder.write_bytes(name, (self._local / name).read_bytes())
            except OSError as error:  # a run does not end because its log cannot be kept
                logger.warning("the log cannot be written: %s", error)

    def close(self) -> None:
        """Stop writing; everything logged until now is in the folder."""
        self._closed.set()
        for handler in self.handlers:
            handler.close()
        if not self._folder.is_local:
            self._writer.join()
            self._write()


class _LineFormatter(logging.Formatter):
    """`2026-11-29T17:15:02.120Z INFO ...`, with this head on each line of the message."""

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_time(record.created)} {record.levelname}"
        return "\n".join(
            f"{head} {hide(line)}" for line in record.getMessage().splitlines() or [""]
        )


class _EventFormatter(logging.Formatter):
    """One JSON object per line: `at`, `event` and its facts."""

    def format(self, record: logging.LogRecord) -> str:
        facts: Mapping[str, Any] = record.__dict__["facts"]
        event = {"at": _time(record.created), "event": record.__dict__["event"], **facts}
        return hide(json.dumps(event, ensure_ascii=False, default=str))


def _time(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


def read_events(run: Folder) -> list[dict[str, Any]]:
    """The events of all commands on a run, in the order of their times.

    A line that was cut off because its command was killed is left out.
    """
    logs, events = run.child(LOGS), []
    for name in logs.folder_names():
        if EVENTS_FILE not in logs.child(name).file_names():
            continue
        for line in logs.child(name).read_bytes(EVENTS_FILE).decode(errors="replace").splitlines():
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return sorted(events, key=lambda event: str(event["at"]))
