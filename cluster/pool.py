"""The engine pool: Ray Data maps a pool of engines over chunks of questions.

On the driver: which questions still lack a row, the chunks, the progress line, and the check that
every question has its row at the end. On a worker (a Ray Data actor): one engine, many chunks at
once, all of whose questions share the engine's one continuous batch; finished rows go from the
worker straight to part files. What crosses: chunks of question rows out, a receipt of a few
numbers back, and counters once a second.

Jobs of different kinds for the same weights (reasoning paths, predictions of the base model) run
side by side on the same warm engines.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from cluster.engine import (
    Completion,
    Engine,
    EngineSettings,
    SamplingSettings,
    engine_environment,
    make_engine,
)
from cluster.errors import InterruptedRunError
from cluster.ledger import Ledger, PartWriter
from cluster.models import Model
from cluster.processes import child_processes, wait_until_gone
from cluster.progress import ProgressBoard, ProgressPrinter, RateMeter
from cluster.runtime import StopRequest
from cluster.storage import Folder

REPORT_EVERY_S = 1.0


class Handler(Protocol):
    """What is done with one question. Sent to the workers, so it must pickle."""

    async def __call__(
        self, engine: Engine, question: dict[str, Any], slots: asyncio.Semaphore
    ) -> dict[str, Any]:
        """The finished ledger row of a question; takes a slot for each generation in flight."""

    def accepted(self, row: dict[str, Any]) -> int:
        """How many right answers a finished row holds, for the progress line."""


@dataclass(frozen=True)
class Job:
    """One kind of work: the questions, what is done with each, and the ledger for the rows."""

    name: str
    folder: Folder
    schema: pa.Schema
    handler: Handler
    questions: pa.Table
    """Columns of `QUESTION_SCHEMA` and `question_fingerprint`."""

    def wanted(self) -> dict[str, str]:
        """`{question_id: question_fingerprint}` of all questions, done or not."""
        ids = self.questions.column("question_id").to_pylist()
        return dict(
            zip(ids, self.questions.column("question_fingerprint").to_pylist(), strict=True)
        )

    def remaining(self) -> pa.Table:
        """The questions that have no valid row yet."""
        missing = pa.array(Ledger.read(self.folder).missing(self.wanted()), pa.string())
        return self.questions.filter(
            pa.compute.is_in(self.questions.column("question_id"), missing)
        )


def run_jobs(
    model: Model,
    jobs: Sequence[Job],
    settings: EngineSettings,
    *,
    stop: StopRequest,
    progress_every_s: float,
) -> None:
    """Do every job's missing questions on one pool of engines that all serve `model`.

    Returns when each question of each job has its row and the engines' processes are gone. Raises
    `InterruptedRunError` when asked to stop (what was finished is durable), and the engine's own
    error when its restarts are used up.
    """
    import ray

    remaining = {job.name: job.remaining() for job in jobs}
    num_total = sum(table.num_rows for table in remaining.values())
    if not num_total:
        return
    num_known = sum(job.questions.num_rows for job in jobs) - num_total
    board = ray.remote(num_cpus=0)(ProgressBoard).remote()
    meter = RateMeter("+".join(job.name for job in jobs), num_total + num_known, "questions")
    placement = _WorkerPlacement(settings)
    describe = _describer(board, meter, num_known, stop)
    try:
        with ProgressPrinter(describe, every_s=progress_every_s):
            _consume(_pool_dataset(model, jobs, remaining, settings, board, placement))
    finally:
        placement.remove()
        wait_until_gone(ray.get(board.processes.remote()))
        ray.kill(board)
    if stop.is_set():
        raise InterruptedRunError("stopped; finished questions are kept")
    for job in jobs:
        if missing := Ledger.read(job.folder).missing(job.wanted()):
            raise RuntimeError(f"{job.name}: {len(missing)} questions have no row: {missing[:3]}")


def _describer(board: Any, meter: RateMeter, num_known: int, stop: StopRequest) -> Any:
    """The function that reads the board and makes the progress line; passes a stop request on."""
    import ray

    def describe() -> str:
        if stop.is_set():
            board.stop.remote()
        total = ray.get(board.total.remote())
        if not total["num_workers"]:
            return f"{meter.step}: starting the engines"
        extras = {
            "generating": total.get("num_in_flight", 0),
            "accepted": total.get("num_accepted", 0),
        }
        done = num_known + total.get("num_done", 0)
        return meter.line(done, total.get("num_tokens", 0), extras)

    return describe


def _pool_dataset(
    model: Model,
    jobs: Sequence[Job],
    remaining: Mapping[str, pa.Table],
    settings: EngineSettings,
    board: Any,
    placement: _WorkerPlacement,
) -> Any:
    """The Ray dataset whose execution does the work. One ready-made block is one chunk: Ray Data
    keeps only a few slots busy when it has to cut the chunks itself."""
    import ray

    chunks = list(_chunks(jobs, remaining, settings.chunk_size))
    return ray.data.from_arrow(chunks).map_batches(
        EngineWorker,
        fn_constructor_args=(model, {job.name: job for job in _without_questions(jobs)}),
        fn_constructor_kwargs={"settings": settings, "board": board},
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            min_size=settings.min_workers,
            max_size=max(settings.min_workers, settings.max_workers),
            max_tasks_in_flight_per_actor=settings.chunks_in_flight,
            max_concurrent_calls_per_actor=settings.chunks_in_flight,
        ),
        ray_remote_args_fn=placement.make,
        **_resources(settings),
    )


def _resources(settings: EngineSettings) -> dict[str, Any]:
    """The processors of one worker, and its environment."""
    num_gpus = settings.tensor_parallel_size * settings.pipeline_parallel_size
    # With a placement group vLLM's own Ray workers take the GPUs, inside the same group.
    takes_gpus = settings.use_gpu and not settings.placement_group
    return {
        "num_cpus": settings.cpus_per_worker,
        "num_gpus": num_gpus if takes_gpus else 0,
        "runtime_env": {"env_vars": engine_environment(settings)},
    }


class _WorkerPlacement:
    """Ray's further arguments for each worker: finite restarts and, if asked for, a placement
    group of the actor's CPUs and one bundle for each rank of its engine.

    Ray Data does not remove the groups its actors were placed in, so `remove` does at the end.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._groups: list[Any] = []

    def make(self) -> dict[str, Any]:
        """The arguments of the next worker. By default Ray restarts and retries for ever."""
        arguments: dict[str, Any] = {
            "max_restarts": self._settings.max_restarts,
            "max_task_retries": self._settings.max_restarts,
        }
        if self._settings.placement_group:
            arguments["scheduling_strategy"] = self._reserve()
        return arguments

    def _reserve(self) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        ranks = self._settings.tensor_parallel_size * self._settings.pipeline_parallel_size
        rank: dict[str, float] = {"GPU": 1, "CPU": 0.1} if self._settings.use_gpu else {"CPU": 0.1}
        bundles = [{"CPU": self._settings.cpus_per_worker}, *[rank] * ranks]
        self._groups.append(ray.util.placement_group(bundles, strategy="PACK"))
        return PlacementGroupSchedulingStrategy(
            self._groups[-1],
            placement_group_bundle_index=0,
            placement_group_capture_child_tasks=True,
        )

    def remove(self) -> None:
        import ray

        for group in self._groups:
            ray.util.remove_placement_group(group)


