"""The pool on a real Ray, with the scripted engine."""

from __future__ import annotations

import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster.engine import EngineSettings
from cluster.errors import InterruptedRunError
from cluster.jobs import Job
from cluster.ledger import Ledger
from cluster.models import Model
from cluster.pool import run_jobs
from cluster.runtime import StopRequest
from cluster.schedule import Questions
from cluster.storage import Folder
from evaluation.predictions import PREDICTIONS_SCHEMA, EvaluationSettings, PredictAnswer
from evaluation.question import Question, question_table
from pipelines.chain import Recipe, SynthesisSettings
from pipelines.synthesis import PATHS_SCHEMA, SynthesizePaths

MODEL = Model(identity="scripted", path="scripted/model", cache="unused")
QUESTIONS = [
    Question(f"d/train/{n}", "d", "train", "in_domain", f"What is {n} + 5?", str(n + 5), "number")
    for n in range(12)
]


def settings(**changes: Any) -> EngineSettings:
    return EngineSettings(
        implementation="tests.scripted.ScriptedEngine",
        use_gpu=False,
        chunk_size=2,
        chunks_in_flight=2,
        cpus_per_worker=0.5,
        **changes,
    )


def stored(folder: Folder, questions: list[Question]) -> Questions:
    questions_folder = folder.child("questions")
    questions_folder.write_table("questions.parquet", question_table(questions))
    return Questions(questions_folder, ("train",))


def paths_job(folder: Folder) -> Job:
    recipe = Recipe.load(0, SynthesisSettings(guidelines_per_question=2))
    handler = SynthesizePaths(recipe, ("number",))
    return Job("paths", folder, PATHS_SCHEMA, handler, stored(folder, QUESTIONS))


def predictions_job(folder: Folder) -> Job:
    handler = PredictAnswer(EvaluationSettings())
    return Job("predictions", folder, PREDICTIONS_SCHEMA, handler, stored(folder, QUESTIONS))


def rows(job: Job) -> list[dict[str, Any]]:
    ledger = Ledger.read(job.folder).of(job.questions.keys())
    return sorted(ledger.rows(), key=lambda row: str(row["question_id"]))


@pytest.mark.parametrize("changes", [{"placement_group": True}, {"min_workers": 2}])
def test_pool_does_jobs_of_two_kinds_on_the_same_engines_and_leaves_nothing_behind(
    ray_cluster: str, tmp_path: Path, changes: dict[str, Any]
) -> None:
    import ray

    jobs = [
        paths_job(Folder.open(str(tmp_path / "paths"))),
        predictions_job(Folder.open(str(tmp_path / "predictions"))),
    ]
    run_jobs(MODEL, jobs, settings(**changes), stop=StopRequest(), progress_every_s=1)
    assert [len(rows(job)) for job in jobs] == [12, 12]
    assert all(len(row["paths"]) == 2 for row in rows(jobs[0]))
    assert rows(jobs[1])[0]["response"].startswith("I work it out: 5.")
    groups = ray.util.placement_group_table().values()
    assert {group["state"] for group in groups} <= {"REMOVED"}
    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]


def test_pool_asked_to_stop_raises_and_keeps_what_is_finished(
    ray_cluster: str, tmp_path: Path
) -> None:
    job = paths_job(Folder.open(str(tmp_path)))
    stop = StopRequest()
    stop.set()
    slow = settings(options={"latency_s": 2.0})
    with pytest.raises(InterruptedRunError):
        run_jobs(MODEL, [job], slow, stop=stop, progress_every_s=1)
    assert len(rows(job)) < 12
    run_jobs(MODEL, [job], settings(), stop=StopRequest(), progress_every_s=1)
    assert len(rows(job)) == 12


def test_pool_engine_that_cannot_start_ends_with_its_reason(
    ray_cluster: str, tmp_path: Path
) -> None:
    job = paths_job(Folder.open(str(tmp_path)))
    broken = settings().model_copy(update={"implementation": "tests.scripted.Missing"})
    with pytest.raises(Exception, match=r"engine\.implementation 'tests\.scripted\.Missing'"):
        run_jobs(MODEL, [job], broken, stop=StopRequest(), progress_every_s=1)
    assert rows(job) == []


def test_pool_counters_are_offered_to_prometheus_while_it_runs(
    ray_cluster: str, tmp_path: Path
) -> None:
    import ray

    [node] = [node for node in ray.nodes() if node["Alive"]]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    job = paths_job(Folder.open(str(tmp_path)))
    stop = StopRequest()
    slow = settings(options={"latency_s": 1.0}, max_num_seqs=1)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run_jobs, MODEL, [job], slow, stop=stop, progress_every_s=1)
        found = ""
        while not found and not running.done():
            time.sleep(0.5)
            lines = urllib.request.urlopen(address).read().decode().splitlines()
            found = next((x for x in lines if x.startswith("ray_regenesis_num_questions{")), "")
        stop.set()
        with pytest.raises(InterruptedRunError):
            running.result()
    assert 'job="paths"' in found.replace("Job=", "job=")
    assert 'dataset="d"' in found
    assert found.endswith(" 12.0")
