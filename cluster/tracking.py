"""Send numbers to TensorBoard files, Weights & Biases and MLflow.

One process opens the trackers of one tracked run, which is a training or a whole run of ReGenesis,
and imports their packages only then. A tracker gets, for example::

    log(37, {"loss": 0.412, "learning_rate": 9.1e-7, "grad_norm": 1.73, "tokens_per_s": 5210.0})

What continues after a crash continues under the same id, which depends only on the folder; in
TensorBoard, steps that are repeated replace their earlier numbers. A tracker that fails is told
once and gets nothing more, because no run of days should end with its server.
"""

from __future__ import annotations

import importlib.util
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

from cluster.errors import InputError
from cluster.secrets import hide
from cluster.settings import OPERATIONAL, Settings, fingerprint
from cluster.store.folder import Folder

Log = Callable[[int, Mapping[str, float]], None]
"""Sends the numbers of one step, by name."""

TENSORBOARD = "tensorboard"
WANDB = "wandb"
RUN_TAG = "regenesis.id"
"""The tag by which an MLflow run is found again."""


class TrackingSettings(Settings):
    """Where the numbers of a run and of its trainings are sent, in addition to the terminal."""

    tensorboard: Annotated[bool, OPERATIONAL] = True
    """Write TensorBoard files to `tensorboard/` in the folder of the run and in each model's."""

    wandb_project: Annotated[str | None, OPERATIONAL] = None
    """Project of the Weights & Biases runs; null turns it off. Needs the extra `trackers`."""

    wandb_mode: Annotated[Literal["online", "offline"], OPERATIONAL] = "online"
    """`offline` writes to `wandb/` beside `tensorboard/`, for `wandb sync`."""

    mlflow_experiment: Annotated[str | None, OPERATIONAL] = None
    """Experiment of the MLflow runs; null turns it off. Needs the extra `trackers`."""

    mlflow_uri: Annotated[str | None, OPERATIONAL] = None
    """Tracking server or store of MLflow, such as `http://host:5000` or `sqlite:////mnt/runs.db`;
    null is MLflow's own choice."""

    @property
    def is_on(self) -> bool:
        """Whether any tracker is asked for."""
        return self.tensorboard or bool(self.wandb_project or self.mlflow_experiment)


@dataclass(frozen=True)
class Tracked:
    """What the trackers show as one run."""

    folder: Folder
    """Its address decides the id, and the files of the trackers are below it."""
    group: str = ""
    """What TensorBoard puts before the names of its numbers, such as `training/`."""

    @property
    def run_id(self) -> str:
        """An id that depends only on the folder, whichever process works on it."""
        return fingerprint(self.folder.uri)


def refuse_missing_trackers(settings: TrackingSettings) -> None:
    """Raise `InputError` when the package of a tracker is not installed here, where a training
    works."""
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
def tracking(
    tracked: Tracked,
    settings: TrackingSettings,
    num_steps_done: int,
    tell: Callable[[str], object],
) -> Iterator[Log]:
    """Open the trackers and yield the function that sends them the numbers of a step.

    The steps that follow are greater than `num_steps_done`. `tell` gets one sentence for a tracker
    that fails; no error of a tracker is raised.
    """
    opened: dict[str, AbstractContextManager[Log]] = {}
    if settings.tensorboard:
        opened["TensorBoard"] = _tensorboard(tracked, num_steps_done)
    if settings.wandb_project is not None:
        opened["Weights & Biases"] = _wandb(tracked, settings)
    if settings.mlflow_experiment is not None:
        opened["MLflow"] = _mlflow(tracked, settings)
    with ExitStack() as stack:
        guarded = [_Guarded(name, tracked, each, tell) for name, each in opened.items()]
        logs = [stack.enter_context(each) for each in guarded]

        def log(step: int, metrics: Mapping[str, float]) -> None:
            for one in logs:
                one(step, metrics)

        yield log


class _Guarded:
    """One tracker, which is given up after its first error."""

    def __init__(
        self,
        name: str,
        tracked: Tracked,
        opened: AbstractContextManager[Log],
        tell: Callable[[str], object],
    ) -> None:
        self._name, self._of = name, tracked.folder.name
        self._opened, self._tell = opened, tell
        self._log: Log | None = None
        self._is_open = self._has_failed = False

    def __enter__(self) -> Log:
        self._try(self._open)
        return self._send

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_open:
            self._try(lambda: self._opened.__exit__(kind, error, trace))

    def _open(self) -> None:
        self._log = self._opened.__enter__()
        self._is_open = True

    def _send(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._log is not None:
            log = self._log
            self._try(lambda: log(step, metrics))

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001, their packages raise errors of any kind
            self._log = None
            if not self._has_failed:
                self._has_failed = True
                kind, reason = type(error).__name__, hide(str(error)).partition("\n")[0]
                self._tell(
                    f"note: {self._name} failed ({kind}: {reason}); it gets no further numbers of "
                    f"{self._of}, and the work goes on"
                )


@contextmanager
def _local_folder(target: Folder) -> Iterator[Path]:
    """A local folder whose files end up in `target`: itself if it is local, otherwise a copy.

    An object store cannot append to a file, so the files appear there at the end.
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


@contextmanager
def _tensorboard(tracked: Tracked, num_steps_done: int) -> Iterator[Log]:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar

    with _local_folder(tracked.folder.child(TENSORBOARD)) as folder:
        # tensorboardX's queue and thread are not used: a killed process loses nothing it logged.
        # Another process may begin in the same second, and the name has no smaller unit of time.
        name = f".{num_steps_done:09d}.{secrets.token_hex(4)}"
        writer = EventsWriter(str(folder / "events"), name)

        def write(step: int, **content: Any) -> None:
            writer.write_event(Event(wall_time=time.time(), step=step, **content))
            writer.flush()

        def log(step: int, metrics: Mapping[str, float]) -> None:
            for name, value in metrics.items():
                write(step, summary=scalar(f"{tracked.group}{name}", value))

        # A reader discards what an earlier process wrote from this step on.
        write(num_steps_done + 1, session_log=SessionLog(status=SessionLog.START))
        try:
            yield log
        finally:
            writer.close()


@contextmanager
def _wandb(tracked: Tracked, settings: TrackingSettings) -> Iterator[Log]:
    import wandb

    with _local_folder(tracked.folder.child(WANDB)) as folder:
        run: Any = wandb.init(
            project=settings.wandb_project,
            id=tracked.run_id,
            name=tracked.folder.name,
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
def _mlflow(tracked: Tracked, settings: TrackingSettings) -> Iterator[Log]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=settings.mlflow_uri)
    run_id = _mlflow_run(client, tracked, str(settings.mlflow_experiment))

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            client.log_metric(run_id, name, value, step=step)

    yield log
    # What raised an error leaves its run open: the next process continues it.
    client.set_terminated(run_id)


def _mlflow_run(client: Any, tracked: Tracked, experiment_name: str) -> str:
    """The id of the MLflow run: that of an earlier process, or a new one."""
    experiment = client.get_experiment_by_name(experiment_name)
    experiment_id = (
        experiment.experiment_id if experiment else client.create_experiment(experiment_name)
    )
    found = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{tracked.run_id}'")
    if found:
        return str(found[0].info.run_id)
    run = client.create_run(
        experiment_id, tags={RUN_TAG: tracked.run_id}, run_name=tracked.folder.name
    )
    return str(run.info.run_id)
