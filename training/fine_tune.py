"""Fine-tune a model on a folder of examples, with Ray Train and DeepSpeed.

On the driver: `fine_tune`, which counts the examples, starts the workers, waits, and hands each
step's numbers to a callback. On the workers: `training.loop.train_worker`. In between: a `Job`
(names, folders and settings) goes out; step numbers and one final dict come back. Weights, tokens
and checkpoints go from the workers to storage directly.

Killed at any moment and called again with the same arguments, it goes on from the last checkpoint
in `output/checkpoints`: Ray Train keeps a snapshot of its checkpoints under the run's name, and a
trainer with the same name and storage path reads it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from cluster.errors import InputError
from cluster.models import Model
from cluster.settings import content_of, fingerprint
from cluster.storage import Folder
from training.examples import Survey, survey
from training.loop import Job, StepBoard, train_worker
from training.settings import TrainingSettings

CHECKPOINTS = "checkpoints"
PLAN = "plan.json"
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of checkpoints (2.60: ray/train/v2/_internal/constants.py)."""

START_ATTEMPTS = 10
"""How often Ray Train tries to place its workers, a minute each: time to add machines."""

OnStep = Callable[[dict[str, float]], None]


def fine_tune(
    model: Model,
    examples: Folder,
    output: Folder,
    settings: TrainingSettings,
    *,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Tune `model` and save it, with its tokenizer, in `output`.

    Needs an initialised Ray, with the resources of all workers free at once; a local folder must
    be there on every worker's node. `on_step` is called in the caller's thread with step
    (1-based), num_steps, loss (mean over the global batch's answer tokens, nats), learning_rate,
    grad_norm (before clipping), tokens (prompts and targets) and tokens_per_s; after a failure,
    steps since the last checkpoint come again. An exception it raises, as Ctrl-C, ends the call;
    the workers end with the process or with `ray.shutdown`.

    Returns num_examples, num_dropped_too_long, num_steps, num_tokens (prompts and targets seen),
    num_trained_tokens (targets only), first_loss, last_loss and seconds (in steps), all of them
    over every attempt, and the fingerprints of the saved weights (`training.saving.save_trained`),
    for the manifest that the caller writes.

    Raises `InputError` when there is nothing to train on, when the examples are not the model's,
    and when checkpoints of another training stand in `output`; `ray.train.TrainingFailedError`
    when workers failed more than `settings.max_failures` times.
    """
    found = survey(examples, settings.max_length)
    _refuse_other_checkpoints(output.child(CHECKPOINTS), _plan(model, found, settings))
    progress = _run(model, examples, output, settings, on_step or (lambda metrics: None))
    del progress["next_step"]
    return {
        "num_examples": found.num_examples,
        "num_dropped_too_long": found.num_dropped_too_long,
        **progress,
    }


def _plan(model: Model, found: Survey, settings: TrainingSettings) -> dict[str, Any]:
    """What must be the same for a checkpoint to be of use."""
    return {
        "model": model.identity,
        "examples": found.digest,
        "settings": fingerprint(content_of(settings)),
        # A checkpoint holds one shard for each worker, cut as the ZeRO stage says.
        "num_workers": settings.num_workers,
        "zero_stage": settings.zero_stage,
    }


def _refuse_other_checkpoints(checkpoints: Folder, plan: dict[str, Any]) -> None:
    """Write down what the checkpoints are of; raises `InputError` when they are of another."""
    earlier = checkpoints.read_json(PLAN)
    if checkpoints.read_json(SNAPSHOT) is None:
        # None was finished, or a crash tore Ray's list, which Ray would refuse: begin again.
        if SNAPSHOT in checkpoints.file_names():
            checkpoints.filesystem.delete_file(f"{checkpoints.path}/{SNAPSHOT}")
    elif earlier is not None and earlier != plan:
        changed = [
            f"{key} was {earlier.get(key)!r}, now {plan[key]!r}"
            for key in plan
            if earlier.get(key) != plan[key]
        ]
        raise InputError(
            f"the checkpoints in {checkpoints.uri} are of another training: "
            f"{'; '.join(changed)}. Put it back, or delete that folder to begin again"
        )
    checkpoints.write_json(PLAN, plan)


def _run(
    model: Model, examples: Folder, output: Folder, settings: TrainingSettings, on_step: OnStep
) -> dict[str, Any]:
    """Train on the workers and give each step to `on_step`. Returns the final progress."""
    import ray

    board = ray.remote(num_cpus=0)(StepBoard).remote()
    trainer = _trainer(Job(model, examples, output, settings, board), output, settings)
    future = _in_thread(trainer.fit)
    try:
        finished = False
        while not finished:
            finished = bool(wait([future], timeout=0.5).done)
            for metrics in ray.get(board.take.remote()):
                on_step(metrics)
        return dict(future.result().return_value)
    except ray.train.TrainingFailedError as error:
        raise _user_error(error) or error from None
    finally:
        ray.kill(board)


def _in_thread(call: Callable[[], Any]) -> Future[Any]:
    """Run a call in a daemon thread, which never keeps the process from ending.

    Out of the main thread Ray Train leaves Ctrl-C alone; its own handler would exit with 0.
    """
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001, handed to the caller's thread
            future.set_exception(error)

    threading.Thread(target=run, name="ray-train", daemon=True).start()
    return future


def _trainer(job: Job, output: Folder, settings: TrainingSettings) -> Any:
    import ray.train
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import LoggingConfig

    on_gpu = settings.gpus_per_worker > 0
    return _quiet_trainer_class()(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=on_gpu,
            resources_per_worker={
                "CPU": settings.cpus_per_worker,
                **({"GPU": settings.gpus_per_worker} if on_gpu else {}),
            },
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=output.path,
            storage_filesystem=output.filesystem,
            failure_config=ray.train.FailureConfig(
                max_failures=settings.max_failures, controller_failure_limit=START_ATTEMPTS
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=settings.keep_checkpoints),
            worker_runtime_env={"env_vars": {} if on_gpu else {"DS_ACCELERATOR": "cpu"}},
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _quiet_trainer_class() -> Any:
    """Ray's `TorchTrainer` without its placement group cleaner.

    The cleaner is a detached actor that asks the dashboard once a second whether the controller
    lives; without a dashboard it warns once a second and outlives a killed driver for ever. What
    it would clean up ends with the driver's job anyway.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )

    class QuietTrainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]

    return QuietTrainer


def _user_error(error: Exception) -> InputError | None:
    """The `InputError` that a worker raised, if that is what ended the training."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "_base_exc", failure)  # Ray Train wraps it, with its traceback
        if isinstance(cause, InputError):
            return cause
    return None
