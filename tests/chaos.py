"""Processes killed at seeded moments: a Ray cluster of several raylets on this machine, the driver
as a user starts it, and a monkey that kills what it is told to, when it is told to.

Nothing outside the cluster is ever touched: every process of it is in the session of a `ray start`
of ours, below a process that is, or has the cluster's token in its environment.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tests.conftest import REPOSITORY, driver_command, ledger_rows, write_model

RAY = str(Path(sys.executable).with_name("ray"))
START_S = 180
GONE_S = 60
ENDS_S = 900
"""How long one command of a trial may take on a busy machine."""

Kind = Literal["engine", "actor", "worker", "board", "raylet", "driver"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_NOT_WORKERS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
_FOR_ALL_DRIVERS = ("ray::IDLE", "ray::_", "ray::ActorLocationTracker")
"""Ray Data has actors that serve one driver after the other."""
_FAST_DEATHS = (
    '{"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, '
    '"health_check_failure_threshold": %d, "enable_worker_prestart": false, '
    '"prestart_worker_first_driver": false}'
)


# --- the cluster -------------------------------------------------------------------------------


class RayNodes:
    """A head with one CPU and two worker nodes, with two CPUs each where nothing else is said;
    closed by a token."""

    def __init__(
        self, log_folder: Path, worker: Sequence[str] = ("--num-cpus=2",), silent_s: int = 5
    ) -> None:
        """`worker` are the arguments of `ray start` on a worker node; a node that says nothing for
        `silent_s` seconds is thought dead."""
        # Ray's sockets lie below this folder, and their paths may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="rg", dir="/tmp"))
        self.token = secrets.token_hex(32)
        self.address = ""
        self._log_folder = log_folder
        self._worker = worker
        self._config = _FAST_DEATHS % (2 * silent_s)
        self._sessions: dict[int, bool] = {}
        """By the id of each session: whether it is that of a worker node thought alive."""
        self._numbers = itertools.count()

    def environment(self) -> dict[str, str]:
        """Of a process that may use the cluster."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        return own | token | {"PYTHONUNBUFFERED": "1"}

    def start(self) -> None:
        """Start the head and the worker nodes."""
        head = ["--head", "--port=0", "--num-cpus=1", "--include-dashboard=false", "--no-monitor"]
        head += [
            f"--ray-client-server-port={free_port()}",
            f"--temp-dir={self.folder}",
            f"--system-config={self._config}",
        ]
        log = self._start_node(head, is_worker=False)
        found = re.search(r"--address='([^']+)'", log)
        assert found, log
        self.address = found.group(1)
        self.heal()

    def heal(self) -> None:
        """Start worker nodes until there are two: a cloud gives back what it took."""
        while len(self.worker_sessions()) < 2:
            self._start_node([f"--address={self.address}", *self._worker], is_worker=True)

    def _start_node(self, arguments: Sequence[str], *, is_worker: bool) -> str:
        command = [RAY, "start", "--min-worker-port=0", "--max-worker-port=0"]
        command += [f"--object-store-memory={80 * 2**20}", "--disable-usage-stats"]
        command += ["--dashboard-agent-listen-port=0", "--include-log-monitor=false", *arguments]
        path = self._log_folder / f"ray-start-{next(self._numbers)}.log"
        with path.open("w") as log:
            starter = subprocess.Popen(
                command,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._sessions[starter.pid] = is_worker
        # It returns once the node is up; what it started stays in its session.
        assert starter.wait(START_S) == 0, path.read_text()
        return path.read_text()

    def worker_sessions(self) -> list[int]:
        """The sessions of the worker nodes that have not been killed."""
        return [session for session, is_alive in self._sessions.items() if is_alive]

    def kill_node(self, session: int) -> bool:
        """Kill the raylet of a worker node, and see that all its workers end by themselves."""
        raylets = [p for p in self.processes(session) if name_of(p).endswith("/raylet")]
        self._sessions[session] = False
        return [kill(raylet) for raylet in raylets] == [True]

    def processes(self, session: int | None = None) -> list[psutil.Process]:
        """All living processes of the cluster, or of one of its nodes."""
        sessions = set(self._sessions) if session is None else {session}
        found: set[psutil.Process] = set()
        for process in psutil.process_iter():
            try:
                ours = os.getsid(process.pid) in sessions or (
                    session is None and self._has_token(process)
                )
                if ours:
                    found |= {process, *process.children(recursive=True)}
            except (ProcessLookupError, psutil.Error):
                continue
        return [process for process in found if is_alive(process)]

    def _has_token(self, process: psutil.Process) -> bool:
        return self.token in process.environ().values()

    def workers(self) -> list[psutil.Process]:
        """The Python processes that Ray started for actors and tasks, and what is below them."""
        ours = self.processes()
        workers = {p for p in ours if is_worker(p) or name_of(p).startswith("VLLM::")}
        return [*workers.union(*(children_of(worker) for worker in workers))]

    def busy_workers(self) -> list[psutil.Process]:
        """Those that are at work for some driver, engines and all."""
        return [p for p in self.workers() if not name_of(p).startswith(_FOR_ALL_DRIVERS)]

    def stop(self) -> list[str]:
        """End the cluster; the names of the workers and engines that did not end with it."""
        for program in ("raylet", "gcs_server"):
            servers = [p for p in self.processes() if name_of(p).endswith(f"/{program}")]
            for server in servers:
                server.terminate()
            psutil.wait_procs(servers, timeout=20)
        left = [name_of(process) for process in self.wait_gone(self.workers)]
        for process in self.processes():
            kill(process)
        shutil.rmtree(self.folder, ignore_errors=True)
        return left

    def wait_gone(
        self, which: Callable[[], list[psutil.Process]], within_s: float = GONE_S
    ) -> list[psutil.Process]:
        """Wait until there is no such process; those that are left."""
        deadline = time.monotonic() + within_s
        while (left := which()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


def name_of(process: psutil.Process) -> str:
    """The first word of its command line, which Ray makes a title such as `ray::IDLE`."""
    try:
        return str((process.cmdline() or [""])[0])
    except psutil.Error:
        return ""


def is_worker(process: psutil.Process) -> bool:
    name = name_of(process)
    return name.startswith("ray::") and not name.startswith(_NOT_WORKERS)


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def children_of(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def kill(process: psutil.Process) -> bool:
    """Kill -9; whether it was there."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


# --- what it is run on ---------------------------------------------------------------------------


def sums_config(folder: Path, num_train: int, num_test: int) -> dict[str, Any]:
    """A model that only the scripted engine takes, and two datasets of so many sums each."""
    write_model(folder / "model")
    datasets = {}
    for number, name in enumerate(("near_sums", "other_sums"), start=1):
        _write_sums(folder / f"{name}.train.jsonl", range(1000 * number, 1000 * number + num_train))
        _write_sums(folder / f"{name}.test.jsonl", range(9000 * number, 9000 * number + num_test))
        source = {"kind": "files", "train": f"{name}.train.jsonl", "test": f"{name}.test.jsonl"}
        datasets[name] = {"source": source, "dev_share": 0.0}
    return {
        "run": "trial",
        "model": {"path": str(folder / "model")},
        "questions": {"folder": str(folder), "datasets": datasets},
    }


def _write_sums(path: Path, numbers: range) -> None:
    rows = (
        {
            "id": f"{number}",
            "question": f"What is {number} + {number % 7}?",
            "answer": number + number % 7,
            "answer_type": "number",
        }
        for number in numbers
    )
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


# --- what is killed when -----------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """One kill: so long after this share of all generations was finished."""

    kind: Kind
    share: float
    delay_s: float
    pick: float
    """Which of several candidates, in [0, 1)."""


def draw_kills(seed: int, kinds: Sequence[Kind] | None = None) -> list[Kill]:
    """One to three kills at random moments, of the given kinds or of random ones.

    The first one comes while there is work; a later one may find none left. Some come before the
    first generation, some in the moments after the last.
    """
    rng = random.Random(seed)
    drawn = kinds or [rng.choice(KINDS) for _ in range(rng.randint(1, 3))]
    shares = sorted(min(1.0, max(0.0, rng.uniform(-0.15, 1.15))) for _ in drawn)
    shares[0] = min(shares[0], 0.8)
    return [
        Kill(kind, share, rng.random() * (1.0 if share else 6.0), rng.random())
        for kind, share in zip(drawn, shares, strict=True)
    ]


@dataclass
class Snapshot:
    """What was durable when a driver was gone: the rows of a reader, and the readable files."""

    rows: list[dict[str, Any]]
    files: dict[Path, bytes]


@dataclass
class Trial:
    """What happened."""

    exit_codes: list[int] = field(default_factory=list)
    killed: list[Kind] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    output: str = ""


class Monkey:
    """Runs the driver again and again until it ends with 0, and kills as planned.

    With `watch_rows` it also notes before each kill which rows are durable.
    """

    def __init__(
        self,
        nodes: RayNodes,
        arguments: Sequence[str],
        kills: Sequence[Kill],
        *,
        run_folder: Path,
        num_finished: Callable[[], int],
        num_needed: int,
        watch_rows: bool = False,
    ) -> None:
        self._nodes = nodes
        self._arguments = [*arguments, "--set", f"cluster.address={nodes.address}"]
        self._kills = list(kills)
        self._run_folder = run_folder
        self._num_finished, self._num_needed = num_finished, num_needed
        self._watch_rows = watch_rows
        self._due_at: float | None = None
        self._healer: threading.Thread | None = None
        self._started_at = time.monotonic()
        self.trial = Trial()

    def run(self) -> Trial:
        """Until the driver ends with 0, or failed once more often than it was disturbed."""
        for _ in range(len(self._kills) + 1):
            code = self._run_driver()
            self.trial.exit_codes.append(code)
            self._tell(f"the driver ended with {code}")
            if code == 0:
                break
            left = self._nodes.wait_gone(self._nodes.busy_workers)
            assert not left, f"{[name_of(p) for p in left]} outlived their driver"
            self._heal().join()
            self.trial.snapshots.append(take_snapshot(self._run_folder))
        self._heal().join()
        return self.trial

    def _run_driver(self) -> int:
        log_path = self._run_folder.parent / f"driver-{len(self.trial.exit_codes)}.log"
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("w") as log:
            driver = subprocess.Popen(
                driver_command(*self._arguments),
                cwd=REPOSITORY,
                env=self._nodes.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + ENDS_S
        try:
            while driver.poll() is None and time.monotonic() < deadline:
                if self._kills and self._is_due(self._kills[0]):
                    self._strike(self._kills[0], driver)
                time.sleep(0.2 if self._watch_rows else 0.02)
            assert driver.poll() is not None, f"the driver hangs:\n{log_path.read_text()}"
        finally:
            driver.kill()
            driver.wait()
            self.trial.output += log_path.read_text()
        return driver.returncode

    def _heal(self) -> threading.Thread:
        """Give back the nodes that were killed, while the run goes on without them."""
        if self._healer is not None:
            self._healer.join()
        self._healer = threading.Thread(target=self._nodes.heal)
        self._healer.start()
        return self._healer

    def _is_due(self, planned: Kill) -> bool:
        now = time.monotonic()
        if self._due_at is None and self._num_finished() >= planned.share * self._num_needed:
            self._due_at = now + planned.delay_s
        return self._due_at is not None and now >= self._due_at

    def _strike(self, planned: Kill, driver: subprocess.Popen[bytes]) -> None:
        """Kill, if there is such a process now; wait for one otherwise."""
        if self._watch_rows:
            self.trial.snapshots.append(Snapshot(all_rows(self._run_folder), {}))
        if planned.kind == "driver":
            driver.kill()
            what = "driver"
        elif planned.kind == "raylet":
            sessions = self._nodes.worker_sessions()
            session = sessions[int(planned.pick * len(sessions))]
            num_workers = len([p for p in self._nodes.processes(session) if is_worker(p)])
            assert self._nodes.kill_node(session)
            what = f"raylet with {num_workers} workers"
        else:
            candidates = sorted(self._candidates(planned.kind), key=lambda process: process.pid)
            if not candidates:
                return
            process = candidates[int(planned.pick * len(candidates))]
            what = name_of(process)
            if not kill(process):
                return
        self._kills.pop(0)
        self._due_at = None
        self.trial.killed.append(planned.kind)
        self._tell(f"killed {what} at {self._num_finished()}/{self._num_needed} generations")
        self._heal()

    def _candidates(self, kind: Kind) -> list[psutil.Process]:
        names = [(name_of(process), process) for process in self._nodes.workers()]
        if kind == "engine":
            cores = [process for name, process in names if name.startswith("VLLM::EngineCore")]
            return cores or self._candidates("actor")
        wanted = {"actor": r"ray::MapWorker", "board": r"ray::ProgressBoard"}
        others = r"ray::(?!MapWorker)"
        return [p for name, p in names if re.match(wanted.get(kind, others), name)]

    def _tell(self, text: str) -> None:
        self.trial.story.append(f"{time.monotonic() - self._started_at:6.1f} s {text}")


# --- what has to hold --------------------------------------------------------------------------


def ledger_folders(run_folder: Path) -> list[Path]:
    """The folders that hold a ledger."""
    return sorted([*run_folder.glob("*/paths-*"), *run_folder.glob("*/predictions-*")])


def all_rows(run_folder: Path) -> list[dict[str, Any]]:
    """The rows of all ledgers of a run."""
    return [row for folder in ledger_folders(run_folder) for row in ledger_rows(folder)]


def take_snapshot(run_folder: Path) -> Snapshot:
    """What is durable now. Call when nothing writes any more."""
    files = {}
    for path in run_folder.rglob("*.parquet"):
        try:
            pq.read_metadata(path)
        except (OSError, pa.ArrowInvalid):
            continue
        files[path] = path.read_bytes()
    return Snapshot(all_rows(run_folder), files)


def check_snapshots(snapshots: Iterable[Snapshot], run_folder: Path) -> None:
    """What was durable once is still there: rows as they were, compacted files byte for byte."""
    rows = {(row["question_id"], row["question_fingerprint"]): row for row in all_rows(run_folder)}
    for snapshot in snapshots:
        for row in snapshot.rows:
            assert rows[row["question_id"], row["question_fingerprint"]] == row
        for path, data in snapshot.files.items():
            assert "parts" in path.parts or path.read_bytes() == data, path


def check_complete(folder: Path, question_ids: Sequence[str]) -> None:
    """Each question exactly once, to a reader and in the compacted files; no parts are left."""
    assert [row["question_id"] for row in ledger_rows(folder)] == sorted(question_ids)
    files = sorted(folder.glob("*.parquet"))
    assert sum(pq.read_metadata(file).num_rows for file in files) == len(question_ids)
    assert not (folder / "parts").exists()
    assert (folder / "manifest.json").exists()


def count_lines(log_file: Path) -> int:
    """How many generations were finished."""
    return log_file.read_bytes().count(b"\n") if log_file.exists() else 0


def generations(log_file: Path) -> Counter[str]:
    """How often each generation was finished."""
    return Counter(log_file.read_text().splitlines())


def terminate(process: subprocess.Popen[str]) -> float:
    """SIGTERM; the seconds until it ended."""
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    return time.monotonic() - started
