"""Real Ray Train, real DeepSpeed, two CPU workers, a model of two layers."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.fs
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from cluster.errors import InputError, StorageError
from cluster.models.model import Model
from cluster.models.weight_digests import WEIGHTS, write_list
from cluster.store.folder import Folder
from cluster.tracking import TENSORBOARD
from tests.small_disk import small_disk
from tests.training.conftest import make_rows, write_rows
from tests.training.events import read_scalars
from tests.training.matrix import largest_difference, length, saved_weights, train_plainly
from training.fine_tune import SNAPSHOT, fine_tune
from training.loop import CHECKPOINTS
from training.settings import TrainingSettings

ROOT = Path(__file__).parents[2]

FULL = TrainingSettings(
    learning_rate=1e-3,
    num_epochs=3,
    global_batch_size=8,
    micro_batch_size=2,
    warmup_ratio=0.1,
    weight_decay=0.01,
    dtype="float32",
    zero_stage=2,
    max_length=15,
)
WITH_CHECKPOINTS = FULL.model_copy(update={"checkpoint_every_n_steps": 2})


@dataclass(frozen=True)
class Run:
    """What a fine-tuning left behind."""

    output: Folder
    metrics: dict[str, Any]
    steps: list[dict[str, float]]


def _model(folder: Path) -> Model:
    return Model(identity=str(folder), path=str(folder), cache="unused")


def _run(model: Path, examples: Folder, output: Folder, settings: TrainingSettings) -> Run:
    steps: list[dict[str, float]] = []
    metrics = fine_tune(_model(model), examples, output, settings, on_step=steps.append)
    return Run(output, metrics, steps)


DRIVER = """
import pickle, sys, ray
from training.fine_tune import fine_tune
address, arguments = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
fine_tune(*pickle.loads(bytes.fromhex(arguments)))
"""


def _wait_for_checkpoint(output: Folder, step: int, driver: subprocess.Popen[bytes]) -> None:
    """Wait until Ray Train's snapshot names a checkpoint of at least `step` steps."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        snapshot = json.dumps(output.child(CHECKPOINTS).read_json(SNAPSHOT))
        if any(f"step-{n:06d}" in snapshot for n in range(step, step + 4)):
            return
        assert driver.poll() is None, "the driver ended before it could be killed"
        time.sleep(0.05)
    raise AssertionError("no checkpoint within five minutes")


def _run_again(
    address: str,
    model: Path,
    examples: Folder,
    output: Folder,
    settings: TrainingSettings,
    step: int,
) -> Run:
    """A training whose driver was killed after a checkpoint of `step` or more, and run again."""
    arguments = pickle.dumps((_model(model), examples, output, settings)).hex()
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, address, arguments], cwd=ROOT)
    try:
        _wait_for_checkpoint(output, step, driver)
    finally:
        driver.kill()
        driver.wait()
    assert "config.json" not in output.file_names(), "killed too late to show anything"
    return _run(model, examples, output, settings)


