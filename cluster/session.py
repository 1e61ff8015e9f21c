"""The only `ray.init` of a run, and how a run is asked to stop.

Runs on the driver only. On a laptop it starts a local Ray without a dashboard, so that no job API
is open. On a cluster, or under `ray job submit`, it joins the Ray that is running.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from cluster.errors import InputError
from cluster.reach import check_cluster
from cluster.settings import OPERATIONAL, Settings
from cluster.terminal import say

_REPOSITORY = Path(__file__).resolve().parent.parent


class ClusterSettings(Settings):
    """The Ray cluster that a run works on."""

    address: Annotated[str | None, OPERATIONAL] = None
    """The address of a running cluster (`auto` or host:port); null starts a local one unless
    RAY_ADDRESS or a job names one."""
    num_cpus: Annotated[Annotated[int, Field(gt=0)] | None, OPERATIONAL] = None
    """Logical CPUs of a local cluster; null uses all that the machine has."""
    object_store_gib: Annotated[float, OPERATIONAL, Field(gt=0)] = 1.0
    """Size of the object store of a local cluster, which only carries chunks and receipts."""
    progress_every_s: Annotated[float, OPERATIONAL, Field(gt=0)] = 5.0
    """Seconds between two progress lines when the output is not a terminal."""
    gpu_wait_s: Annotated[Annotated[float, Field(ge=0)] | None, OPERATIONAL] = None
    """Seconds to wait for GPUs that the cluster does not have before the run is refused; null is
    900 on a cluster that a launcher or KubeRay started, 30 on one that was started by hand, and 0
    on a local one. A run waits without limit for GPUs that exist but are in use."""
    notify: Annotated[str | None, OPERATIONAL] = None
    """A command line or an `http(s)://` URL that gets a JSON message when the run has finished, has
    failed, was stopped or would exceed its budget (`cluster.notify`). The URL may be a secret: the
    run's folder keeps only its host."""


class StorageSettings(Settings):
    """Where runs are kept."""

    root: Annotated[str, OPERATIONAL] = "runs"
    """A folder or URI (`s3://`, `gs://`) that every node can reach; a run is a folder in it."""
    cache: Annotated[str, OPERATIONAL] = "~/.cache/regenesis"
    """A local folder on each node for converted models and for copies of models that a run made."""
    cache_limit_gib: Annotated[Annotated[float, Field(gt=0)] | None, OPERATIONAL] = 200.0
    """Most GiB of models in the cache. Before a copy would exceed it, models that no process uses
    are removed, the least recently used ones first; null keeps all."""
    outage_s: Annotated[float, OPERATIONAL, Field(ge=0)] = 300.0
    """Seconds for which a `root` on a network may not answer before the command ends."""


class StopRequest:
    """Set by the first Ctrl-C or SIGTERM; a second one ends the process at once."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._interrupts = False

    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        self._event.set()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal interrupt at once within the block, whose work keeps its own checkpoints."""
        self._interrupts = True
        try:
            yield
        finally:
            self._interrupts = False

    def install(self) -> None:
        """Handle both signals. Call this after `ray.init`, which installs its own handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: Any) -> None:
        if self._event.is_set() or self._interrupts:
            raise KeyboardInterrupt
        self._event.set()
        name = signal.Signals(number).name
        say(f"{name}: saving finished work, then stopping", sys.stderr)


def in_submitted_job() -> bool:
    """Whether this process is the entry point of a `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def check_storage_root(root: str) -> None:
    """Refuse a relative root in a submitted job. Raises `InputError`.

    A job runs in a copy of its working directory, which is deleted with the job.
    """
    if in_submitted_job() and "://" not in root and not Path(root).expanduser().is_absolute():
        raise InputError(
            f"storage.root {root!r} is relative, and a submitted job's working directory is "
            "removed with the job; give an absolute folder that all nodes share, or a URI"
        )


@contextmanager
def ray_session(settings: ClusterSettings) -> Iterator[StopRequest]:
    """Join or start Ray for the duration of the block; yields the request to stop.

    A connection that the process already has, as in a notebook, is used and stays open. Raises
    `InputError` for a cluster that cannot be joined.
    """
    stop = StopRequest()
    # This comes before `init`, which prints a long message when the local cluster has a token.
    logging.getLogger("ray").setLevel(logging.ERROR)
    with _connection(settings):
        configure_ray_data()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        stop.install()
        try:
            with _native_chatter_to(Path(log_folder()) / "regenesis-driver.err"):
                yield stop
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextmanager
def _connection(settings: ClusterSettings) -> Iterator[None]:
    """Connect this process to Ray for the duration of the block, unless it is connected."""
    import ray

    if ray.is_initialized():
        connected = ray.get_runtime_context().gcs_address
        if settings.address not in (None, "auto", connected):
            raise InputError(
                f"cluster.address {settings.address}: this process is connected to the Ray at "
                f"{connected}; call ray.shutdown() first, or leave the address out"
            )
        yield
        return
    arguments = _init_arguments(settings)
    if arguments["address"] != "local":
        check_cluster(arguments["address"])
    ray.init(**arguments)
    try:
        close_token()
        yield
    finally:
        ray.shutdown()


def close_token() -> None:
    """Remove other users' permissions from the token file, which Ray writes as world-readable."""
    path = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):  # it does not exist, or belongs to another user
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


def starts_cluster(settings: ClusterSettings) -> bool:
    """Whether the run starts a local Ray and does not join a running one."""
    return not (settings.address or os.environ.get("RAY_ADDRESS") or in_submitted_job())


def _init_arguments(settings: ClusterSettings) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "log_to_driver": False,
        "configure_logging": True,
        "logging_level": logging.ERROR,
    }
    if not starts_cluster(settings):
        return arguments | {"address": settings.address or "auto"}
    return arguments | {
        "address": "local",
        "num_cpus": settings.num_cpus,
        "include_dashboard": False,
        "object_store_memory": int(settings.object_store_gib * 2**30),
        "runtime_env": {"env_vars": {"PYTHONPATH": _python_path()}},
    }


def _python_path() -> str:
    """Let workers import our folders from the repository, wherever the driver was started."""
    inherited = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join(filter(None, [str(_REPOSITORY), inherited]))


def configure_ray_data() -> None:
    """Keep Ray Data's progress and log lines off the terminal, and let it wait.

    Its log files contain the lines. By default it ends an execution that yields nothing for 30
    minutes, but an engine may take longer to start or to answer its first questions. Call this in
    each process that runs a dataset.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1
    for name in ("ray.data", "ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Ray Data has no other option yet that limits restarts and places its actors.
    warnings.filterwarnings("ignore", message=".*ray_remote_args_fn", append=False)


@contextmanager
def _native_chatter_to(path: Path) -> Iterator[None]:
    """Redirect what Ray's C++ core and loggers write to the driver's stderr to a log file.

    Python's `sys.stderr` keeps the terminal, so progress and tracebacks remain visible.
    """
    terminal, python_stderr = os.dup(2), sys.stderr
    with path.open("ab") as log, os.fdopen(terminal, "w", buffering=1) as stream:
        os.dup2(log.fileno(), 2)
        sys.stderr = stream
        try:
            yield
        finally:
            sys.stderr = python_stderr
            os.dup2(terminal, 2)


def log_folder() -> str:
    """The folder on the head node with the logs of this session's Ray, vLLM and workers."""
    import ray

    return str(Path(ray._private.worker._global_node.get_session_dir_path()) / "logs")
