"""One command at a time holds a run's folder; what a superseded holder still writes is ignored.

The folder `holders` of a run contains::

    000001.json      written by the command that took the run first: host, process, command
    000001.beat      a counter that changes every few seconds while that command works
    000001.released  written when that command ended normally
    000002.json      the next holder

**Taking.** The number is the holder's *epoch*. Its file is created only if the name is free, in
which exactly one of several commands can succeed (`Folder.create`). A command may take a run when
the last holder has released it or is dead. On the same machine, since the same boot, a process that
no longer exists is dead at once. Otherwise the counter is watched: a holder whose counter has not
changed for `DEAD_AFTER_S` on the watcher's monotonic clock is dead. No two clocks are compared.

**Fencing.** A holder that only seemed dead, because it was suspended or disconnected, may resume
and write. This does no harm: the names of parts, compacted files and manifests contain the epoch, a
new holder records which files count before it works on a step (`cluster.store.ledger.open_ledger`),
and nothing reads what a superseded holder writes after that. The superseded holder notices at its
next beat, before a compaction and before a manifest, and ends with exit code 2."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.errors import HeldError, InputError, StorageError, TakenOverError
from cluster.secrets import hide_arguments
from cluster.store.folder import HOLDERS, OPENED, Claim, Folder
from cluster.store.unfinished import left_behind, machine, started
from cluster.terminal import say

BEAT_EVERY_S = 3.0
AT_ONCE_S = 2.0
"""So long a beat waits for a store: the next one is due."""
DEAD_AFTER_S = 30.0
"""This is ten beats, because a disk or a store may be slow for a while."""


_WRITTEN = re.compile(rf"(?:^|/)(?:{OPENED}|rows-|parts/)(\d{{6}})[-.]")


@dataclass(frozen=True)
class Holder:
    """Who took a run: the epoch, and the process as it recorded itself."""

    epoch: int
    process: Mapping[str, Any]

    def __str__(self) -> str:
        if not self.process:
            return "an unknown command"
        about = self.process
        where = f"process {about['pid']} on {about['host']}, since {about['since']}"
        return f"`{about['command']}` ({where})"

    @property
    def file_name(self) -> str:
        return f"{self.epoch:06d}.json"

    @property
    def beat_name(self) -> str:
        return f"{self.epoch:06d}.beat"

    @property
    def released_name(self) -> str:
        return f"{self.epoch:06d}.released"


def last_holder(run: Folder) -> Holder:
    """The last holder of a run; its epoch is 0 if there was none."""
    holders = run.child(HOLDERS)
    numbers = (name.partition(".")[0] for name in holders.file_names())
    holder = Holder(max((int(n) for n in numbers if n.isdigit()), default=0), {})
    process = holders.read_json(holder.file_name) if holder.epoch else None
    if isinstance(process, dict) and this_process().keys() <= process.keys():
        return replace(holder, process=process)
    return holder


@contextlib.contextmanager
def hold(run: Folder, *, take_over: bool = False) -> Iterator[Folder]:
    """Hold a run within the block; yields its folder, which writes files with the holder's epoch.

    Raises `HeldError` when another command holds the run, `TakenOverError` at the end of the block
    when another command took it, and `StorageError` when it cannot be written or was removed.
    """
    holders = run.child(HOLDERS)
    mine = _take(run, take_over)
    held = replace(run, claim=Claim(holders.path, mine.epoch))
    beat = _Beat(held, mine)
    beat.start()
    try:
        with _interruptible():
            try:
                yield held
            finally:
                beat.stop()
        if beat.lost:
            raise beat.lost
        if isinstance(lost := _lost(held), StorageError):
            raise lost
    except BaseException as error:
        lost = beat.lost or (_lost(held) if isinstance(error, OSError | InputError) else None)
        if isinstance(lost or error, TakenOverError):
            raise TakenOverError(_taken_over(run)) from error
        if lost:
            raise lost from error
        raise
    finally:
        if beat.lost is None:
            with contextlib.suppress(OSError):
                _release(holders.waiting(AT_ONCE_S), mine)


def _release(holders: Folder, mine: Holder) -> None:
    """Let the next command take the run, unless its folder was removed: that is not begun anew."""
    if mine.file_name in holders.file_names(".json"):
        holders.create(mine.released_name, b"")


def _lost(held: Folder) -> TakenOverError | StorageError | None:
    """Why the run is no longer held, where that is known before the next beat would tell."""
    try:
        held.waiting(AT_ONCE_S).check_claim()
    except (TakenOverError, StorageError) as lost:
        if not isinstance(lost.__cause__, OSError):  # otherwise it is only unreachable
            return lost
    except OSError:  # it cannot be read either
        pass
    return None


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGINT interrupt the block even where a shell script started the command with `&`, which
    makes it ignore that signal: `_Beat` sends it when another command has taken the run."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if not ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _take(run: Folder, take_over: bool) -> Holder:
    """Become the next holder. Raises `HeldError`."""
    holders, before = run.child(HOLDERS), last_holder(run)
    if not (take_over or before.epoch == 0 or _is_free(run, before)):
        raise HeldError(_held(run, before))
    # The next number: of two commands that found the last holder gone, only one gets it.
    mine = Holder(1 + (before.epoch or _latest_written(run)), this_process())
    data = (json.dumps(mine.process, indent=2) + "\n").encode()
    if not holders.create(mine.file_name, data):
        raise HeldError(_held(run, last_holder(run)))
    if run.is_local and before.epoch and not _is_released(holders, before):
        for file in left_behind(Path(run.path)):
            file.unlink(missing_ok=True)
    return mine


def _latest_written(run: Folder) -> int:
    """The highest epoch in the names of what holders wrote, for a run whose holders were deleted:
    with a lower one, a command would be ignored as superseded."""
    found = (_WRITTEN.search(name) for name in run.walk())
    return max((int(match[1]) for match in found if match), default=0)


def _held(run: Folder, holder: Holder) -> str:
    return (
        f"the run folder {run.uri} is held by {holder}; wait for it or stop it, or take the run "
        "from it with --take-over"
    )


def _taken_over(run: Folder) -> str:
    return (
        f"the run folder {run.uri} was taken over by {last_holder(run)}; "
        "the work that this command finished is kept"
    )


# --- dead or alive -----------------------------------------------------------------------------


def this_process() -> dict[str, Any]:
    """How a holder describes itself. The time is for people; it is never compared."""
    return {
        "host": socket.gethostname(),
        "machine": machine(),
        "pid": os.getpid(),
        "started": started(os.getpid()),
        "command": hide_arguments([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def has_ended(run: Folder, holder: Holder) -> bool:
    """Whether a holder is known to have ended: it released the run, or its process, which was on
    this machine, is gone. Waits for nothing; a holder on another machine may be dead unnoticed."""
    process = holder.process
    if _is_released(run.child(HOLDERS), holder):
        return True
    if not machine() or process.get("machine") != machine():
        return False
    now = started(int(process["pid"]))
    return now is None or now != process["started"]  # another process may have the id now


def _is_free(run: Folder, holder: Holder) -> bool:
    """Whether a holder has released the run, has ended on this machine, or shows no sign of
    life."""
    return has_ended(run, holder) or not _gives_signs(run.child(HOLDERS), holder)


def _gives_signs(holders: Folder, holder: Holder) -> bool:
    """Watch a holder's counter until it changes, or until it has not changed for long enough."""
    before, began, told = read_beat(holders, holder), time.monotonic(), False
    while (waited := time.monotonic() - began) < DEAD_AFTER_S:
        time.sleep(BEAT_EVERY_S / 6)
        if _is_released(holders, holder):
            return False
        if read_beat(holders, holder) != before:
            return True
        if not told and waited > 2 * BEAT_EVERY_S:
            told = True
            say(f"waiting {DEAD_AFTER_S:.0f} s for a sign of life from {holder}")
    return False


