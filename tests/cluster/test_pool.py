"""The pool on a real Ray, with the scripted engine."""

from __future__ import annotations

import io
import json
import os
import re
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cluster.errors import DamagedFileError, InterruptedRunError
from cluster.gpus import free_nodes, total
from cluster.inference.engine import EngineSettings
from cluster.inference.job import GenerationJob
from cluster.inference.pool import (
    ASK_EVERY_S,
    _check_complete,
    _consume,
    _have_stopped,
    _WorkerPlacement,
    engines_need,
    finish_job,
    place_engines,
    run_jobs,
)
from cluster.inference.schedule import Questions, num_tokens
from cluster.models.model import Model
from cluster.session import StopRequest
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger
from evaluation.predictions import PREDICTIONS_SCHEMA, EvaluationSettings, PredictAnswer
from evaluation.question import Question, question_table
from pipelines.synthesis.chain import Recipe, SynthesisSettings
from pipelines.synthesis.handler import PATHS_SCHEMA, SynthesizePaths
from tests.scripted import Started

MODEL = Model(identity="scripted", path="scripted/model", cache="unused")
QUESTIONS = [
    Question(f"d/train/{n}", "d", "train", "in_domain", f"What is {n} + 5?", str(n + 5), "number")
    for n in range(12)
]


def settings(**changes: Any) -> EngineSettings:
    return EngineSettings(
        implementation="tests.scripted.ScriptedEngine",
        **{"use_gpu": False, "chunk_size": 2, "chunks_in_flight": 2, "cpus_per_worker": 0.5}
        | changes,
    )


def stored(folder: Folder, questions: list[Question]) -> Questions:
    questions_folder = folder.child("questions")
    questions_folder.write_table("questions.parquet", question_table(questions))
    return Questions(questions_folder, ("train",))


def paths_job(folder: Folder) -> GenerationJob:
    recipe = Recipe.load(0, SynthesisSettings(guidelines_per_question=2))
    handler = SynthesizePaths(recipe, ("number",))
    return GenerationJob("paths", folder, PATHS_SCHEMA, handler, stored(folder, QUESTIONS))


BOUND = 15_000
SLOW: dict[str, Any] = {
    "options": {"latency_s": 0.2, "num_tokens": 100},
    "max_num_seqs": 4,
    "flush_s": 0.1,
}
"""Answers of 100 tokens, about 2,500 tokens a second: a bound is seen a second late."""


def bounded_job(folder: Folder, max_tokens: int, **synthesis: Any) -> GenerationJob:
    """Sixty questions of either of two datasets, in all at least three times the bound."""
    asked = [
        Question(f"{d}/train/{n}", d, "train", "in_domain", f"What is {n} + {d}?", "1", "number")
        for d in ("1", "2")
        for n in range(60)
    ]
    recipe = Recipe.load(0, SynthesisSettings.model_validate_json(json.dumps(synthesis)))
    handler = SynthesizePaths(recipe, ("number",))
    return GenerationJob(
        "paths", folder, PATHS_SCHEMA, handler, stored(folder, asked), {}, max_tokens
    )


def totals(job: GenerationJob) -> dict[str, dict[str, int]]:
    return Ledger.read(job.folder).totals(job.questions.keys())


def assert_ends_at(job: GenerationJob, bound: int) -> None:
    """The job has about so many tokens, and both datasets their turns."""
    made = totals(job)
    assert bound <= num_tokens(made) < bound + BOUND
    done = [total["num_done"] for total in made.values()]
    assert 0.7 * max(done) < min(done) < 60


def predictions_job(folder: Folder) -> GenerationJob:
    handler = PredictAnswer(EvaluationSettings().sampling)
    return GenerationJob(
        "predictions", folder, PREDICTIONS_SCHEMA, handler, stored(folder, QUESTIONS)
    )


def rows(job: GenerationJob) -> list[dict[str, Any]]:
    ledger = Ledger.read(job.folder).of(job.questions.keys())
    return sorted(ledger.rows(), key=lambda row: str(row["question_id"]))


@pytest.mark.parametrize(
    ("changes", "gpus"),
    [
        ({"placement_group": True}, []),
        ({"min_workers": 2}, [0, 0]),
    ],
)
def test_pool_does_jobs_of_two_kinds_on_the_same_engines_and_leaves_nothing_behind(
    ray_cluster: str, tmp_path: Path, changes: dict[str, Any], gpus: list[int]
) -> None:
    does_both_jobs(tmp_path, changes, gpus)


