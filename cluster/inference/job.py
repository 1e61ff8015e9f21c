"""What the pool works on: questions, a handler for each, and a ledger for the rows."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from cluster.inference.engine import Engine
from cluster.inference.schedule import DatasetQuota, Questions
from cluster.store.folder import Folder

_TURNS_TO_ASK = 3
"""Turns of the event loop after which the chains of a new question have requested their slots: one
for its task, one for theirs, and one to spare."""


class Slots:
    """Limits how many generations run at once; chains are served in turn.

    A question begins when no chain is waiting any more. So an engine always has its full number in
    flight while only few questions are open, and the chains of one question run together and share
    their prefix.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = self._free = num_slots
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._nobody_waits = asyncio.Event()
        self._nobody_waits.set()
        self._door = asyncio.Lock()

    async def __aenter__(self) -> None:
        await self._acquire(1)

    async def __aexit__(self, *_: object) -> None:
        self._release(1)

    @contextlib.asynccontextmanager
    async def take(self, count: int) -> AsyncIterator[None]:
        """Hold the slots of one request for `count` generations, at most all that there are."""
        count = min(count, self._num_slots)
        await self._acquire(count)
        try:
            yield
        finally:
            self._release(count)

    async def _acquire(self, count: int) -> None:
        if not self._waiting and self._free >= count:
            self._free -= count
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, count))
        self._nobody_waits.clear()
        try:
            await turn
        except asyncio.CancelledError:
            # It may have received its slots at the same moment.
            self._release(count if turn.done() and not turn.cancelled() else 0)
            raise

    def _release(self, count: int) -> None:
        """Return slots, and give free ones to callers in the order in which they came."""
        self._free += count
        while self._waiting:
            turn, wanted = self._waiting[0]
            if not turn.done():
                if self._free < wanted:
                    return
                self._free -= wanted
                turn.set_result(None)
            self._waiting.popleft()
        self._nobody_waits.set()

    async def room(self) -> None:
        """Wait until no chain is waiting for a slot, including those of questions begun just now.

        Callers pass one at a time; otherwise all waiting callers would begin a question at once.
        """
        async with self._door:
            for _ in range(_TURNS_TO_ASK):
                await asyncio.sleep(0)
            while not self._nobody_waits.is_set():
                await self._nobody_waits.wait()


class Handler(Protocol):
    """Processes one question. It is sent to the workers, so it must be picklable."""

    @property
    def width(self) -> int:
        """How many generations of one question run at the same time."""

    @property
    def generations(self) -> Mapping[int | None, int]:
        """How many generations one question takes, by token limit; for the estimated time left."""

    async def __call__(
        self,
        engine: Engine,
        question: dict[str, Any],
        slots: Slots,
        previous: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """The finished ledger row of a question; takes a slot for each chain of generations.

        `previous` is the row of the previous attempt: only what failed in it is repeated.
        """

    def mark_failed(self, question: dict[str, Any], reason: str) -> dict[str, Any]:
        """The ledger row of a question that is abandoned, without an attempt."""


@dataclass(frozen=True)
class GenerationJob:
    """One kind of work: the questions, their handler, and the ledger for the rows."""

    name: str
    folder: Folder
    schema: pa.Schema
    handler: Handler
    questions: Questions
    shares: Mapping[str, DatasetQuota] = field(default_factory=dict)
    """Quotas by dataset; others have the default."""
    max_tokens: int | None = None
    """Limit on generated tokens of all datasets together; checked when a question is begun."""
    adapter: str | None = None
    """Folder of the LoRA adapter that does this job on an engine that serves several; null is the
    engine without one."""


def adapters_of(jobs: Iterable[GenerationJob], *others: str | None) -> list[str]:
    """The folders of the adapters that some jobs need, each once, and further ones before them."""
    return [*dict.fromkeys(filter(None, [*others, *(job.adapter for job in jobs)]))]
