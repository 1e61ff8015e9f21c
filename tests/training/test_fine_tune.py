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
from cluster.weights import write_list
from tests.training.conftest import write_rows
from training.batches import batch_of_step, epoch_order, learning_rate
from training.fine_tune import CHECKPOINTS, SNAPSHOT, fine_tune
from training.settings import LoraSettings, TrainingSettings

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


def _weights(folder: Path) -> dict[str, Any]:
    """The weights as transformers loads them; nothing may be missing or unknown."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return dict(model.state_dict())


def _largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert set(one) == set(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def _reference(model_folder: Path, examples: Folder) -> tuple[list[float], list[float], Any]:
    """The same training as one process of plain torch: no padding, no accumulation, no sharding.

    Returns the losses, the gradient norms and the final weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    rows = [r for r in examples.read_table().to_pylist() if _length(r) <= FULL.max_length]
    ids = [row["example_id"] for row in rows]
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=FULL.weight_decay)
    per_epoch = -(-len(rows) // FULL.global_batch_size)
    num_steps = per_epoch * FULL.num_epochs
    losses, norms = [], []
    for step in range(num_steps):
        order = epoch_order(ids, FULL.seed, step // per_epoch)
        batch = [rows[i] for i in batch_of_step(order, step, FULL.global_batch_size)]
        token_losses = torch.cat([_token_losses(model, row) for row in batch])
        optimizer.zero_grad()
        token_losses.mean().backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), FULL.max_grad_norm)))
        optimizer.param_groups[0]["lr"] = learning_rate(
            step, num_steps, FULL.learning_rate, FULL.warmup_ratio
        )
        optimizer.step()
        losses.append(float(token_losses.mean().detach()))
    return losses, norms, dict(model.state_dict())


def _length(row: dict[str, Any]) -> int:
    return len(row["prompt_token_ids"]) + len(row["target_token_ids"])


def _token_losses(model: Any, row: dict[str, Any]) -> Any:
    """The cross entropy of each target token of one example."""
    import torch

    tokens = torch.tensor(row["prompt_token_ids"] + row["target_token_ids"])
    logits = model(input_ids=tokens[None]).logits[0]
    first = len(row["prompt_token_ids"])
    return torch.nn.functional.cross_entropy(
        logits[first - 1 : -1], tokens[first:], reduction="none"
    )


def test_fine_tune_full_zero2_equals_plain_torch(
    undisturbed: Run, tiny_model: Path, examples: Folder
) -> None:
    losses, norms, weights = _reference(tiny_model, examples)
    assert [step["loss"] for step in undisturbed.steps] == pytest.approx(losses, abs=1e-5)
    assert [step["grad_norm"] for step in undisturbed.steps] == pytest.approx(norms, rel=1e-4)
    # A step moves a weight by about the learning rate, 1e-3; nine steps may differ by a hundredth
    # of one, where Adam divides a gradient near zero by its own size.
    assert _largest_difference(_weights(Path(undisturbed.output.path)), weights) < 1e-5


def test_fine_tune_full_zero2_learns_and_counts(
    undisturbed: Run, tiny_model: Path, examples: Folder
) -> None:
    metrics, steps = undisturbed.metrics, undisturbed.steps
    kept = [row for row in examples.read_table().to_pylist() if _length(row) <= FULL.max_length]
    assert metrics["num_examples"] == 19
    assert metrics["num_dropped_too_long"] == 19 - len(kept) > 0
    assert metrics["num_trained_tokens"] == 3 * sum(len(row["target_token_ids"]) for row in kept)
    assert [step["step"] for step in steps] == list(range(1, metrics["num_steps"] + 1))
    assert metrics["first_loss"] == steps[0]["loss"]
    assert metrics["last_loss"] == steps[-1]["loss"] < steps[0]["loss"] - 0.3
    output = Path(undisturbed.output.path)
    assert metrics["weights_sha256"] == write_list(output)
    assert _largest_difference(_weights(output), _weights(tiny_model)) > 1e-3
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
    assert run.metrics["adapter_sha256"] == write_list(tmp_path / "adapter")
    assert run.metrics["weights_sha256"] == write_list(tmp_path)
    merged, base = _weights(tmp_path), _weights(tiny_model)
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
    ours, theirs = _weights(Path(output.path)), _weights(Path(undisturbed.output.path))
    assert _largest_difference(ours, theirs) == 0
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
    theirs = _weights(Path(undisturbed.output.path))
    assert _largest_difference(_weights(tmp_path), theirs) == 0


@pytest.mark.slow
def test_fine_tune_tokens_of_another_model_are_refused(
    tiny_model: Path, ray_cluster: str, tmp_path: Path
) -> None:
    examples = Folder.open(str(tmp_path / "examples"))
    row = {
        "example_id": "e",
        "question_id": "q",
        "prompt_token_ids": [1],
        "target_token_ids": [256],
    }
    write_rows(examples, "part-000.parquet", [row])
    settings = FULL.model_copy(update={"max_failures": 0})
    with pytest.raises(InputError, match=r"token 256, but .* vocabulary of 256"):
        _run(tiny_model, examples, Folder.open(str(tmp_path / "output")), settings)
