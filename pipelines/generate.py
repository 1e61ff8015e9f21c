"""Runs jobs on engines that serve one model, for the steps that generate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.fitting import fit_engines
from cluster.jobs import Job
from cluster.models import Model
from cluster.pool import PoolSummary, finish_job, run_jobs
from cluster.runtime import StopRequest
from cluster.steps import Step
from cluster.terminal import say
from pipelines.config import Config


def generate(
    config: Config, model: Model, jobs: Sequence[tuple[Step, Job]], stop: StopRequest
) -> list[dict[str, Any]]:
    """Run jobs on one pool of engines and finish their steps; returns the totals of each."""
    summary = run_engines(config, model, [job for _, job in jobs], stop)
    totals: list[dict[str, Any]] = []
    for step, job in jobs:
        totals.append(finish_job(job))
        step.commit(rows=totals[-1], last_execution=summary.facts())
    return totals


def run_engines(
    config: Config,
    model: Model,
    jobs: Sequence[Job],
    stop: StopRequest,
    *,
    limit: int | None = None,
    max_workers: int | None = None,
) -> PoolSummary:
    """Run jobs, or the first `limit` questions of each, on one pool of engines for `model`."""
    engine, planned = fit_engines(config.engine, model)
    if planned:
        say(planned)
    if max_workers is not None:
        fewer = {"min_workers": max_workers, "max_workers": max_workers}
        engine = engine.model_copy(update=fewer)
    every_s = config.cluster.progress_every_s
    return run_jobs(model, jobs, engine, stop=stop, progress_every_s=every_s, limit=limit)
