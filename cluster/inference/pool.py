"""The engine pool: Ray Data maps a pool of engines over chunks of questions.

The driver handles the numbers of the chunks, the progress line, and the check at the end. A task
finds the questions that are open, and writes the plan file that assigns them to chunks. A worker (a
Ray Data actor) has one engine and several chunks at once, whose questions share the continuous
batch of the engine; it writes finished rows directly to part files. Chunk numbers are sent to the
workers, and receipts with a few numbers come back, as do counters once a second.

Jobs of different kinds for the same weights (reasoning paths, predictions of the base model) run in
parallel on the same engines.

The first engines of the pool are one placement group, which holds all their GPUs or waits
(`cluster.gpus`). Further engines take GPUs one by one as they become free.
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
from cluster.models.weight_digests import facts_of
from cluster.remote import run_task
from cluster.session import StopRequest
from cluster.store.ledger import Ledger, compact, new_execution

STOP_S = 6.0
"""Seconds that the workers get to save finished rows after the run was asked to stop."""
ASK_EVERY_S = 0.1
RANK_CPUS = 0.1
"""Logical CPUs of one of vLLM's own workers in a placement group."""

_REPOSITORY = str(Path(__file__).resolve().parents[2])

_AS_URGENT_AS_OTHERS = {"RAY_worker_niceness": "0"}
"""Ray runs its workers at nice 15. On a CPU the threads of an engine wait for each other, so
anything that takes the processor from one of them, even Ray's services, delays all of them."""


@dataclass(frozen=True)
class PoolSummary:
    """What one execution of the pool did, for the manifest."""

    wall_s: float
    """Seconds from the call to the last row, including engine starts."""
    generating_s: float
    """Seconds from the first chunk on a ready engine to the last saved row."""
    counts: dict[str, float]
    """Sums over all workers; see `EngineWorker`."""
    weights: dict[str, str] = field(default_factory=dict)
    """Fingerprints of what the engines served (`cluster.models.weight_digests.check_loaded`)."""

    def facts(self, adapter: str | None = None) -> dict[str, Any]:
        """The facts for the manifest of a step; shares are between 0 and 1. `adapter` is the one
        that did the step's job."""
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
            **facts_of(self.weights, adapter),
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
    """Process the open questions of every job, or `limit` of each, on one pool of engines.

    Returns when each question of each job has its row (or a quota or the job's tokens are used up)
    and the processes of the engines have ended. Waits for GPUs that are in use, and up to
    `gpu_wait_s` seconds for GPUs that the cluster does not have (null:
    `cluster.gpus.default_wait_s`). Raises `InputError` when these do not come,
    `InterruptedRunError` when asked to stop (finished work is saved), and `GenerationStoppedError`
    with the engine's error when its restarts are used up.
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
    """The number of engines to start with, and the number to grow to."""
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
    """Check that every question has its row and none has to be retried, unless a quota is full."""
    questions = job.questions.keys()
    ledger = Ledger.read(job.folder)
    closed = set(used_up(ledger.totals(questions), job.shares, job.max_tokens))
    left = open_questions(questions, ledger, max_attempts)
    for row in left.to_pylist():
        if row["dataset"] not in closed:
            raise DamagedFileError(
                f"{job.folder.uri}: {left.num_rows} answered questions have no row, "
                f"{row['question_id']} is one of them: rows are missing or damaged; give the "
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
    """Run the pool until it is done or asked to stop; returns the counters of all workers and the
    weights that they served."""
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
    """The board, on the driver's node. If it is killed, it restarts and is filled by new
    reports."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": 8, "max_task_retries": 8, "scheduling_strategy": here}
    return ray.remote(**options)(ProgressBoard).remote(*args)


class _Described:
    """Reads the board and formats the progress line and the bars; also records events."""

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
        """The bars of the view that the last lines were made from."""
        return self._meter.bars(self._view)


def _pool_dataset(
    model: Model,
    jobs: Sequence[GenerationJob],
    plans: Mapping[str, OpenWork],
    settings: EngineSettings,
    board: Any,
    placement: _WorkerPlacement,
) -> Any:
    """The Ray dataset whose execution does the work. Each block is one chunk, because Ray Data
    keeps only a few slots busy when it has to split the chunks itself."""
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
    """The chunk numbers of all jobs; the jobs take turns, so that all advance."""
    queues = [
        [(job.name, plans[job.name].execution, n) for n in range(plans[job.name].num_chunks)]
        for job in jobs
    ]
    for turn in itertools.zip_longest(*queues):
        for job, execution, chunk in filter(None, turn):
            yield pa.table({"job": [job], "execution": [execution], "chunk": [chunk]})


