"""The end of a training whose model cannot be saved, in one process."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import InputError, StorageError
from cluster.models.model import Model
from cluster.store.folder import Folder
from tests.small_disk import small_disk
from training import fine_tune, loop, preemption
from training.checks import RefusedError, agree
from training.deepspeed_engine import shard_bytes
from training.loop import (
    Progress,
    StepBoard,
    TrainingJob,
    UnwrittenError,
    _any_worker,
    _is_late,
    _load_checkpoint,
    _refuse_divergence,
    _save,
    _save_checkpoint,
    _write_checkpoint,
    train_worker,
)
from training.saving import IncompleteSaveError
from training.settings import PlacedTraining

DONE = Progress(next_step=6, num_steps=6)


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
    """Writes one file of 5,000 bytes as its checkpoint, as it would with ten weights."""

    global_rank = 0

    def __init__(self) -> None:
        import torch

        weight = torch.nn.Parameter(torch.zeros(10))
        self.module = SimpleNamespace(parameters=lambda: [weight, torch.zeros(7)])
        moments = {"step": 3, "exp_avg": torch.zeros(10), "exp_avg_sq": torch.zeros(10)}
        inner = SimpleNamespace(state={weight: moments})
        copies = [torch.zeros(10)]
        self.optimizer = SimpleNamespace(optimizer=inner, single_partition_of_fp32_groups=copies)

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


@pytest.mark.usefixtures("one_process")
def test_a_refusal_of_any_worker_is_one_of_all() -> None:
    def refuse() -> None:
        raise InputError("too long")

    agree(lambda: None)
    with pytest.raises(RefusedError, match=r"^too long$"):
        agree(refuse)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RefusedError("too long"), {"refused": "too long"}),
        (UnwrittenError("no space"), {"unwritten": "no space"}),
    ],
)
def test_a_worker_returns_what_would_fail_again(
    error: Exception, told: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(job: TrainingJob) -> None:
        raise error

    monkeypatch.setattr(loop, "prepare_process", lambda settings: None)
    monkeypatch.setattr(loop, "load", fail)
    assert train_worker({"job": _job(tmp_path)}) == told


def test_a_board_gives_each_step_and_note_once_and_says_when_to_stop() -> None:
    board = StepBoard()
    assert not board.put({"step": 1})
    board.stop()
    assert board.put({"step": 2})
    board.tell("a note")
    assert board.take() == ([{"step": 1}, {"step": 2}], ["a note"])
    assert board.take() == ([], [])


@pytest.mark.parametrize(
    ("loss", "norm"), [(float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("nan"))]
)
def test_a_step_that_is_not_finite_is_refused(loss: float, norm: float) -> None:
    _refuse_divergence(3, 1.0, 1.0)
    with pytest.raises(RefusedError, match=r"step 4: .*lower training\.learning_rate"):
        _refuse_divergence(3, loss, norm)


def test_bytes_of_a_checkpoint_are_those_of_its_tensors() -> None:
    engine = _Engine()
    assert shard_bytes(engine, PlacedTraining()) == 4 * (10 + 7 + 10 + 20)
    assert shard_bytes(engine, PlacedTraining(method="lora")) == 4 * (10 + 10 + 20)
    engine.global_rank = 1
    assert shard_bytes(engine, PlacedTraining()) == 4 * (10 + 20)


@pytest.mark.usefixtures("one_process")
def test_a_checkpoint_that_does_not_fit_into_the_temporary_folder_ends_the_training_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        monkeypatch.setattr("tempfile.tempdir", str(disk.path))
        (disk.path / "ballast").write_bytes(bytes(65_536 - 4096))
        monkeypatch.setattr(loop, "shard_bytes", lambda *_: 5000)
        sentence = (
            rf"step 6 \(5000 bytes on this node\) does not fit into {disk.path}, where 4096 bytes"
        )
        with pytest.raises(UnwrittenError, match=sentence):
            _save_checkpoint(_Engine(), DONE, _job(tmp_path))
        assert [file.name for file in disk.path.iterdir()] == ["ballast"]


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("code", "expected"), [(errno.ENOSPC, UnwrittenError), (errno.EIO, StorageError)]
)
def test_a_checkpoint_that_cannot_be_fetched_is_named_with_the_folder(
    code: int, expected: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ray.train

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    far = SimpleNamespace(path="bucket/step-000002", as_directory=fail)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: far)
    with pytest.raises(StorageError, match=r"bucket/step-000002 cannot be copied to ") as caught:
        _load_checkpoint(_Engine(), PlacedTraining())
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("[enforce fail] . PytorchStreamWriter failed writing file", OSError),
        ("another reason", RuntimeError),
    ],
)
def test_a_checkpoint_that_torch_cannot_write_is_an_error_of_the_disk(
    message: str, expected: type[Exception], tmp_path: Path
) -> None:
    def fail(*_arguments: Any, **_others: Any) -> None:
        raise RuntimeError(message)

    engine = SimpleNamespace(save_checkpoint=fail)
    with pytest.raises(expected, match=message[-8:]):
        _write_checkpoint(engine, DONE, PlacedTraining(), str(tmp_path))


@pytest.mark.usefixtures("one_process")
def test_a_checkpoint_without_a_state_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ray.train

    found: list[Any] = [None, ray.train.Checkpoint.from_directory(tmp_path)]
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: found.pop(0))
    engine = SimpleNamespace(load_checkpoint=lambda *_arguments, **_others: (None, None))
    assert _load_checkpoint(engine, PlacedTraining()) == Progress()
    with pytest.raises(RuntimeError, match=f"{tmp_path} has no state; delete that folder"):
        _load_checkpoint(engine, PlacedTraining())


def _once(job: TrainingJob, fit: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Train once as the driver does, where Ray Train would end with what `fit` does."""

    def interrupt(metrics: dict[str, float]) -> None:
        raise KeyboardInterrupt

    def trainer(placed: TrainingJob) -> Any:
        return SimpleNamespace(fit=lambda: fit(placed.board))

    monkeypatch.setattr(fine_tune, "_trainer", trainer)
    return fine_tune._train_once(job, interrupt)


