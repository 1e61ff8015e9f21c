"""`ray job submit`: the driver on a real Ray head on this machine, protected by a token."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psutil
import pytest
import yaml

from tests.conftest import ledger_rows, write_model

REPOSITORY = Path(__file__).resolve().parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
CONFIG = "configs/submitted.yaml"
NOT_SUBMITTED = (".git", ".venv", ".*_cache", ".make", "__pycache__", "runs")
DEADLINE_S = 240


@dataclass(frozen=True)
class Head:
    """A running head: where its job API listens, and the environment of one who may use it."""

    address: str
    environment: Mapping[str, str]

    def submit(
        self, working_dir: Path, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Submit the driver and follow it to its end, output and all."""
        submit = [RAY, "job", "submit", "--address", self.address]
        submit += ["--working-dir", str(working_dir), "--"]
        return run_to_end(
            submit + driver(CONFIG, *arguments),
            REPOSITORY,
            self.environment if environment is None else environment,
        )

    def jobs(self, token: str | None) -> list[dict[str, Any]]:
        """What the job API lists for a bearer of this token. Raises `HTTPError`."""
        request = urllib.request.Request(f"{self.address}/api/jobs/")
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=30) as response:
            listed: list[dict[str, Any]] = json.load(response)
        return listed


def driver(*arguments: str) -> list[str]:
    return [sys.executable, "regenesis.py", "run", *arguments, "--until", "paths"]


def run_to_end(
    command: list[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, both outputs in one."""
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head with two CPUs in a separate session, so that no other cluster here is affected."""
    # Ray's own RPC ports listen on all interfaces whatever it is told; the token guards them too.
    # Its sockets lie below this folder, and their paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="rg", dir="/tmp"))
    environment = {
        **without_ray(os.environ),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    dashboard, agent, client = free_ports(3)
    command = [RAY, "start", "--head", "--port=0", "--num-cpus=2", "--disable-usage-stats"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
    command += [f"--object-store-memory={128 * 2**20}", f"--temp-dir={folder}"]
    with (folder / "start.log").open("w") as log:
        starter = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        # It returns once the head is up; what it started stays in its session.
        assert starter.wait(DEADLINE_S) == 0, (folder / "start.log").read_text()
        yield Head(f"http://127.0.0.1:{dashboard}", environment)
    finally:
        end_session(starter.pid)
        shutil.rmtree(folder, ignore_errors=True)


def without_ray(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment that names no cluster and holds no token."""
    return {name: value for name, value in environment.items() if not name.startswith("RAY_")}


def free_ports(number: int) -> list[int]:
    """Ports that are free now, held together while they are looked for so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(held.getsockname()[1]) for held in sockets]
    for held in sockets:
        held.close()
    return ports


def end_session(session: int) -> None:
    """End the processes of a session and all below them: a job's driver leads its own session."""
    ours: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session:
                ours |= {process, *process.children(recursive=True)}
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    for process in ours:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(ours, timeout=10)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=10)


@pytest.fixture(scope="module")
def working_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with a small config: a scripted engine and eight sums."""
    folder = tmp_path_factory.mktemp("submitted")
    copy = folder / "repository"
    shutil.copytree(REPOSITORY, copy, ignore=shutil.ignore_patterns(*NOT_SUBMITTED))
    model = folder / "model"
    write_model(model)
    write_sums(folder / "train.jsonl", range(6))
    write_sums(folder / "test.jsonl", range(6, 8))
    sums = {"source": {"kind": "files", "train": "train.jsonl", "test": "test.jsonl"}}
    config = {
        "run": "submitted",
        "model": {"path": str(model)},
        "questions": {"folder": str(folder), "datasets": {"sums": {**sums, "dev_share": 0.0}}},
        "synthesis": {"guidelines_per_question": 3},
        "engine": {
            "implementation": "tests.scripted.ScriptedEngine",
            "use_gpu": False,
            "chunk_size": 2,
        },
    }
    (copy / CONFIG).write_text(yaml.safe_dump(config))
    return copy


def write_sums(path: Path, numbers: range) -> None:
    rows = (
        {
            "id": f"{number}",
            "question": f"What is {number + 11} + 31?",
            "answer": number + 42,
            "answer_type": "number",
        }
        for number in numbers
    )
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def read_rows(root: Path, step: str) -> list[dict[str, Any]]:
    """The rows of one step of the only run below a root."""
    (folder,) = root.glob(f"submitted/{step}-*")
    return ledger_rows(folder)


def test_submitted_job_rows_equal_a_local_run(
    head: Head, working_dir: Path, tmp_path: Path
) -> None:
    submitted, local = tmp_path / "submitted", tmp_path / "local"
    job = head.submit(working_dir, "--set", f"storage.root={submitted}")
    assert job.returncode == 0, job.stdout
    assert "run folder:" in job.stdout, "the job's output was not followed to its end"
    alone = run_to_end(
        driver(str(working_dir / CONFIG), "--set", f"storage.root={local}"),
        REPOSITORY,
        without_ray(os.environ),
    )
    assert alone.returncode == 0, alone.stdout
    paths = read_rows(submitted, "round_0/paths")
    assert len(paths) == 6
    assert {path["verdict"] for row in paths for path in row["paths"]} == {
        "correct",
        "wrong",
    }
    # Seeds, texts, token ids, verdicts: the scripted engine's answers depend on the seed alone.
    assert paths == read_rows(local, "round_0/paths")
    assert read_rows(submitted, "base/predictions") == read_rows(local, "base/predictions")


def test_submission_without_the_token_is_refused(
    head: Head, working_dir: Path, tmp_path: Path
) -> None:
    known = len(head.jobs(head.environment["RAY_AUTH_TOKEN"]))
    # A separate home, because Ray reads ~/.ray/auth_token if the environment has no token.
    stranger = {**without_ray(os.environ), "HOME": str(tmp_path)}
    job = head.submit(working_dir, environment=stranger)
    assert job.returncode != 0
    assert "AuthenticationError" in job.stdout
    assert len(head.jobs(head.environment["RAY_AUTH_TOKEN"])) == known


@pytest.mark.parametrize("token", [None, "0" * 64], ids=["missing", "wrong"])
def test_job_api_with_a_bad_token_answers_forbidden(head: Head, token: str | None) -> None:
    with pytest.raises(HTTPError) as refusal:
        head.jobs(token)
    assert refusal.value.code in {401, 403}


def test_submitted_job_with_a_relative_storage_root_ends_with_code_2(
    head: Head, working_dir: Path
) -> None:
    job = head.submit(working_dir, "--set", "storage.root=runs")
    assert job.returncode != 0
    assert "exit code 2" in job.stdout
    assert "storage.root 'runs' is relative" in job.stdout