def _consume(dataset: Any, board: Any, stop: StopRequest) -> None:
    """Run the dataset until it is done, or until every worker has stopped as requested.

    Ray Data waits for the next receipt, which does not come from an engine that is still starting;
    the wait is then interrupted, as by a second Ctrl-C.
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
    """Pass the stop request on; returns whether every worker has flushed."""
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
        # vLLM's workers belong to a separate job, and import `cluster.inference.vllm_loader`.
        there = os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [_REPOSITORY, there]))
    return {"env_vars": environment}


def engines_need(settings: EngineSettings) -> Need:
    """The resources that the first engines of a pool need at the same moment, engine by engine."""
    count = num_workers(settings)[0]
    advice = []
    if count > 1:
        fewer = "lower engine.min_workers, the number of engines to start with"
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
    """The bundles of one engine: one on a single node, or one with its CPUs and one per rank."""
    worker: dict[str, float] = {"CPU": settings.cpus_per_worker}
    if not settings.placement_group:
        return [worker | {"GPU": settings.gpus_per_worker}]
    rank: dict[str, float] = {"CPU": RANK_CPUS} | ({"GPU": 1} if settings.use_gpu else {})
    return [worker, *[rank] * settings.ranks]


@contextmanager
def _first_engines(
    settings: EngineSettings, patience: Patience, stop: StopRequest
) -> Iterator[_WorkerPlacement]:
    """Decide where the workers run. The resources of the first ones are reserved within the block
    if they need GPUs or a placement group."""
    with contextlib.ExitStack() as held:
        group = None
        if settings.use_gpu or settings.placement_group:
            group = held.enter_context(reserved(engines_need(settings), patience, stop))
        yield _WorkerPlacement(settings, group)


def place_engines(
    nodes: Sequence[str], num_engines: int, num_ranks: int
) -> list[tuple[int, list[int]]]:
    """Assign each engine its bundles in a common group: that of its worker and those of its ranks.

    `nodes` has the node of each bundle: for each engine, its worker's and then its ranks'. Ray
    spreads equal bundles in any order, so the ranks are assigned again, node by node, and each
    worker is placed with one of its ranks if a worker's bundle is left on that node.
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
    """Ray's further arguments for each worker: limited restarts, and a place.

    The first workers go into the common group. Each later one with a placement group gets a
    separate one, which Ray Data would not remove; `remove` does so at the end.
    """

    def __init__(self, settings: EngineSettings, group: Any) -> None:
        self._settings, self._group = settings, group
        self._engines = _placed_engines(settings, group) if group is not None else []
        self._own_groups: list[Any] = []

    def make(self) -> dict[str, Any]:
        """The arguments of the next worker. By default Ray would restart it without limit."""
        arguments: dict[str, Any] = {
            "max_restarts": self._settings.max_restarts,
            # The restarts are the limit. Until Ray notices that a node is gone, which may take a
            # minute, it keeps sending a chunk to a worker there.
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
        """What the run waits for when a node of the common group is lost; otherwise empty."""
        if self._group is None or not has_lost_bundles(self._group):
            return ""
        return f"waiting for the GPUs of a lost node: {total(free_nodes(), 'GPU'):g} free"

    def remove(self) -> None:
        import ray

        for group in self._own_groups:
            ray.util.remove_placement_group(group)


def _in_bundle(group: Any, bundle: int, with_children: bool) -> Any:
    """Ray's options for a place in a group; vLLM's own workers are children of an engine's."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return PlacementGroupSchedulingStrategy(
        group,
        placement_group_bundle_index=bundle,
        placement_group_capture_child_tasks=with_children,
    )


def _placed_engines(settings: EngineSettings, group: Any) -> list[tuple[int, list[int]]]:
    """The bundles of each of the first engines, once their group is granted."""
    import ray

    count = num_workers(settings)[0]
    if not settings.placement_group:
        return [(bundle, []) for bundle in range(count)]
    nodes: Mapping[int, str] = ray.util.placement_group_table(group)["bundles_to_node_id"]
    return place_engines([nodes[i] for i in range(len(nodes))], count, settings.ranks)
