"""Fine-tune a model on a folder of examples, with Ray Train and DeepSpeed.

`fine_tune` runs on the driver: it counts the examples, starts the workers, waits, and passes each
step's numbers to a callback. The workers run `training.loop.train_worker`. They get a `TrainingJob`
(names, folders and settings) and return step numbers and one final dict. Weights, tokens and
checkpoints go directly from the workers to storage.

A call that was interrupted or killed at any moment, when repeated with the same arguments,
continues from the last checkpoint in `output/checkpoints`: Ray Train keeps a snapshot of its
checkpoints under the run's name, and a trainer with the same name and storage path reads it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any

from cluster.errors import InputError, StorageError
from cluster.models.model import Model
from cluster.remote import run_task
from cluster.settings import content_of, fingerprint
from cluster.store.folder import Folder
from cluster.terminal import say
from training.data.examples import Survey, survey
from training.device import device_of
from training.loop import CHECKPOINTS, StepBoard, TrainingJob, train_worker
from training.nodes import read_nodes
from training.objectives import OBJECTIVES
from training.placement import place, refuse_without_room
from training.preemption import catch_sigterm
from training.settings import PlacedTraining, TrainingSettings

PLAN = "plan.json"
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of checkpoints (2.60: ray/train/v2/_internal/constants.py)."""

START_ATTEMPTS = 10
"""How often Ray Train tries to place its workers, a minute each, so that machines can be added."""

FEW_CHANGES = 0.1
"""Share of changed weights below which the user is warned."""

OnStep = Callable[[dict[str, float]], None]


