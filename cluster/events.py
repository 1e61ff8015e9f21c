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

import contextlib
import io
import itertools
import json
import logging
import os
import sys
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
FILES = (LOG_FILE, EVENTS_FILE)
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
def kept_log(command: str, run: Folder | None = None) -> Iterator[KeptLog]:
    """Keep the log and the events of a command in the folder of its run, and how it ended.

    Without `run`, what is logged is held back until `KeptLog.keep_in` names the folder. A command
    that ends before that leaves no log. A log that cannot be written ends no command.
    """
    log = KeptLog(command)
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(log)
    if run is not None:
        log.keep_in(run)
    try:
        with timed("command", command=command, pid=os.getpid()):
            yield log
    except BaseException as error:
        logger.error("%s ended with %s: %s", command, type(error).__name__, error)
        raise
    finally:
        logger.removeHandler(log)
        logger.setLevel(level)
        log.close()


class KeptLog(logging.Handler):
    """The two files of one command."""

    def __init__(self, command: str) -> None:
        super().__init__()
        self._title = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{command}"
        self._held_back: list[logging.LogRecord] = []
        self._files: _LocalFiles | _RemoteFiles | None = None
        self._place = ""
        self._has_complained = False

    def keep_in(self, run: Folder) -> None:
        """Write to the folder of this run from now on, and what was held back first."""
        self.acquire()
        self._place = run.child(LOGS).uri
        try:
            folder = _new_folder(run.child(LOGS), self._title)
            self._files = _LocalFiles(folder) if folder.is_local else _RemoteFiles(run, folder)
            for entry in self._held_back:
                self.emit(entry)
            self._held_back.clear()
        except OSError as error:
            self._complain(error)
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line to the log, and one to the events where the record is an event."""
        if self._files is None:
            self._held_back.append(record)
            return
        try:
            self._files.add(LOG_FILE, _log_lines(record))
            if hasattr(record, "event"):
                self._files.add(EVENTS_FILE, _event_line(record))
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._has_complained:
            self._has_complained = True
            why = error.strerror or error
            print(f"the log in {self._place} cannot be written: {why}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the writing; what was logged until now is in the folder."""
        super().close()
        if self._files is None:
            return
        try:
            self._files.close()
        except OSError as error:
            self._complain(error)


def _new_folder(logs: Folder, name: str) -> Folder:
    """A folder that is not there yet: two commands may begin in the same second."""
    taken = logs.folder_names()
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return logs.child(next(each for each in names if each not in taken))


class _LocalFiles:
    """Files on a disk: a line is there as soon as it is added."""

    def __init__(self, folder: Folder) -> None:
        below = Path(folder.path)
        below.mkdir(parents=True, exist_ok=True)
        # Without a buffer, since the handler of a signal may add a line while another is written.
        self._files = {name: (below / name).open("ab", buffering=0) for name in FILES}

    def add(self, name: str, text: str) -> None:
        self._files[name].write(text.encode())

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class _RemoteFiles:
    """Objects cannot grow: they are written again once a minute and at the end."""

    def __init__(self, run: Folder, folder: Folder) -> None:
        self._run, self._folder = run, folder
        self._texts = {name: io.BytesIO() for name in FILES}
        self._closed = threading.Event()
        self._writer = threading.Thread(target=self._write_forever, name="log", daemon=True)
        self._writer.start()

    def add(self, name: str, text: str) -> None:
        self._texts[name].write(text.encode())

    def _write_forever(self) -> None:
        while not self._closed.wait(WRITE_EVERY_S):
            with contextlib.suppress(OSError):  # the next one, or the last one, may succeed
                self._write()

    def _write(self) -> None:
        if self._run.is_empty():
            return  # the run was removed, and its folder has to stay free for another one
        for name, text in self._texts.items():
            self._folder.write_bytes(name, text.getvalue())

    def close(self) -> None:
        self._closed.set()
        self._writer.join()
        self._write()


def _log_lines(record: logging.LogRecord) -> str:
    """`2026-11-29T17:15:02.120Z INFO ...`, a line for each line of the message."""
    head = f"{_time(record.created)} {record.levelname}"
    return "".join(f"{head} {line}\n" for line in hide(record.getMessage()).splitlines() or [""])


def _event_line(record: logging.LogRecord) -> str:
    """One JSON object: `at`, `event` and its facts."""
    facts: Mapping[str, Any] = record.__dict__["facts"]
    event = {"at": _time(record.created), "event": record.__dict__["event"], **facts}
    return hide(json.dumps(event, ensure_ascii=False, default=str)) + "\n"


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
