"""Progress of long work: what the workers count, and the line a person reads.

On the driver: `ProgressPrinter`, a thread that reads the board and prints. On the board, a Ray
actor without CPUs: the counters of each worker. What crosses: small dictionaries of numbers, once
a second, and back to the worker whether it has to stop.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TextIO

DESCRIBE_EVERY_S = 1.0


class ProgressBoard:
    """Collects the counters of all workers; plain class, made a Ray actor by `cluster.pool`."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, float]] = {}
        self._processes: dict[str, dict[str, Any]] = {}
        self._stopping = False

    def report(self, worker: str, counts: dict[str, float], processes: dict[str, Any]) -> bool:
        """Replace a worker's counters; returns whether it has to flush and stop."""
        self._counts[worker] = counts
        self._processes[worker] = processes
        return self._stopping

    def stop(self) -> None:
        """Tell every worker, at its next report, to flush and stop."""
        self._stopping = True

    def total(self) -> dict[str, float]:
        """The sum over all workers that ever reported."""
        total: Counter[str] = Counter()
        for counts in self._counts.values():
            total.update(counts)
        return {**total, "num_workers": len(self._counts)}

    def processes(self) -> list[dict[str, Any]]:
        """Node and process ids of every worker that ever reported."""
        return list(self._processes.values())


class ProgressPrinter:
    """Prints a line every few seconds while a `with` block runs.

    On a terminal the line is rewritten in place, elsewhere a plain line is printed each time.
    """

    def __init__(
        self, describe: Callable[[], str], *, every_s: float, stream: TextIO | None = None
    ) -> None:
        self._describe = describe
        self._stream = stream or sys.stderr
        self._every_s = DESCRIBE_EVERY_S if self._stream.isatty() else every_s
        self._last_line: str | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> ProgressPrinter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._print(self._describe())
        if self._stream.isatty():
            self._stream.write("\n")

    def _run(self) -> None:
        # Described more often than printed: describing is also how a stop reaches the workers.
        printed = time.monotonic()
        while not self._done.wait(DESCRIBE_EVERY_S):
            line = self._describe()
            if time.monotonic() - printed >= self._every_s:
                printed = time.monotonic()
                self._print(line)

    def _print(self, line: str) -> None:
        if line == self._last_line:
            return
        self._last_line = line
        self._stream.write(f"\r\x1b[2K{line}" if self._stream.isatty() else f"{line}\n")
        self._stream.flush()


class RateMeter:
    """Turns totals into a line: done, rate over the last minute, time left."""

    def __init__(self, step: str, num_total: int, unit: str) -> None:
        self.step, self._num_total, self._unit = step, num_total, unit
        self._history: list[tuple[float, float]] = []
        self._started: tuple[float, float] | None = None

    def line(self, done: float, tokens: float, extras: Mapping[str, float]) -> str:
        """One line; the time left follows from the share done since the start."""
        now = time.monotonic()
        self._started = self._started or (now, done)
        self._history = [(t, n) for t, n in self._history if now - t <= 60] + [(now, tokens)]
        parts = [f"{self.step}: {done:.0f}/{self._num_total} {self._unit}"]
        first_time, first_tokens = self._history[0]
        if now > first_time:
            parts.append(f"{(tokens - first_tokens) / (now - first_time):.0f} tok/s")
        parts += [f"{value:.0f} {name}" for name, value in extras.items()]
        start_time, start_done = self._started
        if done > start_done and done < self._num_total:
            left = (self._num_total - done) * (now - start_time) / (done - start_done)
            parts.append(f"{format_seconds(left)} left")
        return " | ".join(parts)


def format_seconds(seconds: float) -> str:
    """`42 s`, `3 min 05 s` or `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