@pytest.mark.parametrize(
    ("changes", "what", "hardware"),
    [
        ({"tensor_parallel_size": 1}, "1 engine", "1 GPU"),
        ({"tensor_parallel_size": 4, "max_workers": 2}, "2 engines", "8 GPUs (4 together on one"),
        ({"min_workers": 2, "max_workers": 8}, "2 engines", "2 GPUs"),
        (
            {"tensor_parallel_size": 8, "pipeline_parallel_size": 2, "placement_group": True},
            "1 engine",
            "16 GPUs",
        ),
    ],
)
def test_need_of_the_first_engines(changes: dict[str, Any], what: str, hardware: str) -> None:
    need = engines_need(settings(**{"use_gpu": True}, **changes))
    assert need.what == what
    assert need.hardware().startswith(hardware)
    assert need.gpus_alone().total("GPU") == need.total("GPU")
    assert need.gpus_alone().total("CPU") == 0


def does_both_jobs(tmp_path: Path, changes: dict[str, Any], gpus: list[int]) -> None:
    """Run a pool with these changes; its first engines have so many GPUs each."""
    import ray

    jobs = [
        paths_job(Folder.open(str(tmp_path / "paths"))),
        predictions_job(Folder.open(str(tmp_path / "predictions"))),
    ]
    starts = tmp_path / "starts"
    asked = settings(options={"start_log": str(starts)}, **changes)
    run_jobs(MODEL, jobs, asked, stop=StopRequest(), progress_every_s=1)
    assert [len(rows(job)) for job in jobs] == [12, 12]
    started = Started.read(starts)
    assert [len(engine.gpus) for engine in started][: len(gpus)] == gpus
    used = [gpu for engine in started for gpu in engine.gpus]
    assert len(set(used)) == len(used), "no GPU serves two engines"
    niceness = {engine.niceness for engine in started}
    assert niceness == {os.nice(0)}, "an engine that yields to the rest waits for its threads"
    assert all(len(row["paths"]) == 2 for row in rows(jobs[0]))
    assert rows(jobs[1])[0]["response"].startswith("I work it out: 5.")
    groups = ray.util.placement_group_table().values()
    assert {group["state"] for group in groups} <= {"REMOVED"}
    deadline = time.monotonic() + 20  # Ray counts a second later
    for resource in ("CPU", "GPU"):
        while total(free_nodes(), resource) != ray.cluster_resources().get(resource, 0):
            assert time.monotonic() < deadline, free_nodes()
            time.sleep(0.1)


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


def test_pool_bound_over_all_datasets_ends_every_strategy_there_and_what_is_left_is_no_error(
    ray_cluster: str, tmp_path: Path
) -> None:
    # Guided paths, 600 tokens a question, come to it in the next test.
    job = bounded_job(Folder.open(str(tmp_path)), BOUND, chain=["path"], samples=4)
    run_jobs(MODEL, [job], settings(**SLOW), stop=StopRequest(), progress_every_s=1)
    assert_ends_at(job, BOUND)
    assert finish_job(job)["num_done"] < finish_job(job)["num_questions"] == 120


