"""Files on a disk while they are written, and whether their writer still lives.

A file gets its name once it is complete; before that it is called, for example::

    .writing-8f3a91d2-4711-1834523-0c6e5b1f

for the machine, the process, when that process was started, and a random number. A process that is
killed while it writes leaves such a file behind. It can be removed once its writer is known to have
ended, or when it is old and of another machine, where no process can be looked at.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".writing-"
_NAME = re.compile(rf"{re.escape(PREFIX)}([0-9a-f]{{8}})-(\d+)-(\d+)-[0-9a-f]{{8}}")
_EARLIER_NAME = re.compile(rf"{re.escape(PREFIX)}[0-9a-f]{{16}}")
"""How earlier versions called such a file."""


def new_name() -> str:
    """The name of a file that this process begins to write."""
    return f"{PREFIX}{_writer(os.getpid())}-{secrets.token_hex(4)}"


def left_behind(folder: Path, before: float | None = None) -> Iterator[Path]:
    """The files below a folder whose writers have ended.

    With `before`, in seconds since 1970, also those that were not written to since then and whose
    writers are not known. Folders that are links are left alone: what they show is elsewhere.
    """
    for place, _, names in os.walk(folder):
        for name in names:
            if name.startswith(PREFIX) and _may_go(Path(place, name), before):
                yield Path(place, name)


def _may_go(file: Path, before: float | None) -> bool:
    match = _NAME.fullmatch(file.name)
    if match and machine() and match[1] == _machine_id():
        return started(int(match[2])) != match[3]
    if before is None or not (match or _EARLIER_NAME.fullmatch(file.name)):
        return False
    try:
        return file.stat().st_mtime < before
    except FileNotFoundError:
        return False  # it is finished


# --- processes -----------------------------------------------------------------------------------


@functools.cache
def _writer(pid: int) -> str:
    return f"{_machine_id()}-{pid}-{started(pid) or 0}"


@functools.cache
def _machine_id() -> str:
    return hashlib.sha256(machine().encode()).hexdigest()[:8] if machine() else "0" * 8


def machine() -> str:
    """Identifies processes that can see each other: the boot of the machine, and the container;
    empty where that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def started(pid: int) -> str | None:
    """When a process of this machine was started, in clock ticks since boot, which no change of the
    clock affects; None if it has ended."""
    try:
        # After the name in parentheses come the state and, 19 fields later, the start (proc(5)).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
