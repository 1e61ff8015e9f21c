"""Pools of engines on logical GPUs of two nodes, by the driver as a user starts it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.inference.engine_sizing import PRETENDED_MEMORY
from tests.chaos import RayNodes
from tests.conftest import REPOSITORY, SCRIPTED_ENGINE, driver_command, ledger_rows, sums
from tests.scripted import Started
from tests.training.logical_gpu import DEVICE_NAME
from training.device import PRETENDED

WITHIN_S = 240
WAITS = "waiting for 8 GPUs: 0 of 8 free"
NUM_TRAIN = 12

HOLDER = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
group = ray.util.placement_group([{"GPU": 1}] * 8)
ray.get(group.ready())
print("held", flush=True)
sys.stdin.readline()
ray.util.remove_placement_group(group)
ray.shutdown()
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """Two nodes of four GPUs, and a head without."""
    worker = ["--num-cpus=4", "--num-gpus=4"]
    # On a busy machine a node may be silent for a while.
    cluster = RayNodes(tmp_path_factory.mktemp("nodes"), worker, silent_s=20)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


class Runs:
    """Runs on the two nodes, each with a config, a log of its engines' starts and an output."""

    def __init__(self, folder: Path, model: Path, nodes: RayNodes) -> None:
        self._folder, self._model, self._nodes = folder, model, nodes
        self.drivers: dict[str, subprocess.Popen[str]] = {}

    def start(
        self, name: str, options: dict[str, Any] | None = None, **changes: Any
    ) -> subprocess.Popen[str]:
        """Begin a run up to its paths; `changes` are those of whole branches of the config."""
        engine = {**SCRIPTED_ENGINE, "use_gpu": True, **changes.pop("engine", {})}
        engine["options"] = {"start_log": str(self._folder / f"{name}.starts"), **(options or {})}
        cluster = {"address": self._nodes.address, "progress_every_s": 1.0, "gpu_wait_s": 1.0}
        tree = {
            "run": name,
            "model": {"path": str(self._model)},
            "questions": {
                "datasets": sums("a", 0, num_train=NUM_TRAIN, num_dev=0, num_test=1)
                | sums("b", 10**6, num_train=NUM_TRAIN, num_dev=0, num_test=1)
            },
            "synthesis": {"guidelines_per_question": 2},
            "engine": engine,
            "cluster": cluster,
            "storage": {"root": str(self._folder / "runs"), "cache": str(self._folder / "cache")},
            **changes,
        }
        config = self._folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump(tree))
        until = [] if "training" in changes else ["--until", "paths"]
        with (self._folder / f"{name}.log").open("w") as log:
            driver = subprocess.Popen(
                driver_command("run", config, *until),
                cwd=REPOSITORY,
                env=self._nodes.environment()
                | {PRETENDED_MEMORY: "tests.scripted:gpu_memory_gib", PRETENDED: DEVICE_NAME},
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.drivers[name] = driver
        return driver

    def output(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def ended(self, name: str) -> int:
        """The exit code of a run, once it has ended."""
        return self.drivers[name].wait(2 * WITHIN_S)

    def until(self, name: str, seen: Callable[[], bool]) -> None:
        """Wait until something is seen of a run that goes on."""
        deadline = time.monotonic() + WITHIN_S
        while not seen():
            assert self.drivers[name].poll() is None, self.output(name)
            assert time.monotonic() < deadline, self.output(name)
            time.sleep(0.1)

    def started(self, name: str, kind: str = "engine") -> list[Started]:
        log = self._folder / f"{name}.starts"
        return Started.read(log, kind) if log.exists() else []

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The questions with paths, as far as they are durable."""
        found = sorted((self._folder / "runs" / name / "round_0").glob("paths-*"))
        return ledger_rows(found[0]) if found else []


@pytest.fixture
def runs(tmp_path: Path, model_folder: Path, nodes: RayNodes) -> Iterator[Runs]:
    nodes.heal()
    begun = Runs(tmp_path, model_folder, nodes)
    yield begun
    for driver in begun.drivers.values():
        driver.kill()
        driver.wait()


def all_gpus(started: list[Started]) -> set[tuple[str, str]]:
    """Node and number of each GPU that they were given, which has to be one for each."""
    given = [(each.node_id, gpu) for each in started for gpu in each.gpus]
    assert len(set(given)) == len(given)
    return set(given)


def test_runs_that_want_the_same_gpus_take_turns_and_one_that_waits_can_be_stopped(
    runs: Runs, nodes: RayNodes
) -> None:
    spanning = {
        "placement_group": True,
        "tensor_parallel_size": 4,
        "pipeline_parallel_size": 2,
        "max_workers": 1,
    }
    command = [sys.executable, "-c", HOLDER, nodes.address]
    with subprocess.Popen(
        command,
        env=nodes.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        runs.start("planned", {"start_s": 4})
        runs.start("spanning", {"start_s": 4}, engine=spanning)
        runs.start("stopped")
        for name in runs.drivers:
            runs.until(name, lambda name=name: WAITS in runs.output(name))  # type: ignore[misc]
        assert "engines at once 8," in runs.output("planned"), "planned while all GPUs are in use"
        runs.drivers["stopped"].terminate()
        assert runs.ended("stopped") == 130
        assert "Traceback" not in runs.output("stopped")
        holder.stdin.write("\n")
        holder.stdin.close()
        assert holder.wait(WITHIN_S) == 0
    for name in ("planned", "spanning"):
        assert runs.ended(name) == 0, runs.output(name)
        assert len(runs.rows(name)) == 2 * NUM_TRAIN
        assert {row["dataset"] for row in runs.rows(name)} == {"a", "b"}
        assert re.search(r"8 GPUs to start .*: available after \d+", runs.output(name))
    engines, ranks = runs.started("planned"), runs.started("spanning", "worker")
    assert [len(each.gpus) for each in engines] == [1] * 8
    assert all_gpus(engines) == all_gpus(ranks), "each had all GPUs"
    assert len({gpu[0] for gpu in all_gpus(ranks)}) == 2
    assert runs.started("stopped") == []


def test_node_that_leaves_and_one_that_comes_end_no_pool(runs: Runs, nodes: RayNodes) -> None:
    name = "leaving"
    runs.start(name, {"latency_s": 0.5}, engine={"tensor_parallel_size": 4, "max_num_seqs": 2})
    runs.until(name, lambda: len(runs.rows(name)) >= 3 and len(runs.started(name)) == 2)
    before = {row["question_id"]: row["attempt"] for row in runs.rows(name)}
    assert nodes.kill_node(nodes.worker_sessions()[0])
    nodes.heal()
    runs.until(name, lambda: len(runs.started(name)) >= 3 or runs.drivers[name].poll() == 0)
    assert runs.ended(name) == 0, runs.output(name)
    after = {row["question_id"]: row["attempt"] for row in runs.rows(name)}
    assert len(after) == 2 * NUM_TRAIN
    assert before.items() <= after.items()
    first, second, *later = runs.started(name)
    assert [len(each.gpus) for each in (first, second, *later)] == [4] * (2 + len(later))
    assert {each.node_id for each in later}.isdisjoint({first.node_id, second.node_id})
    assert later, "the engine of the lost node started on the new one"


def test_too_few_gpus_are_refused_before_anything_is_generated(runs: Runs) -> None:
    runs.start(
        "training", training={"num_workers": 16, "gpus_per_worker": 1, "micro_batch_size": 1}
    )
    runs.start("engine", engine={"tensor_parallel_size": 8})
    assert [runs.ended(name) for name in ("training", "engine")] == [2, 2]
    assert (
        "regenesis: 16 training workers (training.num_workers) need 16 GPUs at once, but the "
        "cluster has 8 GPUs (4 + 4 on its nodes) after a wait of 1 s; lower training.num_workers "
        "or set it to auto, or run on at least 16 GPUs\n"
    ) in runs.output("training")
    assert (
        "regenesis: 1 engine needs 8 GPUs (8 together on one node) at once, but the cluster has "
        "8 GPUs (4 + 4 on its nodes) after a wait of 1 s; lower engine.tensor_parallel_size or "
        "engine.pipeline_parallel_size, or run on at least 8 GPUs (8 together on one node)\n"
    ) in runs.output("engine")
    assert runs.started("training") + runs.started("engine") == []


def test_no_gpu_at_all_is_refused_at_once_on_a_ray_of_our_own(runs: Runs) -> None:
    runs.start("none", cluster={"num_cpus": 2, "object_store_gib": 0.2})
    assert runs.ended("none") == 2
    assert (
        "regenesis: 1 engine needs 1 GPU, but the cluster has no GPU; set engine.use_gpu: false "
        "to generate on CPUs, or run on at least 1 GPU\n"
    ) in runs.output("none")
    assert runs.started("none") == []
