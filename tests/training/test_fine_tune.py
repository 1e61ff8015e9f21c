"""Real Ray Train, real DeepSpeed, two CPU workers, a model of two layers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.errors import InputError
from cluster.models import Model
from cluster.storage import Folder
from tests.training.conftest import make_rows, write_rows
from tests.training.events import read_scalars
from tests.training.matrix import largest_difference, length, saved_weights, train_plainly
from training.fine_tune import CHECKPOINTS, SNAPSHOT, fine_tune
from training.settings import LoraSettings, TrainingSettings
from training.tracking import TENSORBOARD

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


@pytest.fixture(scope="module")
def undisturbed(
    tiny_model: Path, examples: Folder, ray_cluster: str, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    output = Folder.open(str(tmp_path_factory.mktemp("undisturbed")))
    return _run(tiny_model, examples, output, FULL)


def test_fine_tune_full_zero2_equals_plain_torch(
    undisturbed: Run, tiny_model: Path, examples: Folder
) -> None:
    expected = train_plainly(tiny_model, examples, FULL)
    losses = [step["loss"] for step in undisturbed.steps]
    assert losses == pytest.approx(expected.losses, abs=1e-5)
    norms = [step["grad_norm"] for step in undisturbed.steps]
    assert norms == pytest.approx(expected.norms, rel=1e-4)
    # A step moves a weight by about the learning rate, 1e-3; nine steps may differ by a hundredth
    # of one, where Adam divides a gradient near zero by its own size.
    assert largest_difference(saved_weights(Path(undisturbed.output.path)), expected.weights) < 1e-5


def test_fine_tune_full_zero2_learns_and_counts(
    undisturbed: Run, tiny_model: Path, examples: Folder
) -> None:
    metrics, steps = undisturbed.metrics, undisturbed.steps
    kept = [row for row in examples.read_table().to_pylist() if length(row) <= FULL.max_length]
    assert metrics["num_examples"] == 19
    assert metrics["num_dropped_too_long"] == 19 - len(kept) > 0
    assert metrics["num_trained_tokens"] == 3 * sum(len(row["target_token_ids"]) for row in kept)
    assert [step["step"] for step in steps] == list(range(1, metrics["num_steps"] + 1))
    assert metrics["first_loss"] == steps[0]["loss"]
    assert metrics["last_loss"] == steps[-1]["loss"] < steps[0]["loss"] - 0.3
    output = Path(undisturbed.output.path)
    assert largest_difference(saved_weights(output), saved_weights(tiny_model)) > 1e-3
    seen = read_scalars(output / TENSORBOARD)
    assert seen["training/loss"] == {
        int(step["step"]): pytest.approx(step["loss"]) for step in steps
    }
    assert set(seen) == {
        f"training/{name}" for name in ("loss", "learning_rate", "grad_norm", "tokens_per_s")
    }
    tokenizer = "tokenizer_config.json"
    assert (output / tokenizer).read_bytes() == (tiny_model / tokenizer).read_bytes()


def test_fine_tune_lora_zero3_saves_a_full_adapter_and_merges_it(
    tiny_model: Path, examples: Folder, ray_cluster: str, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    settings = TrainingSettings(
        method="lora",
        lora=LoraSettings(rank=4, alpha=8),
        zero_stage=3,
        learning_rate=1e-2,
        num_epochs=2,
        global_batch_size=8,
        micro_batch_size=2,
    )
    run = _run(tiny_model, examples, Folder.open(str(tmp_path)), settings)
    assert run.metrics["last_loss"] < run.metrics["first_loss"]
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == 2 * 7 * 2, "two factors for each of seven layers in two blocks"
    assert all(tensor.numel() and tensor.abs().sum() > 0 for tensor in adapter.values())
    merged, base = saved_weights(tmp_path), saved_weights(tiny_model)
    changed = {name for name in base if not torch.equal(merged[name], base[name].bfloat16())}
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    assert changed == {name for name in base if "_proj" in name}


DRIVER = """
import json, sys, ray
from cluster.models import Model
from cluster.storage import Folder
from training.fine_tune import fine_tune
from training.settings import TrainingSettings
address, model, examples, output, settings = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
fine_tune(Model(model, model, "unused"), Folder.open(examples), Folder.open(output),
          TrainingSettings.model_validate_json(settings))
