"""Send the numbers of a training to TensorBoard files, Weights & Biases and MLflow.

Runs on the first training worker only; a tracker's package is imported there and nowhere else.
After each step a tracker gets, for example::

    log(37, {"loss": 0.412, "learning_rate": 9.1e-7, "grad_norm": 1.73, "tokens_per_s": 5210.0})

A training that continues after a crash continues under the same id, which depends only on the
model's folder; steps that are repeated replace their earlier numbers.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from cluster.settings import fingerprint
from cluster.store.folder import Folder
from training.settings import TrackingSettings

Log = Callable[[int, Mapping[str, float]], None]

TENSORBOARD = "tensorboard"
WANDB = "wandb"
RUN_TAG = "regenesis.id"
"""The tag by which an MLflow run is found again."""


def refuse_missing_trackers(settings: TrackingSettings) -> None:
    """Raise `InputError` when the package of a tracker is not installed."""
    wanted = {
        "wandb": settings.wandb_project is not None,
        "mlflow": settings.mlflow_experiment is not None,
    }
    for package, is_wanted in wanted.items():
        if is_wanted and importlib.util.find_spec(package) is None:
            raise InputError(
                f"training.tracking names {package}, which is not installed on the training "
                "workers; run make setup EXTRAS=trackers there, or remove it"
            )


@contextmanager
def tracking(output: Folder, settings: TrackingSettings, num_steps_done: int) -> Iterator[Log]:
    """Open the trackers of a training and yield the function that sends them a step's numbers."""
    with ExitStack() as stack:
        logs: list[Log] = []
        if settings.tensorboard:
            folder = stack.enter_context(_local_folder(output.child(TENSORBOARD)))
            logs.append(stack.enter_context(_tensorboard(folder, num_steps_done)))
        if settings.wandb_project is not None:
            folder = stack.enter_context(_local_folder(output.child(WANDB)))
            logs.append(stack.enter_context(_wandb(folder, output, settings)))
        if settings.mlflow_experiment is not None:
            logs.append(stack.enter_context(_mlflow(output, settings)))

        def log(step: int, metrics: Mapping[str, float]) -> None:
            for one in logs:
                one(step, metrics)

        yield log


@contextmanager
def _local_folder(target: Folder) -> Iterator[Path]:
    """A local folder whose files end up in `target`: itself if it is local, otherwise a copy.

    An object store cannot append to a file, so the files appear there when the training ends.
    """
    if target.is_local:
        Path(target.path).mkdir(parents=True, exist_ok=True)
        yield Path(target.path)
        return
    with tempfile.TemporaryDirectory(prefix="regenesis-tracking-") as name:
        try:
            yield Path(name)
        finally:
            target.copy_from_local(Path(name))


def _run_id(output: Folder) -> str:
    """An id that depends only on the model folder, whichever process trains it."""
    return fingerprint(output.uri)


@contextmanager
def _tensorboard(folder: Path, num_steps_done: int) -> Iterator[Log]:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar

    # tensorboardX's queue and thread are not used, so that a killed worker loses nothing it logged.
    writer = EventsWriter(str(folder / "events"), f".{num_steps_done:06d}")

    def write(step: int, **content: Any) -> None:
        writer.write_event(Event(wall_time=time.time(), step=step, **content))
        writer.flush()

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            write(step, summary=scalar(f"training/{name}", value))

    # A reader discards what an earlier process wrote from this step on.
    write(num_steps_done + 1, session_log=SessionLog(status=SessionLog.START))
    try:
        yield log
    finally:
        writer.close()


@contextmanager
def _wandb(folder: Path, output: Folder, settings: TrackingSettings) -> Iterator[Log]:
    import wandb

    run: Any = wandb.init(
        project=settings.wandb_project,
        id=_run_id(output),
        name=output.name,
        resume="allow",
        mode=settings.wandb_mode,
        dir=str(folder),
        settings=wandb.Settings(console="off"),
    )
    try:
        yield lambda step, metrics: run.log(dict(metrics), step=step)
    finally:
        run.finish()


@contextmanager
def _mlflow(output: Folder, settings: TrackingSettings) -> Iterator[Log]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=settings.mlflow_uri)
    run_id = _mlflow_run(client, output, str(settings.mlflow_experiment))

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            client.log_metric(run_id, name, value, step=step)

    yield log
    # A training that raised an error leaves its run open: the next process continues it.
    client.set_terminated(run_id)


def _mlflow_run(client: Any, output: Folder, experiment_name: str) -> str:
    """The id of this training's run: that of an earlier process, or a new one."""
    experiment = client.get_experiment_by_name(experiment_name)
    experiment_id = (
        experiment.experiment_id if experiment else client.create_experiment(experiment_name)
    )
    found = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{_run_id(output)}'")
    if found:
        return str(found[0].info.run_id)
    run = client.create_run(experiment_id, tags={RUN_TAG: _run_id(output)}, run_name=output.name)
    return str(run.info.run_id)
