"""Two rounds on the GPUs of two nodes, which engines and training workers hold in turn.

Ray counts the GPUs. The engines are scripted; the training is real, over gloo, on the CPU.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cluster.events import read_events
from cluster.inference.engine_sizing import PRETENDED_MEMORY
from cluster.store.folder import Folder
from tests.chaos import RayNodes
from tests.conftest import REPOSITORY, SCRIPTED_ENGINE, driver_command, ledger_rows, sums
from tests.scripted import Started
from tests.training.logical_gpu import LOGGED_NAME, TRAINER_LOG
from training.device import PRETENDED


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """Two nodes with one GPU each, and a head without."""
    worker = ["--num-cpus=2", "--num-gpus=1"]
    # On a busy machine a node may be silent for a while.
    cluster = RayNodes(tmp_path_factory.mktemp("nodes"), worker, silent_s=60)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def test_engines_and_training_workers_hold_the_same_gpus_in_turn(
    tmp_path: Path, nodes: RayNodes, model_folder: Path
) -> None:
    log = tmp_path / "starts"
    tree = {
        "run": "rounds",
        "rounds": 2,
        "model": {"path": str(model_folder)},
        "questions": {"datasets": sums("sums", 0, num_train=12, num_dev=0, num_test=4)},
        "synthesis": {"guidelines_per_question": 2},
        "training": {"learning_rate": 1e-3, "num_epochs": 1, "dtype": "float32"}
        | {"global_batch_size": 8, "micro_batch_size": 4, "min_examples": 1},
        # Slow enough that both engines have something to do.
        "engine": {**SCRIPTED_ENGINE, "use_gpu": True}
        | {"options": {"start_log": str(log), "latency_s": 0.4}},
        "cluster": {"address": nodes.address, "progress_every_s": 1.0},
        "storage": {"root": str(tmp_path / "runs"), "cache": str(tmp_path / "cache")},
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    pretended = {
        PRETENDED_MEMORY: "tests.scripted:gpu_memory_gib",
        PRETENDED: LOGGED_NAME,
        TRAINER_LOG: str(log),
    }
    result = subprocess.run(
        driver_command("run", config),
        cwd=REPOSITORY,
        env=nodes.environment() | pretended,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr + result.stdout
    started = Started.read(log, "engine", "trainer")
    in_turn = [(kind, set(each)) for kind, each in itertools.groupby(started, lambda s: s.kind)]
    assert [kind for kind, _ in in_turn] == ["engine", "trainer", "engine", "trainer", "engine"]
    held = [{(each.node_id, each.gpus) for each in group} for _, group in in_turn]
    # The last answers may all be given before a second engine is there.
    assert held[:4] == [held[0]] * 4
    assert held[4] <= held[0]
    assert len(held[0]) == 2
    assert all(gpus == ("0",) for _, gpus in held[0])
    assert "round 1, base > tuned" in result.stdout
    check_second_round_began_with_the_first_ones_model(tmp_path / "runs" / "rounds")


def check_second_round_began_with_the_first_ones_model(run: Path) -> None:
    [model] = run.glob("round_0/model-*")
    assert (model / "model.safetensors").stat().st_size > 0
    [paths] = run.glob("round_1/paths-*")
    manifest = json.loads((paths / "manifest.json").read_text())
    assert manifest["content"]["model"] == model.name
    ids = {path["path_id"].split("/")[0] for row in ledger_rows(paths) for path in row["paths"]}
    assert ids == {"1"}
    events = read_events(Folder.open(str(run)))
    finished = [(e.get("round"), e["step"]) for e in events if e["event"] == "step_finished"]
    of_round = ["paths", "examples", "model", "predictions", "scores"]
    assert finished == [(None, "questions"), *((n, step) for n in (0, 1) for step in of_round)]
    assert {e["step"] for e in events if e["event"] == "training_rate"} >= {1.0}
    assert {"trained", "generated"} <= {e["event"] for e in events}