"""


def _wait_for_checkpoint(output: Folder, step: int, driver: subprocess.Popen[bytes]) -> None:
    """Wait until Ray Train's snapshot names a checkpoint of at least `step` steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        snapshot = json.dumps(output.child(CHECKPOINTS).read_json(SNAPSHOT))
        if any(f"step-{n:06d}" in snapshot for n in range(step, step + 4)):
            return
        assert driver.poll() is None, "the driver ended before it could be killed"
        time.sleep(0.05)
    raise AssertionError("no checkpoint within two minutes")


def test_fine_tune_driver_killed_and_run_again_gives_the_undisturbed_weights(
    undisturbed: Run, tiny_model: Path, examples: Folder, ray_cluster: str, tmp_path: Path
) -> None:
    output = Folder.open(str(tmp_path / "killed"))
    settings = FULL.model_copy(update={"checkpoint_every_n_steps": 2})
    arguments = [str(tiny_model), examples.path, output.path, settings.model_dump_json()]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, ray_cluster, *arguments], cwd=ROOT)
    _wait_for_checkpoint(output, 2, driver)
    driver.kill()
    driver.wait()
    assert "config.json" not in output.file_names(), "killed too late to show anything"

    run = _run(tiny_model, examples, output, settings)

    num_steps = undisturbed.metrics["num_steps"]
    resumed = [int(step["step"]) for step in run.steps]
    assert resumed[0] > 2, "it began again instead of going on"
    assert resumed == list(range(resumed[0], num_steps + 1))
    for key in ("num_steps", "num_tokens", "num_trained_tokens", "first_loss", "last_loss"):
        assert run.metrics[key] == undisturbed.metrics[key]
    ours, theirs = saved_weights(Path(output.path)), saved_weights(Path(undisturbed.output.path))
    assert largest_difference(ours, theirs) == 0
    assert run.metrics["weights_sha256"] == undisturbed.metrics["weights_sha256"]
    seen = read_scalars(Path(output.path) / TENSORBOARD)
    assert sorted(seen["training/loss"]) == list(range(1, num_steps + 1))
    kept = [p.name for p in (tmp_path / "killed" / CHECKPOINTS).glob("step-*")]
    assert len(kept) == settings.keep_checkpoints

    more_workers = settings.model_copy(update={"num_workers": 4})
    with pytest.raises(InputError, match="num_workers was 2, now 4"):
        _run(tiny_model, examples, output, more_workers)


@pytest.mark.slow
def test_fine_tune_worker_killed_goes_on_to_the_undisturbed_weights(
    undisturbed: Run, tiny_model: Path, examples: Folder, ray_cluster: str, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_one_worker(metrics: dict[str, float]) -> None:
        # Ours only: the cluster was started by this process.
        if metrics["step"] >= 5 and not killed:
            ours = psutil.Process().children(recursive=True)
            workers = [p for p in ours if "RayTrainWorker" in " ".join(p.cmdline())]
            workers[-1].kill()
            killed.append(workers[-1].pid)

    output = Folder.open(str(tmp_path))
    settings = FULL.model_copy(update={"checkpoint_every_n_steps": 2})
    metrics = fine_tune(_model(tiny_model), examples, output, settings, on_step=kill_one_worker)
    assert killed
    assert metrics["num_trained_tokens"] == undisturbed.metrics["num_trained_tokens"]
    theirs = saved_weights(Path(undisturbed.output.path))
    assert largest_difference(saved_weights(tmp_path), theirs) == 0


@pytest.mark.slow
def test_fine_tune_interrupted_keeps_a_checkpoint_and_goes_on_after_it(
    tiny_model: Path, examples: Folder, ray_cluster: str, tmp_path: Path
) -> None:
    output = Folder.open(str(tmp_path))
    # Steps of a few milliseconds: enough of them to come in time.
    settings = FULL.model_copy(update={"num_epochs": 40})
    last: list[int] = []

    def interrupt(metrics: dict[str, float]) -> None:
        last.append(int(metrics["step"]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(_model(tiny_model), examples, output, settings, on_step=interrupt)
    assert "config.json" not in output.file_names(), "stopped too late to show anything"
    assert list((tmp_path / CHECKPOINTS).glob("step-*"))

    run = _run(tiny_model, examples, output, settings)
    begun = int(run.steps[0]["step"])
    assert last[0] < begun < run.metrics["num_steps"]
    # Step by step the losses are those of the interrupted and of the plain training.
    expected = train_plainly(tiny_model, examples, settings).losses[begun - 1 : begun + 9]
    assert [step["loss"] for step in run.steps[:10]] == pytest.approx(expected, abs=1e-2)


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
