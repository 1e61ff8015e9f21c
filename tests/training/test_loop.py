"""The end of a training whose model cannot be saved, in one process."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import InputError, StorageError
from cluster.models.model import Model
from cluster.store.folder import Folder
from training import fine_tune, loop
from training.loop import (
    Progress,
    TrainingJob,
    UnwrittenError,
    _any_worker,
    _is_late,
    _save,
    _save_checkpoint,
)
from training.saving import IncompleteSaveError
from training.settings import PlacedTraining

DONE = Progress(next_step=6, num_steps=6)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import torch

    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def checkpoints(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of which a checkpoint was made."""
    made: list[int] = []

    def note(engine: Any, progress: Progress, job: TrainingJob) -> Progress:
        made.append(progress.next_step)
        return progress

    monkeypatch.setattr(loop, "_save_checkpoint", note)
    return made


def _job(tmp_path: Path, **settings: Any) -> TrainingJob:
    model = Model(identity="tiny", path=str(tmp_path), cache="unused")
    folder = Folder.open(str(tmp_path))
    return TrainingJob(model, folder, folder, PlacedTraining(**settings))


def _failing_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> None:
        raise error

    monkeypatch.setattr(loop, "save_trained", fail)


@pytest.mark.usefixtures("one_process")
def test_a_save_that_would_fail_again_ends_the_training_and_keeps_a_checkpoint(
    checkpoints: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _failing_with(IncompleteSaveError("model.norm.weight is empty"), monkeypatch)
    told = _save(None, DONE, _job(tmp_path))
    assert "IncompleteSaveError: model.norm.weight is empty" in told["refused"]
    assert checkpoints == [6]
    # The last step had one already.
    _save(None, DONE, _job(tmp_path, checkpoint_every_n_steps=3))
    assert checkpoints == [6]


@pytest.mark.usefixtures("one_process")
def test_a_save_that_a_disk_or_network_broke_is_tried_again_from_a_checkpoint(
    checkpoints: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _failing_with(OSError(5, "Input/output error"), monkeypatch)
    with pytest.raises(OSError, match="Input/output"):
        _save(None, DONE, _job(tmp_path))
    assert checkpoints == [6]


def _no_space(*_arguments: Any, **_others: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures("one_process")
def test_a_full_disk_ends_the_training_at_once_with_what_could_not_be_written(
    checkpoints: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = _job(tmp_path)
    with pytest.raises(StorageError) as caught, job.output.writing("model.safetensors", 99):
        _no_space()
    _failing_with(caught.value, monkeypatch)
    with pytest.raises(UnwrittenError, match=r"model\.safetensors \(99 bytes\).* No space left"):
        _save(None, DONE, job)
    assert checkpoints == [6], "it may still fit, and then no step is trained again"


class _Engine:
    """Writes one file of 5,000 bytes as its checkpoint."""

    def save_checkpoint(self, folder: str, **_options: Any) -> None:
        Path(folder, "shard").write_bytes(bytes(5000))


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("code", "expected"), [(errno.ENOSPC, UnwrittenError), (errno.EIO, StorageError)]
)
def test_a_checkpoint_that_cannot_be_written_is_named_with_its_size(
    code: int, expected: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ray.train

    def fail(*_arguments: Any, **_others: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(ray.train, "report", fail)
    with pytest.raises(StorageError, match=r"checkpoints/step-000006 \(5000 bytes\)") as caught:
        _save_checkpoint(_Engine(), DONE, _job(tmp_path))
    assert type(caught.value) is expected


@pytest.mark.usefixtures("one_process", "checkpoints")
def test_a_save_tells_what_was_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loop, "save_trained", lambda *_arguments: {"weights_changed": 0.5})
    assert _save(None, DONE, _job(tmp_path)) == {"weights_changed": 0.5}


def test_a_disk_that_failed_as_often_as_it_was_tried_is_one_sentence() -> None:
    full = OSError(errno.EIO, "Input/output error")
    for failure in ({"worker_failures": {0: full}}, {"controller_failure": full}):
        told = fine_tune._user_error(SimpleNamespace(**failure))  # type: ignore[arg-type]
        assert isinstance(told, StorageError)
        assert "Input/output error" in str(told)
    refusal = InputError("too few examples")
    assert fine_tune._user_error(SimpleNamespace(worker_failures={0: refusal})) is refusal  # type: ignore[arg-type]
    bug = SimpleNamespace(worker_failures={0: ZeroDivisionError()})
    assert fine_tune._user_error(bug) is None  # type: ignore[arg-type]


@pytest.mark.usefixtures("one_process")
def test_any_worker_answers_each_question() -> None:
    assert _any_worker([True, False], "cpu") == [True, False]
    assert _any_worker([False, True], "cpu") == [False, True]


def test_a_checkpoint_by_time_is_due_when_so_many_seconds_went_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = PlacedTraining(checkpoint_every_s=60.0)
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    assert not _is_late(41.0, settings)
    assert _is_late(40.0, settings)
    assert not _is_late(0.0, PlacedTraining())
