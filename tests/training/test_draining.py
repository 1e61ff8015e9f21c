"""A training whose node is drained, as before a spot machine goes, on real nodes of Ray."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.models.model import Model
from cluster.store.folder import Folder
from tests.training.test_fine_tune import FULL, ROOT
from training.fine_tune import fine_tune
from training.loop import CHECKPOINTS

DRIVER = """
import json, pickle, subprocess, sys, ray
from ray.cluster_utils import Cluster
from training.fine_tune import fine_tune

MIB = 1024 * 1024
cluster = Cluster(
    initialize_head=True,
    head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * MIB},
)
spot = cluster.add_node(num_cpus=2, object_store_memory=100 * MIB)
ray.init(address=cluster.address, log_to_driver=False)
steps = []

def drain(metrics):
    steps.append(int(metrics["step"]))
    if len(steps) == 1:
        cluster.add_node(num_cpus=2, object_store_memory=100 * MIB)
        command = ["drain-node", "--address", cluster.address, "--node-id", spot.node_id]
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back"]
        deadline = ["--deadline-remaining-seconds", "600"]
        subprocess.run([sys.argv[2], *command, *reason, *deadline], check=True, stdout=sys.stderr)

try:
    metrics = fine_tune(*pickle.loads(bytes.fromhex(sys.argv[1])), on_step=drain)
    print(json.dumps({"metrics": metrics, "steps": steps}))
finally:
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.slow
def test_training_on_a_drained_node_goes_on_elsewhere_and_loses_no_step(
    tiny_model: Path, examples: Folder, ray_cluster: str, tmp_path: Path
) -> None:
    # Steps of a few milliseconds: enough of them to be told in time. No failure is allowed.
    settings = FULL.model_copy(update={"num_epochs": 80, "max_failures": 0})
    model = Model(identity=str(tiny_model), path=str(tiny_model), cache="unused")
    drained = Folder.open(str(tmp_path / "drained"))
    arguments = pickle.dumps((model, examples, drained, settings)).hex()
    command = [sys.executable, "-c", DRIVER, arguments, str(Path(sys.executable).parent / "ray")]
    watching = {
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
    }
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | watching,
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
        check=True,
    )
    told = json.loads(result.stdout.splitlines()[-1])
    num_steps = told["metrics"]["num_steps"]
    assert told["steps"] == list(range(1, num_steps + 1))
    [made] = (tmp_path / "drained" / CHECKPOINTS).glob("step-*")
    assert made.name < f"step-{num_steps:06d}", "drained too late to show anything"
    expected = fine_tune(model, examples, Folder.open(str(tmp_path / "undisturbed")), settings)
    for key in ("num_tokens", "num_trained_tokens", "last_loss", "weights_sha256"):
        assert told["metrics"][key] == expected[key]
