"""What a person sees of a run: lines that stay, one line that tells how far the work is, tables.

On the driver. Results go to stdout, progress to the stream that its caller names.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO


def say(text: str) -> None:
    """Print lines that stay, at once."""
    print(text, flush=True)


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


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them the titles, as a Markdown table with even columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
