"""The training loop that every Ray Train worker runs.

The driver uses only the two small classes that are sent, `TrainingJob` and `StepBoard`. A worker
runs `train_worker` and everything it calls; torch and deepspeed are imported there. The workers get
the `TrainingJob` and read token ids from storage. After each step the first worker sends a few
numbers to the `StepBoard`, an actor that the driver empties, and learns whether the driver wants to
stop. Checkpoints go to storage through `ray.train.report`, which also returns them after a crash.

Step metrics do not go through `ray.train.report`: its queue has room for one report, which the
controller takes every two seconds, so a step could not be shorter than that.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from cluster.errors import StorageError
from cluster.models.model import Model
from cluster.settings import content_of, fingerprint
from cluster.store.folder import Folder
from cluster.tracking import Tracked, tracking
from training.answers import micro_parts
from training.checks import RefusedError, agree, check_training, refuse_broken_weights
from training.data.batches import learning_rate
from training.data.examples import read_examples
from training.deepspeed_engine import (
    build_engine,
    prepare_process,
    set_learning_rate,
    shard_bytes,
    step_engine,
)
from training.device import device_of
from training.mfu import peak_flops, work_of
from training.objectives import OBJECTIVES
from training.objectives.objective import Parts
from training.packing import refuse_leak
from training.preemption import is_told_to_end
from training.reference import REFERENCE, with_references
from training.saving import rehearse_save, save_trained
from training.settings import PlacedTraining
from training.steps import StepData, WorkerBatch

T = TypeVar("T")

CHECKPOINTS = "checkpoints"
"""The folder of the checkpoints within a model's."""
TAG = "state"
"""The folder that DeepSpeed creates inside a checkpoint."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything that a worker needs to know."""

    model: Model
    examples: Folder
    output: Folder
    settings: PlacedTraining
    dataset: str | None = None
    """The dataset whose examples are used; None uses all."""
    board: Any = None
    """The handle of a `StepBoard` actor."""


@dataclass(frozen=True)
class Progress:
    """How far a training is; kept in every checkpoint, so that its sums survive a crash."""

    next_step: int = 0
    num_steps: int = 0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    first_loss: float = math.nan
    last_loss: float = math.nan
    seconds: float = 0.0
    """Time spent in steps."""
    data_seconds: float = 0.0
    """The part of this time spent waiting for the examples of a step."""
    checkpoint_seconds: float = 0.0
    """Time spent in checkpoints, outside steps."""

    @property
    def is_complete(self) -> bool:
        return self.next_step == self.num_steps


