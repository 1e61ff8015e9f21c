"""Run jobs on engines that serve one model, for the steps that generate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from cluster.events import record
from cluster.inference.engine import EngineSettings, check_engine_server
from cluster.inference.engine_dtype import pin_dtype
from cluster.inference.engine_sizing import fit_engines
from cluster.inference.job import GenerationJob
from cluster.inference.pool import PoolSummary, finish_job, run_jobs
from cluster.models.model import Model
from cluster.session import ClusterSettings, StopRequest, StorageSettings
from cluster.store.folder import Folder
from cluster.store.step import Step
from cluster.terminal import say
from pipelines.planning.estimate import CostSettings


class GeneratingConfig(Protocol):
    """What these functions read of a config."""

    @property
    def run(self) -> str:
        """The name of the run's folder below `storage.root`."""

    @property
    def engine(self) -> EngineSettings:
        """Of the engines that serve the model."""

    @property
    def cluster(self) -> ClusterSettings:
        """For the progress and the waiting."""

    @property
    def storage(self) -> StorageSettings:
        """Where the run is."""

    @property
    def cost(self) -> CostSettings:
        """What the hours are worth."""


def generate(
    config: GeneratingConfig,
    model: Model,
    jobs: Sequence[tuple[Step, GenerationJob]],
    stop: StopRequest,
    engine: EngineSettings | None = None,
) -> list[dict[str, Any]]:
    """Run jobs on one pool of engines and finish their steps; returns the totals of each.

    `engine` is used instead of `config.engine`.
    """
    summary = run_engines(config, model, [job for _, job in jobs], stop, engine=engine)
    totals: list[dict[str, Any]] = []
    served = (engine or config.engine).adapter
    for step, job in jobs:
        totals.append(finish_job(job))
        step.commit(rows=totals[-1], last_execution=summary.facts(job.adapter or served))
    return totals


def run_engines(
    config: GeneratingConfig,
    model: Model,
    jobs: Sequence[GenerationJob],
    stop: StopRequest,
    *,
    limit: int | None = None,
    max_workers: int | None = None,
    engine: EngineSettings | None = None,
) -> PoolSummary:
    """Run jobs, or the first `limit` questions of each, on one pool of engines for `model`.

    `engine` is used instead of `config.engine`.
    """
    check_engine_server(engine or config.engine)
    storage = config.storage
    run_folder = Folder.open(storage.root, storage.outage_s).child(config.run)
    engine, dtype = pin_dtype(engine or config.engine, run_folder)
    engine, planned = fit_engines(engine, model)
    for told in filter(None, (dtype, planned)):
        say(told)
    if max_workers is not None:
        fewer = {"min_workers": max_workers, "max_workers": max_workers}
        engine = engine.model_copy(update=fewer)
    every_s, wait_s = config.cluster.progress_every_s, config.cluster.gpu_wait_s
    summary = run_jobs(
        model, jobs, engine, stop=stop, progress_every_s=every_s, gpu_wait_s=wait_s, limit=limit
    )
    if summary.counts:
        facts = summary.facts()
        num_gpus = facts["num_workers"] * engine.gpus_per_worker
        cost = config.cost.of(num_gpus, summary.wall_s)
        record("generated", jobs=[job.name for job in jobs], **facts, **cost)
    return summary