def _chunks(
    jobs: Sequence[Job], remaining: Mapping[str, pa.Table], chunk_size: int
) -> Iterator[pa.Table]:
    """Chunks of at most `chunk_size` questions; the jobs take turns so that all advance."""
    execution = f"{time.time_ns() // 1_000_000:013d}-{secrets.token_hex(2)}"
    queues = [_job_chunks(job.name, remaining[job.name], chunk_size, execution) for job in jobs]
    for turn in itertools.zip_longest(*queues):
        yield from (chunk for chunk in turn if chunk is not None)


def _job_chunks(job: str, table: pa.Table, chunk_size: int, execution: str) -> Iterator[pa.Table]:
    for number, start in enumerate(range(0, table.num_rows, chunk_size)):
        yield _label(table.slice(start, chunk_size), job, f"{execution}-{number:06d}")


def _label(chunk: pa.Table, job: str, chunk_id: str) -> pa.Table:
    size = chunk.num_rows
    labelled = chunk.append_column("job", pa.array([job] * size, pa.string()))
    return labelled.append_column("chunk_id", pa.array([chunk_id] * size, pa.string()))


def _without_questions(jobs: Iterable[Job]) -> list[Job]:
    """The jobs as workers need them: their questions come with the chunks."""
    return [
        Job(job.name, job.folder, job.schema, job.handler, job.questions.slice(0, 0))
        for job in jobs
    ]