class StepBoard:
    """Holds step metrics and notes until the driver takes them, and its request to stop.

    A plain class; the driver turns it into an actor.
    """

    def __init__(self) -> None:
        self._steps: list[dict[str, float]] = []
        self._notes: list[str] = []
        self._is_stopped = False

    def put(self, metrics: dict[str, float]) -> bool:
        """Add a step; returns whether it should be the last."""
        self._steps.append(metrics)
        return self._is_stopped

    def stop(self) -> None:
        self._is_stopped = True

    def tell(self, note: str) -> None:
        """Add a sentence for the person who watches the driver."""
        self._notes.append(note)

    def take(self) -> tuple[list[dict[str, float]], list[str]]:
        """The steps and notes since the last call."""
        taken, self._steps, self._notes = (self._steps, self._notes), [], []
        return taken


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train, save and return the final `Progress` as a dict. `config["job"]` is a `TrainingJob`.

    A training that the driver stopped, or one of whose workers was asked to end, ends with a
    checkpoint and does not save the model. If the workers refuse their input, or the training
    diverges, the dict is `{"refused": "why"}`, and if a disk is full `{"unwritten": "which file"}`.
    These are results, because an exception would make Ray Train restart all workers.
    """
    job: TrainingJob = config["job"]
    prepare_process(job.settings)
    try:
        engine, data = load(job)
        progress = train(engine, data, _load_checkpoint(engine, job.settings), job)
        facts = _save(engine, progress, job) if progress.is_complete else {}
    except RefusedError as error:
        return {"refused": str(error)}
    except UnwrittenError as error:
        return {"unwritten": str(error)}
    return facts if "refused" in facts else {**asdict(progress), **facts}


class UnwrittenError(StorageError):
    """A `StorageError` that lasts, which every worker of the group has raised."""


def _save(engine: Any, progress: Progress, job: TrainingJob) -> dict[str, Any]:
    """Save the model. Every worker must call it. Returns what the first one reports about it.

    If the model cannot be saved, a checkpoint of the last step is kept, so nothing is trained
    again. A failure that would repeat is a refusal; a disk or a network may recover.
    """
    facts: dict[str, Any] = {}
    error: Exception | None = None
    try:
        facts = save_trained(engine, job.model.fetch(), job.output, job.settings)
    except Exception as caught:  # noqa: BLE001, all workers have to learn of it
        error = caught
    told = _of_all_workers(f"{type(error).__name__}: {error}" if error else None)
    if not told:
        return facts
    if not _checkpoint_is_due(progress, job.settings):
        _save_checkpoint(engine, progress, job)
    _refuse_unwritten(error)
    if any(text.startswith(_MAY_PASS) for text in told):
        raise error or OSError(told[0])
    return {
        "refused": f"the trained model could not be saved ({told[0]}); its last "
        "checkpoint is kept, and the same command tries to save it again"
    }


_MAY_PASS = (
    *("OSError", "StorageError", "ConnectionError", "TimeoutError"),
    *("BlockingIOError", "InterruptedError"),
)
"""Errors of a disk or a network, which may not occur in another attempt."""


def _of_all_workers(sentence: str | None) -> list[str]:
    """What any worker has to tell; every worker must ask."""
    return [each for each in _gathered(sentence) if each]


def _gathered(value: T) -> list[T]:
    """The value of each worker; every worker must ask."""
    import torch

    told: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(told, value)
    return told


def _refuse_unwritten(error: Exception | None) -> None:
    """Raises `UnwrittenError` on every worker when any of them cannot write, and will not be able
    to. Every worker must call it."""
    lasts = isinstance(error, StorageError) and error.lasts
    if told := _of_all_workers(str(error) if lasts else None):
        raise UnwrittenError(told[0])


def load(job: TrainingJob) -> tuple[Any, StepData]:
    """Load the engine and this worker's part of the data. Every worker must call it.

    Raises `RefusedError`, usually before the weights are loaded.
    """
    import ray.train

    context = ray.train.get_context()
    rank, num_ranks = context.get_world_rank(), context.get_world_size()
    table = read_examples(job.examples, job.settings, job.dataset)
    model = job.model.fetch()
    agree(lambda: check_training(model, table, job.settings, context.get_local_world_size()))
    engine = build_engine(model, job.settings, num_ranks)
    agree(lambda: refuse_broken_weights(engine.module, model))
    agree(lambda: rehearse_save(_base_of(engine.module), model))
    if job.settings.packing:
        vocab_size = engine.module.config.get_text_config().vocab_size
        agree(lambda: refuse_leak(engine, vocab_size, engine.device))
    if OBJECTIVES[job.settings.objective].other_answers is not None:
        key = fingerprint(job.model.identity, job.dataset, content_of(job.settings))
        references = job.output.child(REFERENCE)
        table = with_references(engine, table, job.settings, references, key)
    return engine, StepData(table, job.settings, rank, num_ranks)


def _base_of(module: Any) -> Any:
    """The model itself, without its adapters."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def train(engine: Any, data: StepData, start: Progress, job: TrainingJob) -> Progress:
    """Run the remaining steps, report each, and write checkpoints as configured.

    When the driver asks for it, a worker gets a SIGTERM, or a node is drained, the current step is
    finished and a checkpoint is written last.
    Raises `RefusedError` when the loss or the gradients are not finite any more.
    """
    import torch

    settings, rank = job.settings, torch.distributed.get_rank()
    progress = replace(start, num_steps=data.num_steps)
    last_checkpoint = time.monotonic()
    with _observers(engine, job, start, rank) as observe:
        for step in range(start.next_step, data.num_steps):
            began = time.perf_counter()
            share = data.share(step)
            waited = time.perf_counter() - began
            rate = learning_rate(
                step, data.num_steps, settings.learning_rate, settings.warmup_ratio
            )
            _seed_step(settings.seed, step, rank)
            facts = add_gradients(engine, share, settings)
            set_learning_rate(engine, rate)
            facts |= {"learning_rate": rate, "grad_norm": step_engine(engine)}
            _refuse_divergence(step, facts["loss"], facts["grad_norm"])
            seconds = time.perf_counter() - began
            progress = _advance(progress, share, facts["loss"], seconds, waited)
            is_stopped = observe(progress, share, facts, seconds)
            is_late = rank == 0 and _is_late(last_checkpoint, settings)
            is_last, is_late = _any_worker([is_told_to_end() or is_stopped, is_late], engine.device)
            if _checkpoint_is_due(progress, settings) or is_late or is_last:
                progress = _save_checkpoint(engine, progress, job)
                last_checkpoint = time.monotonic()
            if is_last:
                break
    return progress


