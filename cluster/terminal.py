"""What a person sees of a run: lines that stay, one line that tells how far the work is, tables.

On the driver. Results go to stdout, progress to the stream that its caller names.
"""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from cluster.events import logger


def say(text: str, stream: TextIO | None = None) -> None:
    """Print lines that stay, at once, and log them; without a stream they go to stdout."""
    print(text, file=stream or sys.stdout, flush=True)
    logger.info("%s", text)


class ProgressLine:
    """The line of now, shown at most every so many seconds.

    On a terminal it is rewritten in place, elsewhere it is printed again where it has changed.
    """

    def __init__(self, every_s: float, stream: TextIO | None = None) -> None:
        self._every_s = every_s
        self._stream = stream or sys.stderr
        self._in_place = self._stream.isatty()
        self._shown_at = time.monotonic()
        self._last: str | None = None

    def show(self, line: str, *, lasting: Sequence[str] = (), due: bool = False) -> None:
        """Show the line when its time has come, when it is `due`, or when there are `lasting` lines
        to print before it."""
        now = time.monotonic()
        if not lasting and not due and now - self._shown_at < self._every_s:
            return
        self._shown_at = now
        for each in lasting:
            self._stream.write(f"\r\x1b[2K{each}\n" if self._in_place else f"{each}\n")
        if line != self._last:
            self._last = line
            self._stream.write(f"\r\x1b[2K{line}" if self._in_place else f"{line}\n")
        self._stream.flush()

    def end(self, line: str, *, lasting: Sequence[str] = ()) -> None:
        """Show the last line, and leave it where it is."""
        self.show(line, lasting=lasting, due=True)
        if self._in_place:
            self._stream.write("\n")
            self._stream.flush()


class ProgressBars:
    """A bar for each dataset and the line of now below them, for a terminal; redrawn in place."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        # Names of datasets are shown as they are: brackets in them are no markup.
        names = TextColumn("{task.description}", markup=False)
        self._console = Console(file=stream, highlight=False, markup=False)
        self._bars = Progress(names, BarColumn(), MofNCompleteColumn(), console=self._console)
        self._tasks: dict[str, Any] = {}
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def set(self, bars: Mapping[str, tuple[int, int]]) -> None:
        """How much is done of each, and how much there is; shown with the next line."""
        for name, (done, total) in bars.items():
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name)
            self._bars.update(self._tasks[name], completed=done, total=total)

    def show(self, line: str, *, lasting: Sequence[str] = ()) -> None:
        """Show the bars and the line, and above them lines that stay."""
        from rich.console import Group
        from rich.text import Text

        for each in lasting:
            self._console.print(Text(each))
        self._live.update(Group(self._bars, Text(line)), refresh=True)

    def end(self, line: str, *, lasting: Sequence[str] = ()) -> None:
        """Take the bars away and leave the last line."""
        from rich.text import Text

        self._live.stop()
        for each in (*lasting, line):
            self._console.print(Text(each))


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them the titles, as a Markdown table with even columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def is_unread(descriptor: int) -> bool:
    """Whether a file is a pipe whose reader has gone, as `head` does when it has seen enough."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