def test_pool_bound_holds_over_a_stop_and_a_higher_one_goes_on(
    ray_cluster: str, tmp_path: Path
) -> None:
    folder = Folder.open(str(tmp_path))
    job = bounded_job(folder, BOUND, guidelines_per_question=2)
    stop = StopRequest()
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(
            run_jobs, MODEL, [job], settings(**SLOW), stop=stop, progress_every_s=1
        )
        while len(rows(job)) < 5 and not running.done():
            time.sleep(0.2)
        stop.set()
        with pytest.raises(InterruptedRunError):
            running.result()
    assert 0 < num_tokens(totals(job)) < BOUND
    run_jobs(MODEL, [job], settings(**SLOW), stop=StopRequest(), progress_every_s=1)
    first = rows(job)
    assert_ends_at(job, BOUND)
    again = run_jobs(MODEL, [job], settings(**SLOW), stop=StopRequest(), progress_every_s=1)
    assert again.counts == {}
    higher = bounded_job(folder, 2 * BOUND, guidelines_per_question=2)
    run_jobs(MODEL, [higher], settings(**SLOW), stop=StopRequest(), progress_every_s=1)
    assert_ends_at(job, 2 * BOUND)
    assert [row for row in rows(job) if row in first] == first


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_pool_shows_a_bar_for_each_dataset_on_a_terminal(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    job = predictions_job(Folder.open(str(tmp_path)))
    run_jobs(MODEL, [job], settings(), stop=StopRequest(), progress_every_s=1)
    bars = re.findall(r"^.*\bd\b.* 12/12", terminal.getvalue(), re.MULTILINE)
    assert bars, terminal.getvalue()


def test_pool_whose_workers_die_without_a_word_ends_with_the_error_of_ray(
    ray_cluster: str, tmp_path: Path
) -> None:
    job = predictions_job(Folder.open(str(tmp_path)))
    exits = settings(options={"poison_exit": "What is 3 + 5"}, max_restarts=0)
    with pytest.raises(ray.exceptions.RayError):
        run_jobs(MODEL, [job], exits, stop=StopRequest(), progress_every_s=1)


def test_pool_says_that_it_waits_for_the_gpus_of_a_lost_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Ray tells the state of a group, of which a test would have to kill a node."""
    state = {"state": "CREATED"}
    monkeypatch.setattr("ray.util.placement_group_table", lambda _: state)
    monkeypatch.setattr("cluster.inference.pool.free_nodes", lambda: [{"GPU": 3.0}, {"CPU": 8.0}])
    placement = _WorkerPlacement.__new__(_WorkerPlacement)
    placement._group = object()
    assert placement.lost() == ""
    state["state"] = "RESCHEDULING"
    assert placement.lost() == "waiting for the GPUs of a lost node: 3 free"


def test_pool_passes_on_a_ctrl_c_that_nobody_asked_its_workers_to_stop_for() -> None:
    def interrupted() -> Iterator[dict[str, Any]]:
        yield {}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _consume(SimpleNamespace(iter_rows=interrupted), None, StopRequest())


class BusyBoard:
    """Of workers that have not saved their rows so far."""

    def __init__(self) -> None:
        self._num_asked = 0

    def stop(self) -> bool:
        self._num_asked += 1
        return False

    def num_asked(self) -> int:
        return self._num_asked


def test_pool_that_is_done_while_its_workers_are_asked_to_stop_has_ended(ray_cluster: str) -> None:
    board = ray.remote(num_cpus=0)(BusyBoard).remote()
    stop = StopRequest()
    stop.set()

    def rows_while_asked() -> Iterator[dict[str, Any]]:
        while not ray.get(board.num_asked.remote()):
            time.sleep(0.05)
        yield {}

    _consume(SimpleNamespace(iter_rows=rows_while_asked), board, stop)
    time.sleep(2 * ASK_EVERY_S)
    asked = ray.get(board.num_asked.remote())
    time.sleep(2 * ASK_EVERY_S)
    assert ray.get(board.num_asked.remote()) == asked, "nobody is asked any more"
    ray.kill(board)


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


@pytest.mark.parametrize(
    ("nodes", "num_engines", "num_ranks", "expected"),
    [
        # Bundles 0 and 3 are the workers', the others the ranks'.
        ("aabbab", 2, 2, [(0, [1, 4]), (3, [2, 5])]),
        ("baaabb", 2, 2, [(3, [1, 2]), (0, [4, 5])]),
        # Both workers lie on a node without ranks of the second engine.
        ("aaaabb", 2, 2, [(0, [1, 2]), (3, [4, 5])]),
        ("abab", 1, 3, [(0, [2, 1, 3])]),
        ("aa", 1, 1, [(0, [1])]),
    ],
)
def test_place_engines_puts_the_ranks_of_an_engine_together(
    nodes: str, num_engines: int, num_ranks: int, expected: list[tuple[int, list[int]]]
) -> None:
    assert place_engines(nodes, num_engines, num_ranks) == expected


ONE_GPU = {"use_gpu": True, "tensor_parallel_size": 1}


@pytest.mark.parametrize(
    ("changes", "gpus"),
    [
        ({**ONE_GPU, "min_workers": 3}, [1, 1, 1]),
        ({**ONE_GPU, "tensor_parallel_size": 4, "max_workers": 2}, [4, 4]),
        ({**ONE_GPU, "min_workers": 1, "max_workers": 3}, [1]),
    ],
)
def test_pool_on_gpus_gives_each_engine_its_own_and_leaves_nothing_behind(
    gpu_node: None, tmp_path: Path, changes: dict[str, Any], gpus: list[int]
) -> None:
    does_both_jobs(tmp_path, changes, gpus)


def test_pool_whose_rows_are_missing_at_its_end_says_how_many(tmp_path: Path) -> None:
    job = paths_job(Folder.open(str(tmp_path)))
    missing = job.questions.keys().num_rows
    with pytest.raises(DamagedFileError, match=rf": {missing} answered questions have no row, "):
        _check_complete(job, 1)


def test_pool_whose_board_is_gone_has_nobody_left_to_stop() -> None:
    class Gone:
        def remote(self) -> None:
            raise ray.exceptions.RayActorError

    assert _have_stopped(SimpleNamespace(stop=Gone()))
