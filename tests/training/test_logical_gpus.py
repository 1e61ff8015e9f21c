"""Workers that hold GPUs: Ray counts them as on a GPU node, and they compute on the CPU."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.models.model import Model
from cluster.store.folder import Folder
from tests.training.logical_gpu import DEVICE, DEVICE_NAME
from tests.training.matrix import train_plainly
from tests.training.test_fine_tune import FULL, ROOT
from training.device import CPU, GPU, PRETENDED, device_of
from training.loop import CHECKPOINTS
from training.settings import PlacedTraining

ON_CPUS = PlacedTraining.model_validate(
    FULL.model_dump() | {"num_workers": 2, "cpus_per_worker": 1, "gpus_per_worker": 0}
)
ON_GPUS = ON_CPUS.model_copy(update={"gpus_per_worker": 1})

SHORT = FULL.model_copy(update={"num_epochs": 1, "checkpoint_every_s": 1e-6})
"""Three steps, with a checkpoint after each; where it runs is left open."""

DRIVER = """
import json, pickle, sys, ray
from training.fine_tune import fine_tune
ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
free, losses = [], []

def note(metrics):
    losses.append(metrics["loss"])
    free.append(ray.available_resources().get("GPU", 0))

metrics = fine_tune(*pickle.loads(bytes.fromhex(sys.argv[1])), on_step=note)
print(json.dumps({"metrics": metrics, "free": free, "losses": losses}))
"""


@pytest.fixture(scope="module")
def on_logical_gpus(
    tiny_model: Path, examples: Folder, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    model = Model(identity=str(tiny_model), path=str(tiny_model), cache="unused")
    output = Folder.open(str(tmp_path_factory.mktemp("gpus")))
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, pickle.dumps((model, examples, output, SHORT)).hex()],
        cwd=ROOT,
        env=os.environ | {PRETENDED: DEVICE_NAME},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    kept = Path(output.path, CHECKPOINTS).glob("step-*")
    return found | {"kept": sorted(folder.name for folder in kept)}


def test_workers_hold_every_gpu_until_the_last_step(on_logical_gpus: dict[str, Any]) -> None:
    assert on_logical_gpus["free"]
    assert set(on_logical_gpus["free"]) == {0}


def test_workers_on_gpus_train_as_plain_torch(
    on_logical_gpus: dict[str, Any], tiny_model: Path, examples: Folder
) -> None:
    expected = train_plainly(tiny_model, examples, SHORT).losses
    assert on_logical_gpus["losses"] == pytest.approx(expected, abs=1e-5)
    metrics = on_logical_gpus["metrics"]
    assert metrics["weights_sha256"]
    # The GPUs are taken because they are there.
    assert (metrics["num_workers"], metrics["gpus_per_worker"], metrics["dtype"]) == (
        *(2, 1, "float32"),
    )
    assert 0.5 < metrics["weights_changed"] <= 1


def test_checkpoints_by_time_are_made_and_timed(on_logical_gpus: dict[str, Any]) -> None:
    assert on_logical_gpus["metrics"]["checkpoint_seconds"] > 0
    assert on_logical_gpus["kept"] == ["step-000003"]


def test_device_of_settings_is_a_card_only_where_workers_hold_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(PRETENDED, raising=False)
    assert device_of(ON_CPUS) == CPU
    assert device_of(ON_GPUS) == GPU
    assert (CPU.card_memory(), CPU.card_name(), GPU.memory) == (None, None, None)
    monkeypatch.setenv(PRETENDED, DEVICE_NAME)
    assert device_of(ON_CPUS) == CPU
    assert device_of(ON_GPUS) == DEVICE
    assert DEVICE.card_memory() == 80 * 2**30
    assert DEVICE.card_name() is None
