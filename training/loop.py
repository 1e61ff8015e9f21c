"""The training loop that every Ray Train worker runs.

On the driver: nothing of this file but the two small classes that travel, `Job` and `StepBoard`.
On a worker: `train_worker` and all it calls; torch and deepspeed are imported there.
In between: the `Job` goes to the workers; token ids are read by them from storage; after each step
the first worker sends a handful of numbers to the `StepBoard`, an actor that the driver empties;
checkpoints go to storage through `ray.train.report`, which also hands them back after a crash.

Step metrics do not go through `ray.train.report`: its queue holds one report, which the controller
takes every two seconds, so a step could not be shorter than that.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import InputError
from cluster.models import Model
from cluster.storage import Folder
from training.batches import (
    IGNORED,
    Example,
    MicroBatch,
    answer_positions,
    batch_of_step,
    collate,
    epoch_order,
    learning_rate,
    micro_batches,
    steps_per_epoch,
)
from training.engine import build_engine, prepare_process, set_learning_rate, step_engine
from training.examples import read_examples
from training.saving import save_trained
from training.settings import TrainingSettings

PAD = 0
"""The id that fills a batch up. Any will do: it is masked and never a label."""

TAG = "state"
"""The folder that DeepSpeed makes inside a checkpoint."""


@dataclass(frozen=True)
class Job:
    """All that a worker is told."""

    model: Model
    examples: Folder
    output: Folder
    settings: TrainingSettings
    board: Any
    """The handle of a `StepBoard` actor."""


@dataclass(frozen=True)
class Progress:
    """How far a training is; kept in every checkpoint, so that its sums outlive a crash."""

    next_step: int = 0
    num_steps: int = 0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    first_loss: float = math.nan
    last_loss: float = math.nan
    seconds: float = 0.0


@dataclass(frozen=True)
class Share:
    """What one worker does in one step, and how large the step is over all workers."""

    micro_batches: list[MicroBatch]
    num_tokens: int
    num_answer_tokens: int


class StepBoard:
    """Holds step metrics until the driver takes them. A plain class; the driver makes the actor."""

    def __init__(self) -> None:
        self._steps: list[dict[str, float]] = []

    def put(self, metrics: dict[str, float]) -> None:
        self._steps.append(metrics)

    def take(self) -> list[dict[str, float]]:
        taken, self._steps = self._steps, []
        return taken


class StepData:
    """The examples, cut into one worker's share of each step."""

    def __init__(self, table: pa.Table, settings: TrainingSettings, rank: int, num_ranks: int):
        self._ids: list[str] = table.column("example_id").to_pylist()
        self._prompts = table.column("prompt_token_ids").combine_chunks()
        self._targets = table.column("target_token_ids").combine_chunks()
        self._settings = settings
        self._rank, self._num_ranks = rank, num_ranks
        self._order_of = lru_cache(maxsize=1)(
            lambda epoch: epoch_order(self._ids, settings.seed, epoch)
        )

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self._ids), self._settings.global_batch_size)

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self._settings.num_epochs

    def share(self, step: int) -> Share:
        order = self._order_of(step // self.steps_per_epoch)
        batch = batch_of_step(order, step, self._settings.global_batch_size)
        examples = {index: self._example(index) for index in batch}
        lengths = [examples[index].length for index in batch]
        micros = micro_batches(
            batch, lengths, self._settings.micro_batch_size, self._num_ranks, self._rank
        )
        return Share(
            [collate([examples[index] for index in micro], PAD) for micro in micros],
            sum(lengths),
            sum(len(example.target) for example in examples.values()),
        )

    def _example(self, index: int) -> Example:
        prompt, target = self._prompts[index].values, self._targets[index].values
        return Example(self._ids[index], prompt.to_numpy(), target.to_numpy())


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train, save and return the final `Progress` as a dict, with the fingerprints of the saved
    weights. `config["job"]` is a `Job`."""
    import ray.train

    job: Job = config["job"]
    context = ray.train.get_context()
    rank, num_ranks = context.get_world_rank(), context.get_world_size()
    prepare_process(job.settings)
    table = read_examples(job.examples, job.settings.max_length)
    model = job.model.fetch()
    _refuse_foreign_tokens(table, model)
    data = StepData(table, job.settings, rank, num_ranks)
    engine = build_engine(model, job.settings, num_ranks)
    progress = _load_checkpoint(engine, job.settings)
    progress = _train(engine, data, progress, job, rank)
    fingerprints = save_trained(engine, model, job.output, job.settings, rank)
    return asdict(progress) | fingerprints


def _refuse_foreign_tokens(table: pa.Table, model: str) -> None:
    """Raises `InputError` when an id is not in the model's vocabulary, which is never resized."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    size = config.get_text_config().vocab_size
    for name in ("prompt_token_ids", "target_token_ids"):
        largest = pc.max(pc.list_flatten(table.column(name))).as_py()
        if largest >= size:
            raise InputError(
                f"{name} holds token {largest}, but {model} has a vocabulary of {size}; "
                "the examples were made with another tokenizer"
            )


def _train(engine: Any, data: StepData, start: Progress, job: Job, rank: int) -> Progress:
    """Run the steps that are left, tell the driver of each, and checkpoint as the config says."""
    settings = job.settings
    progress = replace(start, num_steps=data.num_steps)
    for step in range(start.next_step, data.num_steps):
        began = time.perf_counter()
        share = data.share(step)
        rate = learning_rate(step, data.num_steps, settings.learning_rate, settings.warmup_ratio)
        _seed_step(settings.seed, step, rank)
        loss, grad_norm = _train_step(engine, share, rate)
        _refuse_divergence(step, loss, grad_norm)
        seconds = time.perf_counter() - began
        progress = _advance(progress, share, loss, seconds)
        if rank == 0:
            metrics = _step_metrics(progress, share, rate, grad_norm, seconds)
            job.board.put.remote(metrics)
        if _checkpoint_is_due(progress, settings):
            _save_checkpoint(engine, progress, settings)
    return progress


def _train_step(engine: Any, share: Share, rate: float) -> tuple[float, float]:
    """One optimizer step. Returns the mean loss over the global batch's answer tokens and the
    gradient norm before clipping.

    DeepSpeed averages gradients over the workers, so each worker's sum of token losses is scaled
    by workers / answer tokens of the global batch: what is applied is the gradient of the mean
    over all its answer tokens, however they are spread.
    """
    import torch

    num_ranks = torch.distributed.get_world_size()
    total = torch.zeros((), device=engine.device)
    for index, micro in enumerate(share.micro_batches):
        engine.set_gradient_accumulation_boundary(index + 1 == len(share.micro_batches))
        loss = answer_loss(engine, micro, engine.device)
        engine.backward(loss * (num_ranks / share.num_answer_tokens), scale_wrt_gas=False)
        total += loss.detach()
    set_learning_rate(engine, rate)
    grad_norm = step_engine(engine)
    torch.distributed.all_reduce(total)
    return total.item() / share.num_answer_tokens, grad_norm


def answer_loss(model: Any, micro: MicroBatch, device: Any) -> Any:
    """The sum of the cross entropies of a micro-batch's answer tokens, in float32.

    Logits are made only where some row's next token is learnt: with 100,000 words in the
    vocabulary those of the prompts would be the largest tensor of all.
    """
    import torch

    positions = answer_positions(micro.labels)
    logits = model(
        input_ids=torch.from_numpy(micro.input_ids).to(device),
        attention_mask=torch.from_numpy(micro.attention_mask).to(device),
        logits_to_keep=torch.from_numpy(positions).to(device),
        use_cache=False,
    ).logits
    labels = torch.from_numpy(np.ascontiguousarray(micro.labels[:, positions + 1])).to(device)
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout hangs on the step, so that a resumed run draws what an undisturbed one does."""
    import torch

    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:4]))


def _refuse_divergence(step: int, loss: float, grad_norm: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise FloatingPointError(
            f"training diverged at step {step + 1}: loss {loss}, gradient norm {grad_norm}; "
            "lower training.learning_rate or raise training.warmup_ratio"
        )


def _advance(progress: Progress, share: Share, loss: float, seconds: float) -> Progress:
    return replace(
        progress,
        next_step=progress.next_step + 1,
        num_tokens=progress.num_tokens + share.num_tokens,
        num_trained_tokens=progress.num_trained_tokens + share.num_answer_tokens,
        first_loss=loss if progress.next_step == 0 else progress.first_loss,
        last_loss=loss,
        seconds=progress.seconds + seconds,
    )


def _step_metrics(
    progress: Progress, share: Share, rate: float, grad_norm: float, seconds: float
) -> dict[str, float]:
    return {
        "step": progress.next_step,
        "num_steps": progress.num_steps,
        "loss": progress.last_loss,
        "learning_rate": rate,
        "grad_norm": grad_norm,
        "tokens": share.num_tokens,
        "tokens_per_s": share.num_tokens / seconds,
    }


def _checkpoint_is_due(progress: Progress, settings: TrainingSettings) -> bool:
    every = settings.checkpoint_every_n_steps
    return every > 0 and progress.next_step % every == 0


def _save_checkpoint(engine: Any, progress: Progress, settings: TrainingSettings) -> None:
    """Every worker writes its shard; Ray Train copies them into one folder on storage."""
    import ray.train

    with tempfile.TemporaryDirectory(prefix="regenesis-checkpoint-") as folder:
        engine.save_checkpoint(
            folder,
            tag=TAG,
            client_state={"progress": asdict(progress)},
            save_latest=False,
            exclude_frozen_parameters=settings.method == "lora",
        )
        # The name hangs on the step: one that a crash left half written is written over.
        ray.train.report(
            {"step": progress.next_step},
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"step-{progress.next_step:06d}",
        )


def _load_checkpoint(engine: Any, settings: TrainingSettings) -> Progress:
    """Put the engine where the last checkpoint left it; without one, at the beginning."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress()
    with checkpoint.as_directory() as folder:
        path, state = engine.load_checkpoint(
            folder, tag=TAG, load_module_strict=settings.method == "full"
        )
    if path is None:
        raise RuntimeError(f"the checkpoint {checkpoint.path} holds no state; delete that folder")
    return Progress(**state["progress"])
