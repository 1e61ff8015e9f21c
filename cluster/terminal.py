"""What a person sees of a run: permanent lines, one line with the current progress, and tables.

Runs on the driver. Results go to stdout, progress to the stream that the caller chooses.
"""

from __future__ import annotations

import re
import select
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from cluster.events import logger
from cluster.secrets import hide

_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that a terminal interprets instead of showing, except line ends and tabs."""


def printable(text: str) -> str:
    """The text with control characters escaped, since a question may contain anything."""
    return _COMMANDS.sub(lambda found: ascii(found.group())[1:-1], text)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print and log lines that remain on the terminal, without keys; the default is stdout."""
    text = printable(hide(text))
    print(text, file=stream or sys.stdout, flush=True)
    logger.info("%s", text)


class ProgressLine:
    """The current progress, shown at most once per interval.

    On a terminal the line is rewritten in place; elsewhere it is printed again when it has changed.
    """

    def __init__(self, every_s: float, stream: TextIO | None = None) -> None:
        self._every_s = every_s
        self._stream = stream or sys.stderr
        self._in_place = self._stream.isatty()
        self._shown_at = time.monotonic()
        self._last: str | None = None

    def show(self, line: str, *, lasting: Sequence[str] = (), due: bool = False) -> None:
        """Show the line if the interval has passed, if it is `due`, or if `lasting` lines have to
        be printed above it."""
        now = time.monotonic()
        if not lasting and not due and now - self._shown_at < self._every_s:
            return
        self._shown_at = now
        line = printable(line)
        for each in map(printable, lasting):
            self._stream.write(f"\r\x1b[2K{each}\n" if self._in_place else f"{each}\n")
        if line != self._last:
            self._last = line
            self._stream.write(f"\r\x1b[2K{line}" if self._in_place else f"{line}\n")
        self._stream.flush()

    def end(self, line: str, *, lasting: Sequence[str] = ()) -> None:
        """Show the last line and leave it on the terminal."""
        self.show(line, lasting=lasting, due=True)
        if self._in_place:
            self._stream.write("\n")
            self._stream.flush()


class ProgressBars:
    """A bar for each dataset above the line of progress, redrawn in place on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        # Names of datasets are shown literally: brackets in them are not markup.
        names = TextColumn("{task.description}", markup=False)
        self._console = Console(file=stream, highlight=False, markup=False)
        self._bars = Progress(names, BarColumn(), MofNCompleteColumn(), console=self._console)
        self._tasks: dict[str, Any] = {}
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def set(self, bars: Mapping[str, tuple[int, int]]) -> None:
        """Set how much of each dataset is done, and its total; shown with the next line."""
        for name, (done, total) in bars.items():
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(printable(name))
            self._bars.update(self._tasks[name], completed=done, total=total)

    def show(self, line: str, *, lasting: Sequence[str] = ()) -> None:
        """Show the bars and the line, with permanent lines above them."""
        from rich.console import Group
        from rich.text import Text

        for each in lasting:
            self._console.print(Text(printable(each)))
        self._live.update(Group(self._bars, Text(printable(line))), refresh=True)

    def end(self, line: str, *, lasting: Sequence[str] = ()) -> None:
        """Remove the bars and leave the last line."""
        from rich.text import Text

        self._live.stop()
        for each in (*lasting, line):
            self._console.print(Text(printable(each)))


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows, of which the first holds the titles, as an aligned Markdown table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def is_unread(descriptor: int) -> bool:
    """Whether a stream is a pipe whose reader has exited, as `head` does after a few lines."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