def _any_worker(says_so: list[bool], device: Any) -> list[bool]:
    """For each question, whether any worker answers yes; every worker must call it."""
    import torch

    flags = torch.tensor(says_so, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(flags)
    return [bool(flag) for flag in flags.tolist()]


def _is_late(last_checkpoint: float, settings: PlacedTraining) -> bool:
    every = settings.checkpoint_every_s
    return every is not None and time.monotonic() - last_checkpoint >= every


Observe = Callable[[Progress, WorkerBatch, dict[str, float], float], bool]
"""A function that gets the numbers of a step and returns whether it should be the last."""


@contextmanager
def _observers(engine: Any, job: TrainingJob, start: Progress, rank: int) -> Iterator[Observe]:
    """The function that gets each step's numbers: on the first worker it passes them to the
    driver's board and the trackers, on the others to nothing."""
    import ray

    if rank > 0:
        yield lambda progress, share, facts, seconds: False
        return
    work, peak = work_of(engine.module), peak_flops(device_of(job.settings).card_name())
    tracked = Tracked(job.output, group="training/")
    tell = job.board.tell.remote
    with tracking(tracked, job.settings.tracking, start.next_step, tell) as log:

        def observe(
            progress: Progress, share: WorkerBatch, facts: dict[str, float], seconds: float
        ) -> bool:
            seen = dict(facts)
            seen["tokens_per_s"] = share.num_tokens / seconds
            if work and peak:
                flops = work.flops(share.num_tokens, share.num_answer_tokens)
                seen["mfu"] = flops / seconds / (peak * job.settings.num_workers)
            log(progress.next_step, seen)
            steps = {"step": progress.next_step, "num_steps": progress.num_steps}
            metrics = {**steps, **seen, "tokens": share.num_tokens}
            return bool(ray.get(job.board.put.remote(metrics)))

        yield observe


def add_gradients(engine: Any, share: WorkerBatch, settings: PlacedTraining) -> dict[str, float]:
    """Add the gradients of one step. Returns the loss and the other numbers of its global batch.

    DeepSpeed averages gradients over the workers, so each worker's part of the global batch's loss
    is multiplied by their number. The result is the gradient of that loss, however the batch is
    divided into workers and micro-batches.
    """
    import torch

    num_ranks = torch.distributed.get_world_size()
    prepared = OBJECTIVES[settings.objective].prepare(engine, share)
    sums: Parts = {}
    for index, micro in enumerate(share.micro_batches):
        engine.set_gradient_accumulation_boundary(index + 1 == len(share.micro_batches))
        parts = micro_parts(engine, micro, share, settings, prepared)
        engine.backward(parts["loss"] * num_ranks, scale_wrt_gas=False)
        sums = {name: sums.get(name, 0.0) + part.detach() for name, part in parts.items()}
    totals = torch.stack(list(sums.values()))
    torch.distributed.all_reduce(totals)
    return dict(zip(sums, totals.tolist(), strict=True))


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Make dropout depend on the step, so that a resumed run draws what an uninterrupted one
    does."""
    import torch

    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:4]))


def _refuse_divergence(step: int, loss: float, grad_norm: float) -> None:
    """Raise `RefusedError` for numbers that are not finite; they are the same on every worker."""
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise RefusedError(
            f"training diverged at step {step + 1}: loss {loss}, gradient norm {grad_norm}; "
            "lower training.learning_rate or raise training.warmup_ratio"
        )


def _advance(
    progress: Progress, share: WorkerBatch, loss: float, seconds: float, waited: float
) -> Progress:
    return replace(
        progress,
        next_step=progress.next_step + 1,
        num_tokens=progress.num_tokens + share.num_tokens,
        num_trained_tokens=progress.num_trained_tokens + share.num_answer_tokens,
        first_loss=loss if progress.next_step == 0 else progress.first_loss,
        last_loss=loss,
        seconds=progress.seconds + seconds,
        data_seconds=progress.data_seconds + waited,
    )


def _checkpoint_is_due(progress: Progress, settings: PlacedTraining) -> bool:
    every = settings.checkpoint_every_n_steps
    return every > 0 and progress.next_step % every == 0


def _save_checkpoint(engine: Any, progress: Progress, job: TrainingJob) -> Progress:
    """Let every worker write its shard; Ray Train copies the shards into one folder on storage.

    Returns the progress including the time that this took. Raises `UnwrittenError` on every worker.
    """
    began = time.monotonic()
    error: Exception | None = None
    with tempfile.TemporaryDirectory(prefix="regenesis-checkpoint-") as folder:
        needed = shard_bytes(engine, job.settings)
        _refuse_unwritten(_missing_room(folder, progress.next_step, _on_this_node(needed)))
        _write_checkpoint(engine, progress, job.settings, folder)
        try:
            _keep_checkpoint(folder, progress, job.output.child(CHECKPOINTS))
        except StorageError as caught:
            error = caught
    _refuse_unwritten(error)
    if error:
        raise error
    seconds = progress.checkpoint_seconds + time.monotonic() - began
    return replace(progress, checkpoint_seconds=seconds)


def _on_this_node(num_bytes: int) -> int:
    """The sum over the workers of this node. Every worker must call it."""
    here = socket.gethostname()
    return sum(each for host, each in _gathered((here, num_bytes)) if host == here)


def _missing_room(folder: str, step: int, needed: int) -> StorageError | None:
    """Why the shards of this node do not fit into its temporary folder; None if they do.

    It is asked before any worker writes, because DeepSpeed's other workers would wait for one that
    has failed."""
    free = shutil.disk_usage(folder).free
    if needed <= free:
        return None
    error = StorageError(
        f"the checkpoint of step {step} ({needed} bytes on this node) does not fit into "
        f"{Path(folder).parent}, where {free} bytes are free; make room there or let TMPDIR name a "
        "larger folder, and the same command continues from the last checkpoint, if there is one"
    )
    error.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return error


def _write_checkpoint(
    engine: Any, progress: Progress, settings: PlacedTraining, folder: str
) -> None:
    """Write this worker's shard. Raises `OSError` when it does not fit into the local folder."""
    try:
        engine.save_checkpoint(
            folder,
            tag=TAG,
            client_state={"progress": asdict(progress)},
            save_latest=False,
            exclude_frozen_parameters=settings.method == "lora",
        )
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error):
            raise
        # torch (2.13) raises this when the disk is full.
        raise OSError(f"the checkpoint does not fit into {folder}: {error}") from error


