"""The scripts of a node of the cluster: its set-up, and the watch for the spot notice.

The set-up runs with substitutes for commands that need root or AWS; they record their calls.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.nodes import drain_on_notice
from cluster.nodes.drain_on_notice import NOTICE_S, main, read_notice, seconds_left

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SETUP = REPOSITORY / "cluster" / "nodes" / "setup_node.sh"
DRAIN = REPOSITORY / "cluster" / "nodes" / "drain_on_notice.py"

# sudo runs its arguments, so that the substitutes of other commands are used.
STAND_INS = {
    "sudo": 'exec "$@"',
    "cloud-init": "exit 0",
    "systemctl": "exit 0",
    "dpkg": "exit 1",
    "add-apt-repository": "exit 0",
    "apt-get": "exit 0",
    "mountpoint": '[[ -e "$2/is-mounted" ]]',
    "mount": "exit 0",
    "mdadm": "exit 0",
    "mkfs.ext4": "exit 0",
    "tee": "cat >/dev/null",
}


class Node:
    """A machine whose commands are substitutes, with a separate home and folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "calls"
        for name in ("bin", "home", "shared", "disks"):
            (folder / name).mkdir()
        for name, does in STAND_INS.items():
            self.stand_in(name, does)
        self.log.touch()

    def stand_in(self, name: str, does: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> {self.log}\n{does}\n')
        path.chmod(0o755)

    def run(self, commands: str) -> subprocess.CompletedProcess[str]:
        """Call functions of the set-up script."""
        environment = {
            "PATH": f"{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.folder / "home"),
            "SHARED": str(self.folder / "shared"),
            "LOCAL": str(self.folder / "local"),
            "IMAGE_DISK": str(self.folder / "image_disk"),
            "DISKS": str(self.folder / "disks"),
            "PAUSE_S": "0",
        }
        return subprocess.run(
            ["bash", "-c", f"source {SETUP}; {commands}"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def calls(self, *names: str) -> list[str]:
        lines = self.log.read_text().splitlines()
        return [line for line in lines if not names or line.split()[0] in names]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_packages_are_installed_after_the_boot_and_again_while_apt_is_locked(node: Node) -> None:
    # Locked twice, as by the updates of a first boot.
    node.stand_in(
        "apt-get", f"(($(grep -c ^apt-get {node.log}) > 2)) || {{ echo locked; exit 100; }}"
    )
    assert not node.run("install_packages").returncode
    names = [call.split()[0] for call in node.calls()]
    assert names.index("cloud-init") < names.index("add-apt-repository") < names.index("apt-get")
    updates = [call for call in node.calls("apt-get") if call.endswith("update")]
    assert len(updates) == 3
    assert "python3.11-venv" in node.calls("apt-get")[-1]


def test_packages_that_are_there_cost_nothing(node: Node) -> None:
    node.stand_in("dpkg", "exit 0")
    assert not node.run("install_packages").returncode
    assert not node.calls("apt-get", "cloud-init")


def test_local_disks_become_one_volume_that_holds_the_caches(node: Node) -> None:
    for name in ("first", "second"):
        (node.folder / name).touch()
        for number in ("", "_1"):  # two names for each
            disk = f"nvme-Amazon_EC2_NVMe_Instance_Storage_{name}{number}"
            (node.folder / "disks" / disk).symlink_to(node.folder / name)
    assert not node.run("mount_local_disk").returncode
    (made,) = node.calls("mdadm")
    assert "--raid-devices=2" in made
    assert made.split()[-2:] == [str(node.folder / "first"), str(node.folder / "second")]
    for name in ("regenesis", "huggingface"):
        cache = node.folder / "home" / ".cache" / name
        assert cache.resolve() == node.folder / "local" / "cache" / name


def test_the_volume_of_the_image_is_taken_where_there_is_one(node: Node) -> None:
    (node.folder / "image_disk").mkdir()
    (node.folder / "image_disk" / "is-mounted").touch()
    for _ in range(2):  # as often as it may take
        assert not node.run("mount_local_disk").returncode
    assert not node.calls("mdadm", "mkfs.ext4")
    assert (node.folder / "local").resolve() == node.folder / "image_disk"


def test_a_node_without_local_disks_gets_folders(node: Node) -> None:
    assert not node.run("mount_local_disk").returncode
    assert not node.calls("mdadm", "mount")
    assert (node.folder / "home" / ".cache" / "regenesis").is_dir()


def test_shared_folder_is_mounted_as_soon_as_its_name_is_known(node: Node) -> None:
    node.stand_in("mount", f"(($(grep -c '^mount ' {node.log}) > 1))")
    assert not node.run("mount_shared_folder fs-1.efs.us-west-2.amazonaws.com").returncode
    assert len(node.calls("mount")) == 2
    assert {path.name for path in (node.folder / "shared").iterdir()} == {
        *("cache", "questions", "runs")
    }


def environment_of(node: Node, pip: str = "exit 0") -> Path:
    """A lock, and a venv whose pip is a substitute."""
    lock = node.folder / "gpu.lock"
    lock.write_text("something==1.0 --hash=sha256:00\n")
    venv = node.folder / "home" / "regenesis" / ".venv" / "bin"
    venv.mkdir(parents=True)
    for name, does in {"python": "exit 0", "pip": pip}.items():
        (venv / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {node.log}\n{does}\n')
        (venv / name).chmod(0o755)
    return lock


def test_environment_is_installed_once_for_each_lock(node: Node) -> None:
    lock = environment_of(node)
    for _ in range(2):
        assert not node.run(f"install_environment {lock}").returncode
    assert node.calls("pip") == [f"pip install --quiet --no-deps --require-hashes -r {lock}"]
    lock.write_text("something==2.0 --hash=sha256:00\n")
    assert not node.run(f"install_environment {lock}").returncode
    assert len(node.calls("pip")) == 2


def test_second_node_installs_from_the_cache_that_the_first_one_filled(node: Node) -> None:
    says_cache = f"echo cache $PIP_CACHE_DIR >> {node.log}"
    lock = environment_of(node, pip=says_cache)
    (node.folder / "shared" / "is-mounted").touch()
    (node.folder / "shared" / "cache").mkdir()
    assert not node.run(f"install_environment {lock}").returncode
    assert node.calls("cache") == [f"cache {node.folder / 'shared' / 'cache' / 'pip'}"]
    (filled,) = (node.folder / "shared" / "cache").glob("pip-has-*")
    # Another node, while a third one holds nothing: the lock is let go before pip works.
    (node.folder / "home" / "regenesis" / ".venv" / "installed").unlink()
    pip = node.folder / "home" / "regenesis" / ".venv" / "bin" / "pip"
    pip.write_text(f"#!/bin/sh\nflock --nonblock {filled.with_name('pip.lock')} true\n")
    assert not node.run(f"install_environment {lock}").returncode


def test_install_that_fails_is_not_taken_for_done(node: Node) -> None:
    lock = environment_of(node, pip="exit 1")
    assert node.run(f"install_environment {lock}").returncode
    assert len(node.calls("pip")) == 3
    assert not (node.folder / "home" / "regenesis" / ".venv" / "installed").exists()


def test_token_is_closed_to_others(node: Node) -> None:
    token = node.folder / "home" / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("not a real one")
    token.chmod(0o644)
    assert not node.run("close_token").returncode
    assert token.stat().st_mode & 0o777 == 0o600


def test_whole_setup_runs_twice(node: Node) -> None:
    lock = environment_of(node)
    for _ in range(2):
        ran = node.run(f"main {lock} fs-1.efs.us-west-2.amazonaws.com")
        assert not ran.returncode, ran.stderr
    bashrc = (node.folder / "home" / ".bashrc").read_text()
    assert bashrc.count("RAY_AUTH_MODE=token") == 1


# --- the spot notice ---------------------------------------------------------------------------


class Metadata(BaseHTTPRequestHandler):
    """The metadata service of a machine: a token first, then the notice, if there is one."""

    notice: str | None = None

    def do_PUT(self) -> None:
        self._answer(200, "a-token")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "a-token":
            self._answer(401, "")
        elif self.path != "/latest/meta-data/spot/instance-action" or self.notice is None:
            self._answer(404, "")
        else:
            self._answer(200, self.notice)

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its address on the loopback interface; without a notice at first."""
    monkeypatch.setattr(Metadata, "notice", None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_no_notice_a_notice_and_no_service(metadata: str) -> None:
    assert read_notice(metadata) is None
    Metadata.notice = '{"action": "stop", "time": "2026-11-29T17:00:00Z"}'
    assert read_notice(metadata) == {"action": "stop", "time": "2026-11-29T17:00:00Z"}
    Metadata.notice = "not JSON"
    assert read_notice(metadata) is None
    assert read_notice("http://127.0.0.1:1") is None


@pytest.mark.parametrize(
    ("notice", "expected"),
    [
        ({"time": "2026-11-29T17:02:00Z"}, 120),
        ({"time": "2026-11-29T16:00:00Z"}, 1),
        ({"time": "soon"}, NOTICE_S),
        ({}, NOTICE_S),
        ({"time": "2026-11-29T17:02:00"}, NOTICE_S),  # without a zone it cannot be compared
    ],
)
def test_seconds_left(notice: dict[str, str], expected: int) -> None:
    now = datetime.datetime(2026, 11, 29, 17, tzinfo=datetime.UTC)
    assert seconds_left(notice, now) == expected


@pytest.fixture
def ray_calls(node: Node, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A node whose `ray` is a substitute, next to the Python that runs the watch."""
    node.stand_in("ray", f'echo "address $RAY_ADDRESS" >> {node.log}')
    monkeypatch.setattr(sys, "executable", str(node.folder / "bin" / "python"))
    return node


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of the watch, which pass at once on its clock; in the third, a notice comes."""
    passed: list[float] = []

    def sleep(seconds: float) -> None:
        passed.append(seconds)
        if len(passed) == 3:
            Metadata.notice = Metadata.notice or '{"action": "stop"}'

    clock = SimpleNamespace(monotonic=lambda: sum(passed), sleep=sleep)
    monkeypatch.setattr(drain_on_notice, "time", clock)
    return passed


def _options(calls: str) -> dict[str, str]:
    """The options of `ray drain-node`, by name."""
    words = calls.removeprefix("ray drain-node --").split(" --")
    return dict(word.split(" ", 1) for word in words)


def test_watch_waits_for_the_notice_and_drains_with_the_time_that_is_left(
    metadata: str, ray_calls: Node, naps: list[float]
) -> None:
    assert main(["--address", "head:6379", "--metadata", metadata, "--every-s", "7"]) == 0
    assert naps == [7, 7, 7]
    (call,) = ray_calls.calls("ray")
    assert _options(call) == {
        "address": "head:6379",
        "reason": "DRAIN_NODE_REASON_PREEMPTION",
        "reason-message": "AWS reclaims this spot machine (stop)",
        "deadline-remaining-seconds": str(NOTICE_S),
    }
    assert ray_calls.calls("address") == ["address head:6379"]


def test_watch_drains_the_node_that_it_is_given(
    metadata: str, ray_calls: Node, naps: list[float]
) -> None:
    Metadata.notice = "{}"
    assert not main(["--address", "head:6379", "--metadata", metadata, "--node-id", "abc"])
    (call,) = ray_calls.calls("ray")
    assert _options(call)["node-id"] == "abc"


def test_watch_asks_again_with_less_time_until_ray_accepts(
    metadata: str, ray_calls: Node, naps: list[float]
) -> None:
    ray_calls.stand_in("ray", f"(($(grep -c '^ray ' {ray_calls.log}) > 2))")
    Metadata.notice = '{"action": "terminate"}'
    assert main(["--address", "head:6379", "--metadata", metadata, "--every-s", "50"]) == 0
    left = [_options(call)["deadline-remaining-seconds"] for call in ray_calls.calls("ray")]
    assert left == ["120", "70", "20"]


def test_watch_gives_up_when_the_machine_ends(
    metadata: str, ray_calls: Node, naps: list[float]
) -> None:
    ray_calls.stand_in("ray", "exit 1")
    Metadata.notice = '{"action": "terminate", "time": "2001-01-01T00:00:00Z"}'
    assert main(["--address", "head:6379", "--metadata", metadata]) == 1
    (call,) = ray_calls.calls("ray")
    assert _options(call)["deadline-remaining-seconds"] == "1"
    assert naps == [1], "it does not sleep beyond the end"


@pytest.mark.slow
def test_notice_drains_the_node(metadata: str) -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 10**8},
    )
    spot = cluster.add_node(num_cpus=1, object_store_memory=10**8)
    options = ["--metadata", metadata, "--every-s", "0.1", "--node-id", spot.node_id]
    watcher = subprocess.Popen(
        [sys.executable, DRAIN, "--address", cluster.address, *options],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    try:
        assert watcher.poll() is None
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
        Metadata.notice = json.dumps({"action": "terminate", "time": ends.isoformat()})
        assert watcher.wait(60) == 0
        ray.init(address=cluster.address, log_to_driver=False)
        # An idle node goes at once; one that works is left to its deadline.
        until = time.monotonic() + 30
        while spot.node_id in {n["NodeID"] for n in ray.nodes() if n["Alive"]}:
            assert time.monotonic() < until
            time.sleep(0.2)
    finally:
        watcher.kill()
        ray.shutdown()
        cluster.shutdown()