def _result(**facts: Any) -> Callable[[Any], Any]:
    return lambda board: SimpleNamespace(return_value=facts)


def _failure(error: Exception) -> Callable[[Any], Any]:
    def fail(board: Any) -> None:
        raise error

    return fail


@pytest.mark.usefixtures("ray_cluster")
def test_what_ends_a_training_is_raised_by_its_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ray.train import WorkerGroupError

    few, bug = InputError("too few examples"), ZeroDivisionError()
    ends: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
        (_result(refused="too long"), InputError, "too long"),
        (_result(unwritten="no space"), StorageError, "no space"),
        (_failure(OSError(errno.EIO, "Input/output error")), StorageError, "Input/output error"),
        (_failure(WorkerGroupError("failed", {0: few})), InputError, "too few examples"),
        (_failure(WorkerGroupError("failed", {0: bug})), WorkerGroupError, "failed"),
    ]
    for fit, kind, sentence in ends:
        with pytest.raises(kind, match=sentence):
            _once(_job(tmp_path), fit, monkeypatch)
    assert _once(_job(tmp_path), _result(next_step=6), monkeypatch) == {"next_step": 6}


@pytest.mark.usefixtures("ray_cluster")
def test_ctrl_c_after_the_first_step_waits_for_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    kept: list[int] = []

    def fit(board: Any) -> Any:
        for step in itertools.count(1):
            if ray.get(board.put.remote({"step": step})):
                kept.append(step)
                return SimpleNamespace(return_value={})

    with pytest.raises(KeyboardInterrupt):
        _once(_job(tmp_path), fit, monkeypatch)
    assert kept, "the workers were told to stop, and waited for"
    assert "training: writing a checkpoint, then stopping" in capsys.readouterr().err


def test_a_training_that_had_to_end_continues_until_its_last_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [{"next_step": step, "num_steps": 6} for step in (2, 5, 6, 6)]
    monkeypatch.setattr(fine_tune, "_train_once", lambda job, on_step: results.pop(0))
    assert fine_tune._run(_job(tmp_path), lambda metrics: None)["next_step"] == 6
    assert len(results) == 1
    said = capsys.readouterr().err
    assert "after 2 of 6 steps" in said
    assert "after 5 of 6 steps" in said


@pytest.mark.parametrize(
    ("share", "dtype", "is_said", "has_float32"),
    [
        (0.2, "bfloat16", False, False),
        (0.05, "bfloat16", True, True),
        (0.05, "float32", True, False),
    ],
)
def test_few_changed_weights_are_said(
    share: float,
    dtype: str,
    is_said: bool,
    has_float32: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = PlacedTraining.model_validate({"dtype": dtype})
    fine_tune._warn_of_few_changes(share, settings)
    said = capsys.readouterr().err
    assert ("only 5.0% of the weights" in said) == is_said
    assert ("float32" in said) == has_float32


def test_an_error_of_the_training_thread_reaches_the_caller() -> None:
    assert fine_tune._in_thread(lambda: 3).result(5) == 3
    with pytest.raises(ZeroDivisionError):
        fine_tune._in_thread(lambda: 1 // 0).result(5)


def test_first_sigterm_is_recorded_and_the_second_has_the_original_effect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    monkeypatch.setattr(preemption, "_told", threading.Event())
    monkeypatch.setattr("ray.train.get_preemption_info", lambda: None)
    try:
        preemption.catch_sigterm()
        assert not preemption.is_told_to_end()
        signal.raise_signal(signal.SIGTERM)
        assert preemption.is_told_to_end()
        assert not received
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