def fine_tune(
    model: Model,
    examples: Folder,
    output: Folder,
    settings: TrainingSettings,
    *,
    dataset: str | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Tune `model` and save it, with its tokenizer, in `output`.

    `examples` is the folder of the examples step, in which dpo and kto find their rows. With a
    `dataset`, only its examples are used. Ray must be initialised and have the resources of all
    workers free at once; a local folder must be visible on every worker's node. `on_step` is called
    in the caller's thread with step (1-based), num_steps, loss (of the global batch), the other
    numbers of `Objective.parts`, learning_rate, grad_norm (before clipping), tokens (prompts
    and targets), tokens_per_s and, on a known GPU, mfu. After a failure, the steps since the last
    checkpoint are reported again. An exception in `on_step` ends the call, and so does Ctrl-C after
    one more checkpoint; the workers end with the process or with `ray.shutdown`.

    Returns num_examples (for dpo: pairs), num_dropped_too_long, num_truncated, datasets (examples
    of each, if the config weights datasets), num_undesirable (for kto: wrong paths), num_workers,
    gpus_per_worker and dtype as chosen (`training.placement`), num_steps, num_tokens (prompts and
    targets processed), num_trained_tokens (targets only), first_loss, last_loss, seconds (in
    steps), data_seconds (the part of these spent waiting for examples) and checkpoint_seconds (in
    addition to these), all over every attempt, and what `training.saving.save_trained` reports
    about the saved weights. Writes no manifest.

    Raises `InputError` for too few examples, examples of another model, LoRA targets that match
    nothing, more workers or memory than there are, an offload folder that cannot be used, and
    checkpoints of another training in `output`, in each case before the weights are loaded; also
    for a training that diverges. Raises `StorageError` when a checkpoint or the model cannot be
    written, and `ray.train.TrainingFailedError` when workers have failed more than
    `settings.max_failures` times.
    """
    found = run_task(survey, examples, settings, dataset)
    checkpoints = output.child(CHECKPOINTS)
    nodes = read_nodes()
    placement = place(settings, nodes, began=_began(checkpoints), may_wait=True)
    placed = placement.settings
    _refuse_other_checkpoints(checkpoints, _plan(model, found, placed))
    if _is_our_own_ray():
        refuse_without_room(placed, nodes)
    say(f"training: {placement.sentence}", sys.stderr)
    job = TrainingJob(model, examples, output, placed, dataset)
    progress = _run(job, on_step or (lambda metrics: None))
    del progress["next_step"]
    _warn_of_few_changes(progress["weights_changed"], placed)
    has_labels = OBJECTIVES[settings.objective].label is not None
    return {
        "num_examples": found.num_examples,
        "num_dropped_too_long": found.num_dropped_too_long,
        "num_truncated": found.num_truncated,
        **({"datasets": found.counts} if found.counts else {}),
        **({"num_undesirable": found.num_undesirable} if has_labels else {}),
        **{name: getattr(placed, name) for name in ("num_workers", "gpus_per_worker", "dtype")},
        **progress,
    }


def _warn_of_few_changes(share: float, settings: PlacedTraining) -> None:
    """Warn when most weights are unchanged: in bfloat16, small steps are lost by rounding."""
    if share < FEW_CHANGES:
        rounded = " or train in float32" if settings.dtype == "bfloat16" else ""
        say(
            f"training: only {share:.1%} of the weights have changed; raise "
            f"training.learning_rate or num_epochs{rounded} if the model should learn more",
            sys.stderr,
        )


def _plan(model: Model, found: Survey, settings: PlacedTraining) -> dict[str, Any]:
    """The facts that must be the same for a checkpoint to be usable."""
    return {
        "model": model.identity,
        "examples": found.digest,
        "settings": fingerprint(content_of(settings)),
        # A checkpoint has one shard per worker, split as the ZeRO stage requires.
        "num_workers": settings.num_workers,
        "zero_stage": settings.zero_stage,
        "dtype": settings.dtype,
    }


def _began(checkpoints: Folder) -> dict[str, Any]:
    """The facts that the checkpoints were made with; empty if none was finished."""
    if checkpoints.read_json(SNAPSHOT) is None:
        return {}
    return dict(checkpoints.read_json(PLAN) or {})


def _refuse_other_checkpoints(checkpoints: Folder, plan: dict[str, Any]) -> None:
    """Record what the checkpoints belong to; raises `InputError` if they belong to another plan."""
    if checkpoints.read_json(SNAPSHOT) is None:
        # None was finished, or a crash cut off Ray's list, which Ray would refuse: begin again.
        checkpoints.delete_files([SNAPSHOT])
    changed = [
        f"{key} was {value!r}, now {plan[key]!r}"
        for key, value in _began(checkpoints).items()
        if key in plan and value != plan[key]
    ]
    if changed:
        raise InputError(
            f"the checkpoints in {checkpoints.uri} belong to another training: "
            f"{'; '.join(changed)}. Restore the old value, or delete that folder to begin again"
        )
    checkpoints.write_json(PLAN, plan)


def _is_our_own_ray() -> bool:
    """Whether this process started Ray, so that the cluster cannot grow.

    Another cluster may get more nodes: Ray Train waits for them there, `START_ATTEMPTS` minutes.
    """
    import ray

    return bool(ray._private.worker._global_node.head)


def _run(job: TrainingJob, on_step: OnStep) -> dict[str, Any]:
    """Train on the workers and pass each step to `on_step`. Returns the final progress.

    Workers that were asked to end before the last step have written a checkpoint, from which new
    workers continue, as often as this happens. Each time at least one step is done, so it ends.
    """
    progress = _train_once(job, on_step)
    while progress["next_step"] < progress["num_steps"]:
        done = f"{progress['next_step']} of {progress['num_steps']} steps"
        say(f"training: a worker had to end after {done}; continuing", sys.stderr)
        progress = _train_once(job, on_step)
    return progress


def _train_once(job: TrainingJob, on_step: OnStep) -> dict[str, Any]:
    """Train until the end, or until a worker is asked to end. Returns the progress."""
    import ray

    board = ray.remote(num_cpus=0)(StepBoard).remote()
    trainer = _trainer(replace(job, board=board))
    future = _in_thread(trainer.fit)
    try:
        _follow(future, board, on_step)
        result = dict(future.result().return_value)
    except ray.train.TrainingFailedError as error:
        raise _user_error(error) or error from None
    except OSError as error:  # of Ray Train itself, on the driver
        raise _unwritten(error) from error
    finally:
        ray.kill(board)
    if "refused" in result:
        raise InputError(result["refused"])
    if "unwritten" in result:
        raise StorageError(result["unwritten"])
    return result


def _follow(future: Future[Any], board: Any, on_step: OnStep) -> None:
    """Pass steps to `on_step` until the training has ended.

    Ctrl-C after the first step lets the workers write a checkpoint before it ends the call; a
    second Ctrl-C does not wait for that.
    """
    import ray

    has_begun = finished = False
    try:
        while not finished:
            finished = bool(wait([future], timeout=0.5).done)
            steps, notes = ray.get(board.take.remote())
            for note in notes:
                say(note, sys.stderr)
            for metrics in steps:
                has_begun = True
                on_step(metrics)
    except KeyboardInterrupt:
        if has_begun:
            say("training: writing a checkpoint, then stopping", sys.stderr)
            ray.get(board.stop.remote())
            wait([future])
        raise


def _in_thread(call: Callable[[], Any]) -> Future[Any]:
    """Run a call in a daemon thread, which never keeps the process from ending.

    Outside the main thread Ray Train ignores Ctrl-C; its own handler would exit with 0.
    """
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001, handed to the caller's thread
            future.set_exception(error)

    threading.Thread(target=run, name="ray-train", daemon=True).start()
    return future


def _trainer(job: TrainingJob) -> Any:
    import ray.train
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import LoggingConfig

    settings, output = job.settings, job.output
    device, takes_gpus = device_of(settings), settings.gpus_per_worker > 0
    return quiet_trainer_class()(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend=device.backend),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=takes_gpus,
            resources_per_worker={
                "CPU": settings.cpus_per_worker,
                **({"GPU": settings.gpus_per_worker} if takes_gpus else {}),
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
            callbacks=[_sigterm_callback()],
            worker_runtime_env={"env_vars": dict(device.environment)},
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def quiet_trainer_class() -> Any:
    """Ray's `TorchTrainer` without its placement group cleaner.

    The cleaner is a detached actor that asks the dashboard once a second whether the controller is
    alive. Without a dashboard it warns once a second, and it outlives a killed driver for ever.
    What it would clean up ends with the driver's job anyway.
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


def _sigterm_callback() -> Any:
    """Let each worker record a SIGTERM in its main thread; Python allows no other thread to do so.

    Ray Train runs worker callbacks in the main thread, and the training in another thread.
    """
    from ray.train.v2._internal.execution.callback import WorkerCallback

    class SigtermCallback(WorkerCallback):  # type: ignore[misc]
        def after_init_train_context(self) -> None:
            catch_sigterm()

    return SigtermCallback()


def _user_error(error: Exception) -> InputError | StorageError | None:
    """The reason why the training ended, as a sentence: an `InputError` of a worker, or a disk or
    network that failed on every attempt, of a worker or of Ray Train's list of checkpoints."""
    failures = [*getattr(error, "worker_failures", {}).values()]
    for failure in (*failures, getattr(error, "controller_failure", None)):
        cause = getattr(failure, "_base_exc", failure)  # Ray Train wraps it, with its traceback
        if isinstance(cause, InputError):
            return cause
        if isinstance(cause, OSError):
            return _unwritten(cause)
    return None


def _unwritten(cause: OSError) -> StorageError:
    return StorageError(
        f"training stopped: a file could not be read or written ({cause}); fix this, and the same "
        "command continues from the last checkpoint, if there is one"
    )