@pytest.fixture(scope="module")
def resumed(
    tiny_model: Path, examples: Folder, ray_cluster: str, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    output = Folder.open(str(tmp_path_factory.mktemp("killed")))
    return _run_again(ray_cluster, tiny_model, examples, output, WITH_CHECKPOINTS, 2)


def test_fine_tune_killed_and_run_again_goes_on_from_its_checkpoint(
    resumed: Run, tiny_model: Path, examples: Folder
) -> None:
    steps = [int(step["step"]) for step in resumed.steps]
    num_steps = resumed.metrics["num_steps"]
    assert steps[0] > 2, "it began again instead of going on"
    assert steps == list(range(steps[0], num_steps + 1))
    output = Path(resumed.output.path)
    assert resumed.metrics["weights_sha256"] == write_list(output)
    kept = [path.name for path in (output / CHECKPOINTS).glob("step-*")]
    assert len(kept) == WITH_CHECKPOINTS.keep_checkpoints
    seen = read_scalars(output / TENSORBOARD)
    assert sorted(seen["training/loss"]) == list(range(1, num_steps + 1))
    assert set(seen) == {
        f"training/{name}" for name in ("loss", "learning_rate", "grad_norm", "tokens_per_s")
    }
    more_workers = WITH_CHECKPOINTS.model_copy(update={"num_workers": 4})
    with pytest.raises(InputError, match="num_workers was 2, now 4"):
        _run(tiny_model, examples, resumed.output, more_workers)


def test_fine_tune_killed_and_run_again_equals_plain_torch(
    resumed: Run, tiny_model: Path, examples: Folder
) -> None:
    expected = train_plainly(tiny_model, examples, FULL)
    first = int(resumed.steps[0]["step"]) - 1
    losses = [step["loss"] for step in resumed.steps]
    assert losses == pytest.approx(expected.losses[first:], abs=1e-5)
    norms = [step["grad_norm"] for step in resumed.steps]
    assert norms == pytest.approx(expected.norms[first:], rel=1e-4)
    # A step moves a weight by about the learning rate, 1e-3; nine steps may differ by a hundredth
    # of one, where Adam divides a gradient near zero by its own size.
    weights = saved_weights(Path(resumed.output.path))
    assert largest_difference(weights, expected.weights) < 1e-5
    assert resumed.metrics["first_loss"] == pytest.approx(expected.losses[0], abs=1e-5)
    assert resumed.metrics["last_loss"] == losses[-1] < expected.losses[0] - 0.3


def test_fine_tune_killed_and_run_again_counts_all_that_was_trained(
    resumed: Run, tiny_model: Path, examples: Folder
) -> None:
    kept = [row for row in examples.read_table().to_pylist() if length(row) <= FULL.max_length]
    metrics, epochs = resumed.metrics, FULL.num_epochs
    assert metrics["num_examples"] == 19
    assert metrics["num_dropped_too_long"] == 19 - len(kept) > 0
    assert metrics["num_truncated"] == 0
    assert metrics["num_tokens"] == epochs * sum(map(length, kept))
    assert metrics["num_trained_tokens"] == epochs * sum(len(r["target_token_ids"]) for r in kept)
    output, tokenizer = Path(resumed.output.path), "tokenizer_config.json"
    assert (output / tokenizer).read_bytes() == (tiny_model / tokenizer).read_bytes()


@pytest.fixture(scope="module")
def undisturbed(
    tiny_model: Path, examples: Folder, ray_cluster: str, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    output = Folder.open(str(tmp_path_factory.mktemp("undisturbed")))
    return _run(tiny_model, examples, output, FULL)


@pytest.mark.slow
def test_fine_tune_killed_and_run_again_gives_the_undisturbed_weights(
    resumed: Run, undisturbed: Run
) -> None:
    same = ("num_steps", "num_tokens", "num_trained_tokens", "first_loss", "last_loss")
    for key in (*same, "weights_sha256"):
        assert resumed.metrics[key] == undisturbed.metrics[key]
    ours, theirs = (saved_weights(Path(run.output.path)) for run in (resumed, undisturbed))
    assert largest_difference(ours, theirs) == 0
    assert [step["step"] for step in undisturbed.steps] == [*range(1, len(undisturbed.steps) + 1)]


def _elsewhere(folder: Path) -> Folder:
    """On a file system other than the nodes' own, as an object store is one; this one is Python."""
    store = DirFileSystem(str(folder), LocalFileSystem())
    return Folder(pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(store)), "bucket/model")


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "is_local"), [(2, False), (3, True)])
def test_fine_tune_killed_at_any_step_and_run_again_gives_the_undisturbed_weights(
    stage: int,
    is_local: bool,
    tiny_model: Path,
    examples: Folder,
    ray_cluster: str,
    tmp_path: Path,
) -> None:
    settings = WITH_CHECKPOINTS.model_copy(update={"zero_stage": stage})
    output = Folder.open(str(tmp_path / "killed")) if is_local else _elsewhere(tmp_path / "killed")
    step = random.choice((2, 4, 6))
    again = _run_again(ray_cluster, tiny_model, examples, output, settings, step)
    steps = [int(metrics["step"]) for metrics in again.steps]
    assert steps == list(range(steps[0], again.metrics["num_steps"] + 1))
    assert steps[0] > step, "it began again instead of going on"
    assert hashlib.sha256(output.read_bytes(WEIGHTS)).hexdigest() == again.metrics["weights_sha256"]
    undisturbed = _run(tiny_model, examples, Folder.open(str(tmp_path / "undisturbed")), settings)
    assert again.metrics["weights_sha256"] == undisturbed.metrics["weights_sha256"]


