"""The trackers without a training, in the offline modes of the installed ones."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pyarrow.fs
import pytest

from cluster.store.folder import Folder
from cluster.tracking import TENSORBOARD, Tracked, TrackingSettings, tracking
from tests.training.events import read_scalars


def _train(output: Folder, settings: TrackingSettings, first: int, last: int) -> list[str]:
    """Log steps as a process does that begins at `first` and is gone after `last`; returns what it
    told."""
    told: list[str] = []
    tracked = Tracked(output, group="training/")
    with tracking(tracked, settings, first - 1, told.append) as log:
        for step in range(first, last + 1):
            log(step, {"loss": 10.0 * first + step})
    return told


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


class _Failing(types.ModuleType):
    """A tracker's package whose server goes away at the second number."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.num_calls = 0

    def init(self, **_: object) -> _Failing:
        return self

    def Settings(self, **_: object) -> None:  # noqa: N802, the name of the package
        return None

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.num_calls += 1
        if step > 1:
            raise ConnectionError("https://me:secret@host does not answer")

    def finish(self) -> None:
        raise ConnectionError("still not")


def test_tracker_that_fails_is_told_once_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = _Failing("wandb")
    monkeypatch.setitem(sys.modules, "wandb", package)
    told = _train(Folder.open(str(tmp_path / "model")), TrackingSettings(wandb_project="p"), 1, 4)
    [note] = told
    assert "Weights & Biases failed (ConnectionError: https://...@host does not answer)" in note
    assert "model" in note
    assert package.num_calls == 2
    assert set(read_scalars(tmp_path / "model" / TENSORBOARD)["training/loss"]) == {1, 2, 3, 4}


def test_tracker_whose_package_is_missing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    settings = TrackingSettings(tensorboard=False, mlflow_experiment="e")
    [note] = _train(Folder.open(str(tmp_path)), settings, 1, 2)
    assert "MLflow failed (ModuleNotFoundError: " in note


def test_error_of_what_is_tracked_is_raised_and_leaves_the_tensorboard_file(tmp_path: Path) -> None:
    told: list[str] = []

    def fail() -> None:
        tracked = Tracked(Folder.open(str(tmp_path)))
        with tracking(tracked, TrackingSettings(), 0, told.append) as log:
            log(1, {"loss": 2.0})
            raise KeyError("of the training")

    with pytest.raises(KeyError):
        fail()
    assert told == []
    assert read_scalars(tmp_path / TENSORBOARD) == {"loss": {1: 2.0}}