def _is_released(holders: Folder, holder: Holder) -> bool:
    return holder.released_name in holders.file_names(".released")


def read_beat(holders: Folder, holder: Holder) -> bytes:
    """The counter of a holder, which changes while it works; empty where it cannot be read."""
    try:
        return holders.read_bytes(holder.beat_name)
    except OSError:
        return b""


class _Beat(threading.Thread):
    """Counts while the holder works, and interrupts it when it no longer holds the run."""

    def __init__(self, held: Folder, holder: Holder) -> None:
        super().__init__(name="holder", daemon=True)
        self._held, self._holder = held.waiting(AT_ONCE_S), holder
        self._ended = threading.Event()
        self.lost: TakenOverError | StorageError | None = None
        """Why it no longer holds the run."""

    def run(self) -> None:
        for count in itertools.count():
            try:
                self._held.check_claim()
                self._held.child(HOLDERS).write_bytes(self._holder.beat_name, b"%d" % count)
            except (TakenOverError, StorageError) as error:
                if not isinstance(error.__cause__, OSError):  # otherwise it is only unreachable
                    self.lost = error
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return
            except OSError:
                pass  # the store cannot be read either; another command may take the run
            if self._ended.wait(BEAT_EVERY_S):
                return

    def stop(self) -> None:
        """End, and take the interruption that this thread has sent, if it did not arrive before:
        later it would hide why the run is lost."""
        try:
            self._ended.set()
            self.join()
            if self.lost is not None:
                time.sleep(0.01)
        except KeyboardInterrupt:
            if self.lost is None:  # a person's
                raise