def _workers() -> list[psutil.Process]:
    """Ours only: the cluster was started by this process."""
    ours = psutil.Process().children(recursive=True)
    return [process for process in ours if "RayTrainWorker" in _title(process)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _run_with_a_worker_killed(
    model: Path, examples: Folder, output: Folder, settings: TrainingSettings
) -> dict[str, Any]:
    """The result of a training that loses a worker after four steps or more."""
    killed: list[int] = []

    def kill_one_worker(metrics: dict[str, float]) -> None:
        if metrics["step"] >= 4 and not killed:
            worker = _workers()[-1]
            worker.kill()
            killed.append(worker.pid)

    metrics = fine_tune(_model(model), examples, output, settings, on_step=kill_one_worker)
    assert killed
    return metrics


@pytest.mark.slow
def test_fine_tune_worker_killed_goes_on_to_the_undisturbed_weights(
    undisturbed: Run, tiny_model: Path, examples: Folder, ray_cluster: str, tmp_path: Path
) -> None:
    output = Folder.open(str(tmp_path))
    metrics = _run_with_a_worker_killed(tiny_model, examples, output, WITH_CHECKPOINTS)
    assert metrics["num_trained_tokens"] == undisturbed.metrics["num_trained_tokens"]
    theirs = saved_weights(Path(undisturbed.output.path))
    assert largest_difference(saved_weights(tmp_path), theirs) == 0


@pytest.mark.slow
def test_fine_tune_adapters_with_zero3_and_a_worker_killed_equal_plain_torch(
    tiny_model: Path, examples: Folder, ray_cluster: str, tmp_path: Path
) -> None:
    changes = {"method": "lora", "zero_stage": 3, "learning_rate": 1e-2}
    settings = WITH_CHECKPOINTS.model_copy(update=changes)
    output = Folder.open(str(tmp_path))
    metrics = _run_with_a_worker_killed(tiny_model, examples, output, settings)
    expected = train_plainly(tiny_model, examples, settings)
    assert metrics["last_loss"] == pytest.approx(expected.losses[-1], abs=1e-5)
    assert metrics["weights_sha256"] == write_list(tmp_path)
    assert metrics["adapter_sha256"] == write_list(tmp_path / "adapter")
    # A hundredth of a step, as for all weights.
    assert largest_difference(saved_weights(tmp_path), expected.weights) < 1e-4


@pytest.mark.slow
def test_fine_tune_interrupted_keeps_a_checkpoint_and_goes_on_after_it(
    tiny_model: Path, examples: Folder, ray_cluster: str, tmp_path: Path
) -> None:
    # On a file system other than the nodes' own, as an object store is one.
    local = pyarrow.fs.LocalFileSystem()
    output = Folder(pyarrow.fs.SubTreeFileSystem(str(tmp_path), local), "model")
    # Steps of a few milliseconds: enough of them to come in time.
    settings = FULL.model_copy(update={"num_epochs": 40})
    last: list[int] = []

    def interrupt(metrics: dict[str, float]) -> None:
        last.append(int(metrics["step"]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(_model(tiny_model), examples, output, settings, on_step=interrupt)
    assert "config.json" not in output.file_names(), "stopped too late to show anything"
    assert list((tmp_path / "model" / CHECKPOINTS).glob("step-*"))

    run = _run(tiny_model, examples, output, settings)
    begun = int(run.steps[0]["step"])
    assert last[0] < begun < run.metrics["num_steps"]
    # Step by step the losses are those of the interrupted and of the plain training.
    expected = train_plainly(tiny_model, examples, settings).losses[begun - 1 : begun + 9]
    assert [step["loss"] for step in run.steps[:10]] == pytest.approx(expected, abs=1e-2)


@pytest.mark.slow
def test_fine_tune_workers_told_to_end_lose_no_step(
    tiny_model: Path, examples: Folder, ray_cluster: str, tmp_path: Path
) -> None:
    # Steps of a few milliseconds: enough of them to come in time. No failure is allowed.
    settings = FULL.model_copy(update={"num_epochs": 40, "max_failures": 0})
    output = Folder.open(str(tmp_path / "told"))
    told: list[int] = []
    steps: list[int] = []

    def tell_one_worker(metrics: dict[str, float]) -> None:
        steps.append(int(metrics["step"]))
        workers = _workers() if len(told) < 2 else []
        # One of the first two, then the other one of those that go on from its checkpoint.
        if len(workers) == 2 and not {worker.pid for worker in workers} & set(told):
            worker = workers[len(told)]
            worker.terminate()
            told.append(worker.pid)

    model = _model(tiny_model)
    metrics = fine_tune(model, examples, output, settings, on_step=tell_one_worker)
    assert len(told) == 2
    assert steps == list(range(1, metrics["num_steps"] + 1))
    [made] = (tmp_path / "told" / CHECKPOINTS).glob("step-*")
    assert made.name < f"step-{metrics['num_steps']:06d}", "told too late to show anything"
    expected = _run(tiny_model, examples, Folder.open(str(tmp_path / "undisturbed")), settings)
    for key in ("num_tokens", "num_trained_tokens", "last_loss", "weights_sha256"):
        assert metrics[key] == expected.metrics[key]


@pytest.mark.slow
def test_fine_tune_that_diverges_is_ended_and_not_tried_again(
    tiny_model: Path, examples: Folder, ray_cluster: str, tmp_path: Path
) -> None:
    settings = FULL.model_copy(update={"learning_rate": 1e30, "warmup_ratio": 0.0})
    steps: list[dict[str, float]] = []
    output = Folder.open(str(tmp_path))
    with pytest.raises(InputError, match=r"diverged at step \d.* lower training\.learning_rate"):
        fine_tune(_model(tiny_model), examples, output, settings, on_step=steps.append)
    assert [step["step"] for step in steps] == [1.0], "the first step moved all weights away"
    assert "config.json" not in output.file_names()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "24m") as made:
        yield made.path


@pytest.mark.slow
def test_fine_tune_on_a_full_disk_is_ended_once_and_goes_on_from_its_checkpoint(
    tiny_model: Path, examples: Folder, ray_cluster: str, disk: Path
) -> None:
    ballast = disk / "ballast"
    output = Folder.open(str(disk / "model"))
    steps: list[float] = []

    def fill(metrics: dict[str, float]) -> None:
        steps.append(metrics["step"])
        if metrics["step"] == 3 and not ballast.exists():  # after the checkpoint of two steps
            free = shutil.disk_usage(disk).free
            ballast.write_bytes(bytes(free - 100_000))

    with pytest.raises(StorageError, match=r"checkpoints/step-\d+ \(\d+ bytes\).*No space left"):
        fine_tune(_model(tiny_model), examples, output, WITH_CHECKPOINTS, on_step=fill)
    assert steps == sorted(set(steps)), "no step was made a second time"
    ballast.unlink()
    resumed = _run(tiny_model, examples, output, WITH_CHECKPOINTS)
    assert resumed.steps[0]["step"] > 1
    assert resumed.metrics["weights_sha256"] == write_list(Path(output.path))


@pytest.mark.slow
def test_fine_tune_tokens_of_another_model_are_refused(
    tiny_model: Path, ray_cluster: str, tmp_path: Path
) -> None:
    examples = Folder.open(str(tmp_path / "examples"))
    rows = make_rows(8)
    rows[3]["target_token_ids"] = [256]
    write_rows(examples, "part-000.parquet", rows)
    settings = FULL.model_copy(update={"max_length": 100, "max_failures": 0})
    with pytest.raises(InputError, match=r"token 256, but .* vocabulary of 256"):
        _run(tiny_model, examples, Folder.open(str(tmp_path / "output")), settings)


def test_fine_tune_more_workers_than_the_machine_holds_is_refused(
    tiny_model: Path, examples: Folder, ray_cluster: str, tmp_path: Path
) -> None:
    output = Folder.open(str(tmp_path))
    on_gpus = FULL.model_copy(update={"gpus_per_worker": 1})
    with pytest.raises(InputError, match="this machine has 0 GPUs and 2 CPUs, room for 0"):
        _run(tiny_model, examples, output, on_gpus)
    too_many = FULL.model_copy(update={"num_workers": 4})
    with pytest.raises(InputError, match=r"room for 2; lower training\.num_workers"):
        _run(tiny_model, examples, output, too_many)