def _consume(dataset: Any) -> int:
    """Run the dataset to its end; the number of rows its receipts speak of."""
    return sum(int(receipt["num_rows"]) for receipt in dataset.iter_rows())


class EngineWorker:
    """One engine and the chunks it works on. A plain class: a test may call it directly."""

    def __init__(
        self, model: Model, jobs: Mapping[str, Job], *, settings: EngineSettings, board: Any
    ) -> None:
        self._worker_id = secrets.token_hex(8)
        self._jobs = jobs
        self._settings = settings
        self._board = board
        self._counts: dict[str, float] = dict.fromkeys(
            ("num_done", "num_accepted", "num_tokens", "num_in_flight"), 0
        )
        self._slots = asyncio.Semaphore(settings.generations_in_flight)
        self._stopping = asyncio.Event()
        self._reporter: asyncio.Task[None] | None = None
        self._engine = _CountedEngine(make_engine(model.fetch(), settings), self._counts)

    async def __call__(self, chunk: pa.Table) -> pa.Table:
        """Do one chunk; returns its receipt once every finished row is durable."""
        if self._reporter is None:
            self._reporter = asyncio.create_task(self._report_forever())
        rows = chunk.to_pylist()
        job, chunk_id = self._jobs[rows[0]["job"]], rows[0]["chunk_id"]
        writer = PartWriter(job.folder.child(chunk_id), job.schema)
        # Ray runs a chunk again when its worker died; what that worker made durable stands.
        durable = await asyncio.to_thread(writer.written_ids)
        rows = [row for row in rows if row["question_id"] not in durable]
        num_rows = await self._do_rows(job, rows, writer)
        # The last chunk's counts must arrive before Ray Data ends this worker.
        await self._report()
        return pa.table({"chunk_id": [chunk_id], "num_rows": [num_rows]})

    async def _do_rows(self, job: Job, rows: list[dict[str, Any]], writer: PartWriter) -> int:
        """Do all rows at once and write them as they finish; on a stop, only the finished ones."""
        running = {asyncio.create_task(job.handler(self._engine, row, self._slots)) for row in rows}
        stopping: asyncio.Task[Any] = asyncio.create_task(self._stopping.wait())
        num_rows = 0
        last_flush = time.monotonic()
        try:
            while running and not self._stopping.is_set():
                left = self._settings.flush_s - (time.monotonic() - last_flush)
                done, _ = await asyncio.wait(
                    {*running, stopping},
                    timeout=max(0.05, left),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                running -= done
                waiting = [self._keep(job, writer, task.result()) for task in done - {stopping}]
                num_rows += len(waiting)
                age = time.monotonic() - last_flush
                if age >= self._settings.flush_s or max(waiting, default=0) >= (
                    self._settings.flush_rows
                ):
                    await asyncio.to_thread(writer.flush)
                    last_flush = time.monotonic()
        finally:
            for task in {*running, stopping}:
                task.cancel()
            await asyncio.to_thread(writer.flush)
        return num_rows

    def _keep(self, job: Job, writer: PartWriter, row: dict[str, Any]) -> int:
        self._counts["num_done"] += 1
        self._counts["num_accepted"] += job.handler.accepted(row)
        return writer.add(row)

    async def _report_forever(self) -> None:
        while True:
            if await self._report():
                self._stopping.set()
            await asyncio.sleep(REPORT_EVERY_S)

    def _report(self) -> Any:
        """Send the counters; the reply is whether to stop."""
        import ray

        node_id = ray.get_runtime_context().get_node_id()
        processes = {"node_id": node_id, "pids": [os.getpid(), *child_processes()]}
        return self._board.report.remote(self._worker_id, dict(self._counts), processes)

    def __del__(self) -> None:
        # A worker whose engine never started has nothing to shut down.
        with contextlib.suppress(AttributeError):
            self._engine.shutdown()


class _CountedEngine:
    """An engine that counts tokens and generations in flight into its worker's counters."""

    def __init__(self, engine: Engine, counts: dict[str, float]) -> None:
        self._engine = engine
        self._counts = counts

    async def chat(
        self, messages: Sequence[Mapping[str, str]], sampling: SamplingSettings, seed: int
    ) -> Completion:
        self._counts["num_in_flight"] += 1
        try:
            completion = await self._engine.chat(messages, sampling, seed)
        finally:
            self._counts["num_in_flight"] -= 1
        self._counts["num_tokens"] += len(completion.token_ids)
        return completion

    def shutdown(self) -> None:
        self._engine.shutdown()
