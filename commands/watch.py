"""`regenesis.py watch RUN`: follow a run until the command that works on it ends.

By the files of the run alone, so it works from another terminal or machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime

from cluster.errors import InputError
from cluster.events import read_events
from cluster.store.folder import HOLDERS, Folder
from cluster.store.holder import DEAD_AFTER_S, has_ended, last_holder, read_beat
from cluster.store.named import folder_to_read
from cluster.terminal import ProgressLine, printable
from commands.arguments import add_run
from pipelines.analysis.overview import step_states
from pipelines.analysis.progress import format_progress, progress_of
from pipelines.stored_run import StoredRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, and how often it is looked at."""
    add_run(parser)
    parser.add_argument(
        "--every", type=float, default=10.0, metavar="S", help="default: 10 seconds"
    )
    parser.add_argument("--once", action="store_true", help="show one line and end")


def run(arguments: argparse.Namespace) -> int:
    """Show a line again and again until nobody works on the run."""
    if arguments.every <= 0:
        raise InputError(f"--every {arguments.every:g}: give a number of seconds above 0")
    line = ProgressLine(0.0, sys.stdout)
    life = _Life(folder_to_read("the run folder", arguments.run))
    while True:
        over = life.why_over()
        shown = _line(arguments.run)
        if over or arguments.once:
            line.end(" | ".join(filter(None, [shown, over])))
            return 0
        line.show(shown)
        time.sleep(arguments.every)


def _line(uri: str) -> str:
    """How far the run is now; a new round may have more steps than there were before."""
    stored = StoredRun.read(uri)
    events = read_events(stored.folder)
    return printable(format_progress(progress_of(events), step_states(stored), datetime.now(UTC)))


class _Life:
    """Whether a command works on a run, by its release, its process, or its counter."""

    def __init__(self, run: Folder) -> None:
        self._run = run
        self._last: tuple[int, bytes] | None = None
        self._changed_at = time.monotonic()

    def why_over(self) -> str:
        """A sentence when no command works on the run any more; empty while one does."""
        holder = last_holder(self._run)
        if not holder.epoch:
            return "no command works on the run"
        if has_ended(self._run, holder):
            return "the command has ended"
        now = (holder.epoch, read_beat(self._run.child(HOLDERS), holder))
        if now != self._last:
            self._last, self._changed_at = now, time.monotonic()
        if time.monotonic() - self._changed_at > DEAD_AFTER_S:
            return f"no sign of life from {holder} for {DEAD_AFTER_S:.0f} s"
        return ""
