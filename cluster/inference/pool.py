"""The engine pool: Ray Data maps a pool of engines over chunks of questions.

On the driver: the numbers of the chunks, the progress line, and the check at the end. In a task:
which questions are open, and the plan file that says which chunk holds which. On a worker (a Ray
Data actor): one engine, several chunks at once, all of whose questions share the engine's one
continuous batch; finished rows go from the worker straight to part files. What crosses: chunk
numbers out, receipts of a few numbers back, and counters once a second.

Jobs of different kinds for the same weights (reasoning paths, predictions of the base model) run
side by side on the same warm engines.

The engines that the pool starts with are one placement group: it holds all their GPUs, or none and
waits (`cluster.gpus`). Further ones take what is free, one by one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.errors import DamagedFileError, GenerationStoppedError, InterruptedRunError
from cluster.gpus import Need, Patience, free_nodes, has_lost_bundles, reserved, total
from cluster.inference.engine import EngineSettings
from cluster.inference.engine_processes import wait_until_gone
from cluster.inference.job import GenerationJob
from cluster.inference.progress import PoolEvents, ProgressBoard, ProgressPrinter, RateMeter
from cluster.inference.schedule import OpenWork, open_questions, plan_job, summarize, used_up
from cluster.inference.vllm_engine import engine_environment
from cluster.inference.worker import EngineWorker
from cluster.models.model import Model
from cluster.remote import run_task
from cluster.session import StopRequest
from cluster.store.ledger import Ledger, compact, new_execution

STOP_S = 6.0
"""How long the workers get to make durable what is finished, once the run is asked to stop."""
ASK_EVERY_S = 0.1
RANK_CPUS = 0.1
"""Logical CPUs of one of vLLM's own workers in a placement group."""

_REPOSITORY = str(Path(__file__).resolve().parents[2])

_AS_URGENT_AS_OTHERS = {"RAY_worker_niceness": "0"}
"""Ray gives its workers nice 15. On a CPU the threads of an engine wait for each other, so that
whatever takes the processor from one of them, if only Ray's own services, holds up all."""


@dataclass(frozen=True)
class PoolSummary:
    """What one execution of the pool did, for the manifest."""

    wall_s: float
    """From the call to the last row, engine starts included."""
    generating_s: float
    """From the first chunk begun on a ready engine to the last row durable."""
    counts: dict[str, float]
    """Sums over all workers, see `EngineWorker`."""
    weights: dict[str, str] = field(default_factory=dict)
    """Fingerprints of what the engines served (`cluster.models.weight_digests.check_loaded`)."""

    def facts(self) -> dict[str, Any]:
        """What a step's manifest says of it; shares between 0 and 1."""
        counts = Counter(self.counts)
        engine_s = counts["busy_s"] + counts["idle_s"]
        return {
            "wall_s": round(self.wall_s, 1),
            "generating_s": round(self.generating_s, 1),
            "num_workers": counts["num_workers"],
            "num_generations": counts["num_generations"],
            "num_tokens": counts["num_tokens"],
            "tokens_per_s": _share(counts["num_tokens"], self.generating_s),
            "engine_busy_share": _share(counts["busy_s"], engine_s),
            "mean_generations_in_flight": _share(counts["generation_s"], engine_s),
            "peak_generations_in_flight": counts["peak_in_flight"],
            "prefix_hit_share": _share(counts["num_cached_tokens"], counts["num_prompt_tokens"]),
            "truncated_share": _share(counts["num_cut_off"], counts["num_generations"]),
            **self.weights,
        }


