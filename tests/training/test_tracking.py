"""The trackers without a training, in the offline modes of the installed ones."""

from __future__ import annotations

from pathlib import Path

import pyarrow.fs
import pytest

from cluster.store.folder import Folder
from tests.training.events import read_scalars
from training.settings import TrackingSettings
from training.tracking import TENSORBOARD, tracking


def _train(output: Folder, settings: TrackingSettings, first: int, last: int) -> None:
    """Log steps as a process does that begins at `first` and is gone after `last`."""
    with tracking(output, settings, num_steps_done=first - 1) as log:
        for step in range(first, last + 1):
            log(step, {"loss": 10.0 * first + step})


def test_tensorboard_of_a_training_that_goes_on_shows_the_later_values(tmp_path: Path) -> None:
    output = Folder.open(str(tmp_path))
    _train(output, TrackingSettings(), 1, 5)
    _train(output, TrackingSettings(), 4, 6)
    seen = read_scalars(tmp_path / TENSORBOARD)
    assert seen == {"training/loss": {1: 11, 2: 12, 3: 13, 4: 44, 5: 45, 6: 46}}


def test_tensorboard_on_a_file_system_that_cannot_append_is_copied(tmp_path: Path) -> None:
    local = pyarrow.fs.LocalFileSystem()
    output = Folder(pyarrow.fs.SubTreeFileSystem(str(tmp_path), local), "model")
    assert not output.is_local
    _train(output, TrackingSettings(), 1, 2)
    seen = read_scalars(tmp_path / "model" / TENSORBOARD)
    assert seen == {"training/loss": {1: 11, 2: 12}}


def test_tracking_by_nothing_writes_nothing(tmp_path: Path) -> None:
    _train(Folder.open(str(tmp_path)), TrackingSettings(tensorboard=False), 1, 2)
    assert not list(tmp_path.iterdir())


def test_wandb_offline_goes_on_under_the_same_id(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    settings = TrackingSettings(tensorboard=False, wandb_project="p", wandb_mode="offline")
    output = Folder.open(str(tmp_path))
    _train(output, settings, 1, 2)
    _train(output, settings, 3, 4)
    runs = [path.name.rpartition("-")[2] for path in tmp_path.glob("wandb/**/offline-run-*")]
    assert len(runs) == 2
    assert len(set(runs)) == 1
    assert list(tmp_path.glob("wandb/**/*.wandb"))


def test_mlflow_store_goes_on_with_the_same_run(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/runs.db"
    settings = TrackingSettings(tensorboard=False, mlflow_experiment="e", mlflow_uri=uri)
    output = Folder.open(str(tmp_path / "model"))
    _train(output, settings, 1, 3)
    _train(output, settings, 3, 4)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("e")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["loss"] == 34
    assert {metric.step for metric in client.get_metric_history(run.info.run_id, "loss")} == {
        *range(1, 5)
    }