def _keep_checkpoint(folder: str, progress: Progress, checkpoints: Folder) -> None:
    """Copy this worker's shard to storage. Raises `StorageError`."""
    import ray.train

    # The name depends on the step, so a checkpoint that a crash cut off is overwritten.
    name = f"step-{progress.next_step:06d}"
    num_bytes = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    with checkpoints.writing(name, num_bytes):
        ray.train.report(
            {"step": progress.next_step},
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=name,
        )


def _fetched(checkpoint: Any, stack: ExitStack) -> str:
    """The checkpoint in a folder of this node, until the stack ends. Every worker must call it.

    Raises `UnwrittenError` on every worker when it does not fit on the disk of one of them."""
    folder = ""
    error: StorageError | None = None
    try:
        folder = stack.enter_context(checkpoint.as_directory())
    except OSError as caught:
        error = StorageError(
            f"the checkpoint {checkpoint.path} cannot be copied to {tempfile.gettempdir()}: "
            f"{caught.strerror or caught}; make room there or let TMPDIR name a larger folder, "
            "then repeat the command"
        )
        error.__cause__ = caught
    _refuse_unwritten(error)
    if error:
        raise error
    return folder


def _load_checkpoint(engine: Any, settings: PlacedTraining) -> Progress:
    """Restore the engine from the last checkpoint; without one, begin at the first step."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress()
    with ExitStack() as stack:
        folder = _fetched(checkpoint, stack)
        path, state = engine.load_checkpoint(
            folder, tag=TAG, load_module_strict=settings.method == "full"
        )
    if path is None:
        raise RuntimeError(f"the checkpoint {checkpoint.path} has no state; delete that folder")
    return Progress(**state["progress"])
