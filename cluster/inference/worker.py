"""A worker of the pool: one engine, and the questions that share its continuous batch.

It runs as an actor of Ray Data (`cluster.inference.pool`) and gets one chunk of questions per call,
with several calls at once. A finished row is saved within `flush_s` seconds. Failures stay as small
as possible:

* a request that fails is one failed answer, and is tried again up to `max_attempts` times;
* a question whose handler fails is marked as failed, with the reason;
* an engine that dies ends its worker: Ray starts another one and gives it the same chunks.
  Questions that were being answered then run one at a time, so that the one that kills its engine
  is found and marked as failed.

If the weights are not those that the run saved, the run ends before anything is generated.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import Any, cast

import pyarrow as pa

from cluster.errors import InputError
from cluster.inference.cpu_binding import bind_cpu_share
from cluster.inference.engine import (
    Beginning,
    Completion,
    ContinuesAnswers,
    Engine,
    EngineDiedError,
    EngineSettings,
    GenerationTimeoutError,
    SamplingSettings,
    ServesAdapters,
    TellsFacts,
    TellsWeights,
    make_engine,
)
from cluster.inference.engine_processes import child_processes
from cluster.inference.job import GenerationJob, Slots, adapters_of
from cluster.inference.schedule import chunk_folder, read_chunk, read_chunk_again
from cluster.models.model import Model
from cluster.models.weight_digests import check_loaded
from cluster.store.backlog import Backlog
from cluster.store.ledger import SUMMED, PartWriter

REPORT_EVERY_S = 1.0
LIST_PROCESSES_EVERY_S = 20.0
"""Listing all processes of a machine takes as long as a step of a small model."""
LAST_FLUSH_S = 10.0
"""How long a worker whose engine died waits until its rows are written, if the store answers."""
DEATHS_OF_ITS_OWN = 2
"""The number of engine deaths from which a question may be to blame; the first was shared."""
MAX_FAILURES_IN_A_ROW = 100
"""Limit on failed questions in a row without an answer; beyond it, they are not the cause."""


class EngineWorker:
    """One engine and its chunks. This is a plain class, so a test can call it directly."""

    def __init__(
        self,
        model: Model,
        jobs: Mapping[str, GenerationJob],
        *,
        settings: EngineSettings,
        board: Any,
    ) -> None:
        self._worker_id = secrets.token_hex(8)
        self._jobs = jobs
        self._settings = settings
        self._board = board
        self._slots = Slots(settings.generations_in_flight)
        self._alone = asyncio.Lock()
        self._state = _State()
        self._model, self._model_folder = model, ""
        meter = _Meter(settings.generation_timeout_s, self._state.counts)
        self._engine = _MeteredEngine(self._start(), meter)
        self._engines = {name: self._engine.serving(job.adapter) for name, job in jobs.items()}
        self._reporter: asyncio.Task[None] | None = None
        self._weights_check: asyncio.Task[None] | None = None
        self._processes: dict[str, Any] = {}
        self._listed_at = -math.inf

    def _start(self) -> Engine:
        try:
            self._model_folder = self._fetch()
            if not self._settings.use_gpu and not self._settings.is_endpoint:
                self._bind_cpu(self._model_folder)
            return make_engine(self._model_folder, self._settings, adapters_of(self._jobs.values()))
        except Exception as error:
            # Ray only reports that the actor died; the board keeps the reason.
            self._board.note_error.remote(f"the engine did not start: {_one_line(error)}")
            raise

    def _fetch(self) -> str:
        """The model's files on this node. A server that gets chats does not even need a
        tokenizer."""
        if not self._settings.needs_model:
            return self._model.path
        return self._model.fetch("small" if self._settings.is_endpoint else "all")

    def _bind_cpu(self, folder: str) -> None:
        """Give this engine its share of the node's cores and memory, unless the config sets it."""
        import ray

        context = ray.get_runtime_context()
        place = self._board.enter_node.remote(context.get_node_id(), context.get_actor_id())
        num_nodes = sum(node["Alive"] for node in ray.nodes())
        on_node = -(-(self._settings.max_workers or 1) // num_nodes)
        bind_cpu_share(folder, self._settings, ray.get(place), on_node)

    async def __call__(self, chunk: pa.Table) -> pa.Table:
        """Process one chunk; returns its receipt once every finished row is saved."""
        if self._reporter is None:
            self._reporter = asyncio.create_task(self._report_forever())
        if self._weights_check is None:
            self._weights_check = asyncio.create_task(self._check_served())
        row = chunk.to_pylist()[0]
        self._state.num_chunks += 1
        try:
            await self._weights_check
            await self._do_chunk(self._jobs[row["job"]], row["execution"], row["chunk"])
        except* EngineDiedError as group:
            await self._die(group.exceptions[0])
        except* Exception as group:
            self._board.note_error.remote(_one_line(group.exceptions[0]))
            raise
        finally:
            self._state.num_chunks -= 1
        if self._state.dying:
            await asyncio.Event().wait()  # a receipt would report the chunk as done
        return chunk

    async def _check_served(self) -> None:
        """Raise `InputError` when the engine serves weights other than those that the run saved, or
        another model or number type than the first engine of the pool."""
        facts = dict(self._engine.facts)
        loaded = await self._engine.loaded_weights()
        if loaded is not None:
            adapters = adapters_of(self._jobs.values(), self._settings.adapter)
            facts |= await asyncio.to_thread(
                check_loaded, loaded, self._model, self._model_folder, adapters
            )
        first = await self._board.note_weights.remote(facts)
        if facts != first:
            raise InputError(
                f"the engines serve different models: {self._model_folder} gave {facts} on one "
                f"node, {first} on another; make the model and engine.dtype the same on all nodes"
            )

    async def _do_chunk(self, job: GenerationJob, execution: str, chunk: int) -> None:
        self._state.note("first_chunk_at", first=True)
        folder = chunk_folder(execution, chunk)
        key = f"{job.name}/{folder}"
        writer = PartWriter(job.folder.child(folder), job.schema)
        deaths = await self._board.begin_chunk.remote(self._worker_id, key)
        if deaths is None and not await asyncio.to_thread(writer.folder.is_empty):
            deaths = {}  # the board that knew the previous worker was also killed
        if deaths is None:
            asked = await asyncio.to_thread(read_chunk, job.folder, execution, chunk)
        else:
            attempts = self._settings.max_attempts
            asked = await asyncio.to_thread(
                read_chunk_again, job.folder, execution, chunk, attempts
            )
        async with _RowKeeper(job, writer, self._settings, self._state) as keeper:
            await self._do_questions(job, asked, keeper, deaths)
        await self._report()
        if not (self._state.stopping.is_set() or self._state.dying):
            await self._board.end_chunk.remote(key)

    async def _do_questions(
        self,
        job: GenerationJob,
        asked: list[dict[str, Any]],
        keeper: _RowKeeper,
        deaths: dict[str, int] | None,
    ) -> None:
        """Begin the questions one by one as slots become free, and wait for all of them."""
        async with asyncio.TaskGroup() as group:
            for question in asked:
                await self._slots.room()
                if self._state.stopping.is_set():
                    break
                if (job.name, question["dataset"]) not in self._state.closed:
                    task = group.create_task(self._do_question(job, question, keeper, deaths))
                    self._state.begin(task)

    async def _do_question(
        self,
        job: GenerationJob,
        question: dict[str, Any],
        keeper: _RowKeeper,
        deaths: dict[str, int] | None,
    ) -> None:
        """Try one question until its last attempt; alone if an engine died with its chunk."""
        question_id = question["question_id"]
        num_deaths = deaths.get(question_id, 0) if deaths else 0
        if num_deaths >= max(DEATHS_OF_ITS_OWN, self._settings.max_attempts):
            reason = f"its engine died {num_deaths} times while answering it"
            row = job.handler.mark_failed(question, reason) | {"attempt": num_deaths - 1}
            keeper.keep(row, question["previous"])
            return
        async with self._alone if num_deaths else contextlib.nullcontext():
            if self._state.dying:
                return  # a question that waited for its turn is not to blame
            with self._state.answering(question_id):
                if deaths is not None:
                    await self._board.begin_question.remote(self._worker_id, question_id)
                await self._attempts(job, question, keeper)

    async def _attempts(
        self, job: GenerationJob, question: dict[str, Any], keeper: _RowKeeper
    ) -> None:
        """Try until nothing fails or the attempts are used up; the row of each attempt is kept."""
        previous = question["previous"]
        for attempt in range(question["attempt"], self._settings.max_attempts):
            row = await self._try(job, question, previous) | {"attempt": attempt}
            keeper.keep(row, previous)
            if not row["num_failed"]:
                return
            previous = row

    async def _try(
        self, job: GenerationJob, question: dict[str, Any], previous: dict[str, Any] | None
    ) -> dict[str, Any]:
        try:
            engine = self._engines[job.name]
            row = await job.handler(engine, question, self._slots, previous)
        except EngineDiedError:
            raise
        except Exception as error:
            self._state.failures_in_a_row += 1
            if self._state.failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
                raise
            return job.handler.mark_failed(question, _one_line(error))
        self._state.failures_in_a_row = 0
        return row

    async def _die(self, error: BaseException) -> None:
        """End this process, so that Ray starts another; first let every chunk save its rows."""
        if self._state.died:
            return
        self._state.dying = self._state.died = True
        self._board.note_error.remote(_one_line(error))
        self._state.stop()
        away_s = max((job.folder.outage_s for job in self._jobs.values()), default=0.0)
        given_up_at = time.monotonic() + LAST_FLUSH_S + away_s
        while self._state.num_chunks > 1 and time.monotonic() < given_up_at:
            await asyncio.sleep(0.02)
        with contextlib.suppress(Exception):
            await self._report()
        os._exit(1)

    async def _report_forever(self) -> None:
        while True:
            await self._report()
            await asyncio.sleep(REPORT_EVERY_S)

    async def _report(self) -> None:
        """Send the counters; the reply is whether to stop, and which datasets have enough."""
        import ray

        if time.monotonic() - self._listed_at > LIST_PROCESSES_EVERY_S:
            self._listed_at = time.monotonic()
            node_id = ray.get_runtime_context().get_node_id()
            pids = [os.getpid(), *child_processes()]
            self._processes = {"node_id": node_id, "pids": pids, "listed_at": time.time()}
        reply = await self._board.report.remote(
            self._worker_id,
            counts=self._engine.meter.counts(),
            datasets={key: dict(counts) for key, counts in self._state.datasets.items()},
            open_questions=list(self._state.open),
            processes=self._processes,
            has_stopped=self._state.stopping.is_set() and not self._state.num_keepers,
        )
        self._state.closed = reply["closed"]
        if reply["stop"]:
            self._state.stop()

    def __del__(self) -> None:
        # A worker whose engine never started has nothing to shut down.
        with contextlib.suppress(AttributeError):
            self._engine.shutdown()


class _State:
    """The state that the calls of one worker share."""

    def __init__(self) -> None:
        self.counts: dict[str, float] = {}
        self.datasets: dict[tuple[str, str], Counter[str]] = {}
        self.open: set[str] = set()
        self.closed: set[tuple[str, str]] = set()
        self.stopping = asyncio.Event()
        self.dying = False
        self.died = False
        self.num_chunks = 0
        self.num_keepers = 0
        self.failures_in_a_row = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @contextlib.contextmanager
    def answering(self, question_id: str) -> Iterator[None]:
        """Mark the question as open within the block; it stays open if the engine dies."""
        self.open.add(question_id)
        try:
            yield
        except EngineDiedError:
            self.dying = True
            raise
        finally:
            if not self.dying:
                self.open.discard(question_id)

    def stop(self) -> None:
        """Begin no further question and cancel the open ones, whose rows were never promised."""
        self.stopping.set()
        for task in self._tasks:
            task.cancel()

    def note(self, name: str, *, first: bool = False) -> None:
        """Record the time of an event, its first or its latest occurrence."""
        if not (first and name in self.counts):
            self.counts[name] = time.time()


class _RowKeeper:
    """Keeps the finished rows of a chunk and saves them after a number of rows or seconds."""

    def __init__(
        self, job: GenerationJob, writer: PartWriter, settings: EngineSettings, state: _State
    ) -> None:
        self._job, self._writer, self._settings, self._state = job, writer, settings, state
        self._waiting = Backlog()
        self._full = asyncio.Event()
        self._closing = False
        self._flusher: asyncio.Task[None]

    async def __aenter__(self) -> _RowKeeper:
        self._state.num_keepers += 1
        self._flusher = asyncio.create_task(self._flush_forever())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Save all rows that were kept. Raises `OSError` as the file system does."""
        self._closing = True
        self._full.set()
        try:
            await self._flusher
        finally:
            self._state.num_keepers -= 1

    def keep(self, row: dict[str, Any], previous: dict[str, Any] | None) -> None:
        """Accept a finished row, which replaces the row of the previous attempt.

        Raises `StorageError` if rows wait for a store that is away and the node's disk is full.
        """
        self._waiting.add((row, _counts_of(row, previous)))
        if len(self._waiting) >= self._settings.flush_rows:
            self._full.set()

    async def _flush_forever(self) -> None:
        while not self._closing:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), self._settings.flush_s)
            self._full.clear()
            await self._flush()
        await self._flush()

    async def _flush(self) -> None:
        """Write the rows that wait, also those that come while a store is waited for."""
        while kept := self._waiting.take(self._settings.flush_rows):
            try:
                await asyncio.to_thread(self._writer.write, [row for row, _ in kept])
            except OSError:
                self._state.stop()  # what cannot be kept need not be generated
                raise
            self._state.note("last_row_at")
            for row, counts in kept:
                dataset = (self._job.name, row["dataset"])
                self._state.datasets.setdefault(dataset, Counter()).update(counts)


def _counts_of(row: Mapping[str, Any], previous: Mapping[str, Any] | None) -> dict[str, int]:
    """What a row adds to the counters of its dataset."""
    before = previous or {}
    counts = {name: (row.get(name) or 0) - (before.get(name) or 0) for name in SUMMED}
    return counts | {"num_done": int(previous is None), "num_retries": int(previous is not None)}


class _MeteredEngine:
    """An engine whose generations a meter limits and counts."""

    def __init__(self, engine: Engine, meter: _Meter) -> None:
        self._engine, self.meter = engine, meter

    def serving(self, adapter: str | None) -> _MeteredEngine:
        """The engine that answers with an adapter; its generations count together with all."""
        if adapter is None:
            return self
        return _MeteredEngine(cast(ServesAdapters, self._engine).with_adapter(adapter), self.meter)

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        answers = self._engine.chat(messages, sampling, seed, n)
        return await self.meter.metered(answers, sampling, n)

    async def go_on(
        self,
        messages: Sequence[Mapping[str, str]],
        beginning: Beginning,
        sampling: SamplingSettings,
    ) -> Completion:
        """See `ContinuesAnswers`; a job that needs it was refused for other engines."""

        async def answers() -> list[Completion]:
            engine = cast(ContinuesAnswers, self._engine)
            return [await engine.go_on(messages, beginning, sampling)]

        [completion] = await self.meter.metered(answers(), sampling, 1)
        return completion

    @property
    def facts(self) -> Mapping[str, str]:
        """See `TellsFacts`; empty for an engine that has no facts to report."""
        return self._engine.facts if isinstance(self._engine, TellsFacts) else {}

    async def loaded_weights(self) -> list[dict[str, dict[str, str]]] | None:
        """See `TellsWeights`; None for an engine that cannot report them."""
        engine = self._engine
        return await engine.loaded_weights() if isinstance(engine, TellsWeights) else None

    def shutdown(self) -> None:
        self._engine.shutdown()


class _Meter:
    """A time limit for each generation of an engine, and counters of its work."""

    def __init__(self, timeout_s: float | None, counts: dict[str, float]) -> None:
        self._timeout_s, self._counts = timeout_s, counts
        self._changed_at = time.monotonic()
        counts |= dict.fromkeys(_ENGINE_COUNTS, 0)

    async def metered(
        self, answers: Awaitable[list[Completion]], sampling: SamplingSettings, n: int
    ) -> list[Completion]:
        """Wait for the answers, with the time limit, and count them."""
        kind = str(sampling.max_tokens)
        self._change_in_flight(n, kind)
        try:
            completions = await (answers if self._timeout_s is None else self._in_time(answers))
        finally:
            self._change_in_flight(-n, kind)
        counts = self._counts
        counts["num_generations"] += n
        self._count(f"generations/{kind}", n)
        for completion in completions:
            counts["num_tokens"] += completion.num_tokens
            self._count(f"tokens/{kind}", completion.num_tokens)
            counts["num_cut_off"] += completion.finish_reason == "length"
        counts["num_prompt_tokens"] += completions[0].num_prompt_tokens
        counts["num_cached_tokens"] += completions[0].num_cached_tokens
        return completions

    async def _in_time(self, answers: Awaitable[list[Completion]]) -> list[Completion]:
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                completions = await answers
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise GenerationTimeoutError(f"no answer within {self._timeout_s:g} s") from error
        return completions

    def _change_in_flight(self, change: int, kind: str = "") -> None:
        """Update time-weighted sums: seconds with any generation, and generation-seconds."""
        now = time.monotonic()
        past, self._changed_at = now - self._changed_at, now
        counts = self._counts
        counts["idle_s" if not counts["num_in_flight"] else "busy_s"] += past
        counts["generation_s"] += past * counts["num_in_flight"]
        counts["num_in_flight"] += change
        counts["peak_in_flight"] = max(counts["peak_in_flight"], counts["num_in_flight"])
        if kind:
            self._count(f"in_flight/{kind}", change)

    def _count(self, name: str, number: int) -> None:
        """Count by kind of generation, which is its token limit, for the estimated time left."""
        self._counts[name] = self._counts.get(name, 0) + number

    def counts(self) -> dict[str, float]:
        """The counters as of now."""
        self._change_in_flight(0)
        return dict(self._counts)


_ENGINE_COUNTS = (
    "num_generations",
    "num_tokens",
    "num_cut_off",
    "num_prompt_tokens",
    "num_cached_tokens",
    "num_in_flight",
    "peak_in_flight",
    "idle_s",
    "busy_s",
    "generation_s",
)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:2000]