def _share(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0


def run_jobs(
    model: Model,
    jobs: Sequence[GenerationJob],
    settings: EngineSettings,
    *,
    stop: StopRequest,
    progress_every_s: float,
    gpu_wait_s: float | None = None,
    limit: int | None = None,
) -> PoolSummary:
    """Do every job's open questions, or `limit` of each, on one pool of engines serving `model`.

    Returns when each question of each job has its row (or a share or the job's tokens are used
    up) and the engines' processes are gone. Waits for its GPUs, and for `gpu_wait_s` seconds for
    GPUs that the cluster does not have (null: `cluster.gpus.default_wait_s`). Raises `InputError`
    when they do not come, `InterruptedRunError` when asked to stop (what was finished is durable),
    and `GenerationStoppedError` with the engine's own error when its restarts are used up.
    """
    started = time.monotonic()
    plans = {job.name: _plan(job, settings, limit) for job in jobs}
    if not any(plan.num_open for plan in plans.values()):
        return PoolSummary(0.0, 0.0, {})
    patience = Patience(progress_every_s, gpu_wait_s)
    with _first_engines(settings, patience, stop) as placement:
        counts, weights = _execute(model, jobs, plans, settings, placement, stop, progress_every_s)
    if stop.is_set():
        raise InterruptedRunError("stopped; finished questions are kept")
    if limit is None:
        for job in jobs:
            run_task(_check_complete, job, settings.max_attempts)
    span = counts.pop("last_row_at", 0.0) - counts.pop("first_chunk_at", 0.0)
    return PoolSummary(time.monotonic() - started, max(0.0, span), counts, weights)


def finish_job(job: GenerationJob) -> dict[str, Any]:
    """Compact the rows of a finished job; returns its totals for the manifest."""
    return dict(run_task(_compact_and_summarize, job))


def _compact_and_summarize(job: GenerationJob) -> dict[str, Any]:
    return summarize(compact(job.folder, job.schema), job.questions.keys())


def num_workers(settings: EngineSettings) -> tuple[int, int]:
    """Engines to start with, and engines to grow to."""
    largest = settings.max_workers or settings.min_workers or 1
    smallest = settings.min_workers or largest
    return smallest, max(smallest, largest)


def _plan(job: GenerationJob, settings: EngineSettings, limit: int | None) -> OpenWork:
    num_slots = num_workers(settings)[1] * settings.chunks_in_flight
    in_flight = -(-settings.generations_in_flight // job.handler.width)
    smallest = max(settings.chunk_size, -(-in_flight // max(1, settings.chunks_in_flight - 1)))
    plan: OpenWork = run_task(
        plan_job,
        job.folder,
        job.schema,
        job.questions,
        job.shares,
        execution=new_execution(job.folder),
        num_slots=num_slots,
        smallest=smallest,
        max_attempts=settings.max_attempts,
        max_tokens=job.max_tokens,
        limit=limit,
    )
    return plan


def _check_complete(job: GenerationJob, max_attempts: int) -> None:
    """Every question has its row, none is left to try again, unless its dataset has enough."""
    questions = job.questions.keys()
    ledger = Ledger.read(job.folder)
    closed = set(used_up(ledger.totals(questions), job.shares, job.max_tokens))
    left = open_questions(questions, ledger, max_attempts)
    for row in left.to_pylist():
        if row["dataset"] not in closed:
            raise DamagedFileError(
                f"{job.folder.uri}: {left.num_rows} answered questions have no row, "
                f"{row['question_id']} is one: what was written is gone or damaged; give the "
                "same command again"
            )


def _execute(
    model: Model,
    jobs: Sequence[GenerationJob],
    plans: Mapping[str, OpenWork],
    settings: EngineSettings,
    placement: _WorkerPlacement,
    stop: StopRequest,
    progress_every_s: float,
) -> tuple[dict[str, float], dict[str, str]]:
    """Run the pool to its end, or until asked to stop; the counters of all workers, and which
    weights they served."""
    import ray

    totals = {job.name: plans[job.name].totals for job in jobs}
    shares = {job.name: dict(job.shares) for job in jobs}
    board = _board(totals, shares, {job.name: job.max_tokens for job in jobs})
    complete = [
        (job, dataset)
        for job, datasets in totals.items()
        for dataset, total in datasets.items()
        if total["num_done"] == total["num_questions"]
    ]
    per_question = {job.name: job.handler.generations for job in jobs}
    meter = RateMeter("+".join(job.name for job in jobs), complete, per_question)
    shown = _Described(board, meter, placement)
    try:
        with ProgressPrinter(shown.lines, bars=shown.bars, every_s=progress_every_s):
            _consume(_pool_dataset(model, jobs, plans, settings, board, placement), board, stop)
    except ray.exceptions.RayError as error:
        if died := ray.get(board.last_error.remote()):
            raise GenerationStoppedError(died) from error
        raise
    finally:
        placement.remove()
        wait_until_gone(ray.get(board.processes.remote()), grace_s=3.0 if stop.is_set() else 30.0)
        counts: dict[str, float] = ray.get(board.counts.remote())
        weights: dict[str, str] = ray.get(board.weights.remote())
        ray.kill(board)
    return counts, weights


def _board(*args: Any) -> Any:
    """The board, beside the driver. Killed and restarted, it fills again with the next reports."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": 8, "max_task_retries": 8, "scheduling_strategy": here}
    return ray.remote(**options)(ProgressBoard).remote(*args)


class _Described:
    """Reads the board and makes the progress line and the bars; also records events."""

    def __init__(self, board: Any, meter: RateMeter, placement: _WorkerPlacement) -> None:
        self._board, self._meter, self._placement = board, meter, placement
        self._events = PoolEvents()
        self._view: Mapping[str, Any] = {"datasets": {}}

    def lines(self) -> list[str]:
        import ray

        self._view = ray.get(self._board.view.remote())
        self._events(self._view)
        line, *others = self._meter.lines(self._view)
        return [" | ".join(filter(None, [line, self._placement.lost()])), *others]

    def bars(self) -> dict[str, tuple[int, int]]:
        """Those of the view that the last lines were made of."""
        return self._meter.bars(self._view)


def _pool_dataset(
    model: Model,
    jobs: Sequence[GenerationJob],
    plans: Mapping[str, OpenWork],
    settings: EngineSettings,
    board: Any,
    placement: _WorkerPlacement,
) -> Any:
    """The Ray dataset whose execution does the work. One ready-made block is one chunk: Ray Data
    keeps only a few slots busy when it has to cut the chunks itself."""
    import ray

    smallest, largest = num_workers(settings)
    return ray.data.from_arrow(list(_chunks(jobs, plans))).map_batches(
        EngineWorker,
        fn_constructor_args=(model, {job.name: job for job in jobs}),
        fn_constructor_kwargs={"settings": settings, "board": board},
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            min_size=smallest,
            max_size=largest,
            max_tasks_in_flight_per_actor=settings.chunks_in_flight,
            max_concurrent_calls_per_actor=settings.chunks_in_flight,
        ),
        ray_remote_args_fn=placement.make,
        **_resources(settings),
    )


def _chunks(jobs: Sequence[GenerationJob], plans: Mapping[str, OpenWork]) -> Iterator[pa.Table]:
    """The chunk numbers of all jobs; the jobs take turns so that all advance."""
    queues = [
        [(job.name, plans[job.name].execution, n) for n in range(plans[job.name].num_chunks)]
        for job in jobs
    ]
    for turn in itertools.zip_longest(*queues):
        for job, execution, chunk in filter(None, turn):
            yield pa.table({"job": [job], "execution": [execution], "chunk": [chunk]})


def _consume(dataset: Any, board: Any, stop: StopRequest) -> None:
    """Run the dataset to its end, or until every worker has stopped as requested.

    Ray Data waits for the next receipt, which an engine that is still starting does not give: it
    is interrupted, as by a second Ctrl-C.
    """
    ended, stopped = threading.Event(), threading.Event()
    can_interrupt = threading.current_thread() is threading.main_thread()

    def watch() -> None:
        while not stop.is_set():
            if ended.wait(ASK_EVERY_S):
                return
        given_up_at = time.monotonic() + STOP_S
        while not _have_stopped(board) and time.monotonic() < given_up_at:
            if ended.wait(ASK_EVERY_S):
                return
        stopped.set()
        if can_interrupt and not ended.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=watch, name="stop", daemon=True).start()
    try:
        for _receipt in dataset.iter_rows():
            if stopped.is_set():
                return
    except KeyboardInterrupt:
        if not stopped.is_set():
            raise
    finally:
        ended.set()


def _have_stopped(board: Any) -> bool:
    """Pass the stop request on; whether every worker has flushed."""
    import ray

    try:
        return bool(ray.get(board.stop.remote()))
    except ray.exceptions.RayError:
        return True  # nobody is left to ask


def _resources(settings: EngineSettings) -> dict[str, Any]:
    """The processors of one worker, and its environment."""
    # With a placement group vLLM's own Ray workers take the GPUs, inside the same group.
    takes_gpus = settings.use_gpu and not settings.placement_group
    return {
        "num_cpus": settings.cpus_per_worker,
        "num_gpus": settings.gpus_per_worker if takes_gpus else 0,
        "runtime_env": worker_environment(settings, {}),
    }


def worker_environment(settings: EngineSettings, further: Mapping[str, str]) -> dict[str, Any]:
    """Ray's runtime environment of a worker."""
    environment = {**engine_environment(settings), **_AS_URGENT_AS_OTHERS, **further}
    if settings.placement_group:
        # vLLM's workers are of a job of their own, and import `cluster.inference.vllm_loader`.
        there = os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [_REPOSITORY, there]))
    return {"env_vars": environment}


def engines_need(settings: EngineSettings) -> Need:
    """What the engines that a pool starts with need at the same moment, engine by engine."""
    count = num_workers(settings)[0]
    advice = []
    if count > 1:
        fewer = "set engine.min_workers to fewer, which are the engines to start with"
        advice.append("lower engine.min_workers" if settings.min_workers else fewer)
    if settings.ranks > 1:
        advice.append("lower engine.tensor_parallel_size or engine.pipeline_parallel_size")
    return Need(
        f"{count} engine{'s' if count > 1 else ''}",
        tuple(_engine_bundles(settings)) * count,
        " or ".join(advice) or "lower engine.cpus_per_worker",
        "set engine.use_gpu: false to generate on CPUs",
    )


def _engine_bundles(settings: EngineSettings) -> list[dict[str, float]]:
    """What one engine takes: all on one node, or what takes the CPUs and then each rank."""
    worker: dict[str, float] = {"CPU": settings.cpus_per_worker}
    if not settings.placement_group:
        return [worker | {"GPU": settings.gpus_per_worker}]
    rank: dict[str, float] = {"CPU": RANK_CPUS} | ({"GPU": 1} if settings.use_gpu else {})
    return [worker, *[rank] * settings.ranks]


@contextmanager
def _first_engines(
    settings: EngineSettings, patience: Patience, stop: StopRequest
) -> Iterator[_WorkerPlacement]:
    """Where the workers go. What the first ones need is reserved for the length of the block, if
    they need GPUs or a placement group."""
    with contextlib.ExitStack() as held:
        group = None
        if settings.use_gpu or settings.placement_group:
            group = held.enter_context(reserved(engines_need(settings), patience, stop))
        yield _WorkerPlacement(settings, group)


def place_engines(
    nodes: Sequence[str], num_engines: int, num_ranks: int
) -> list[tuple[int, list[int]]]:
    """Which bundles of a common group each engine takes: that of its worker, those of its ranks.

    `nodes` has the node of each bundle, engine by engine the worker's and then its ranks'. Ray
    spreads equal bundles in any order, so the ranks are dealt out anew, node after node, and each
    worker is put where ranks of it are, if a worker's bundle is left there.
    """
    size = num_ranks + 1
    workers = list(range(0, num_engines * size, size))
    ranks = sorted(set(range(num_engines * size)) - set(workers), key=lambda i: (nodes[i], i))
    placed = []
    for first in range(0, len(ranks), num_ranks):
        own = ranks[first : first + num_ranks]
        near = [worker for worker in workers if nodes[worker] in {nodes[i] for i in own}]
        worker = (near or workers)[0]
        workers.remove(worker)
        placed.append((worker, own))
    return placed


class _WorkerPlacement:
    """Ray's further arguments for each worker: finite restarts, and where it goes.

    The first workers go into the common group. A further one with a placement group gets one for
    itself, which Ray Data would not remove: `remove` does at the end.
    """

    def __init__(self, settings: EngineSettings, group: Any) -> None:
        self._settings, self._group = settings, group
        self._engines = _placed_engines(settings, group) if group is not None else []
        self._own_groups: list[Any] = []

    def make(self) -> dict[str, Any]:
        """The arguments of the next worker. By default Ray restarts it for ever."""
        arguments: dict[str, Any] = {
            "max_restarts": self._settings.max_restarts,
            # The restarts are the bound. Until Ray knows that a node is gone, which may take it a
            # minute, a chunk is sent to a worker there again and again.
            "max_task_retries": -1,
        }
        if self._engines:
            worker, ranks = self._engines.pop(0)
            environment = {"VLLM_RAY_BUNDLE_INDICES": ",".join(map(str, ranks))} if ranks else {}
            arguments["scheduling_strategy"] = _in_bundle(self._group, worker, bool(ranks))
            arguments["runtime_env"] = worker_environment(self._settings, environment)
        elif self._settings.placement_group:
            arguments["scheduling_strategy"] = _in_bundle(self._reserve(), 0, True)
        return arguments

    def _reserve(self) -> Any:
        import ray

        bundles = _engine_bundles(self._settings)
        self._own_groups.append(ray.util.placement_group(bundles, strategy="PACK"))
        return self._own_groups[-1]

    def lost(self) -> str:
        """What is waited for when a node of the common group is gone; empty when none is."""
        if self._group is None or not has_lost_bundles(self._group):
            return ""
        return f"waiting for the GPUs of a lost node: {total(free_nodes(), 'GPU'):g} free"

    def remove(self) -> None:
        import ray

        for group in self._own_groups:
            ray.util.remove_placement_group(group)


def _in_bundle(group: Any, bundle: int, with_children: bool) -> Any:
    """Ray's words for a place in a group; vLLM's own workers are children of an engine's."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return PlacementGroupSchedulingStrategy(
        group,
        placement_group_bundle_index=bundle,
        placement_group_capture_child_tasks=with_children,
    )


def _placed_engines(settings: EngineSettings, group: Any) -> list[tuple[int, list[int]]]:
    """The bundles of each of the first engines, once their group is there."""
    import ray

    count = num_workers(settings)[0]
    if not settings.placement_group:
        return [(bundle, []) for bundle in range(count)]
    nodes: Mapping[int, str] = ray.util.placement_group_table(group)["bundles_to_node_id"]
    return place_engines([nodes[i] for i in range(len(nodes))], count, settings.ranks)
