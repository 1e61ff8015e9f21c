"""`regenesis doctor [CONFIG]`: check what a run needs before it starts, with one line per check.

Without a config, the defaults are checked: this machine, and `runs/` in this folder. The exit code
is 1 when a check fails.
"""

from __future__ import annotations

import argparse
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import InputError, StoreRefusedError
from cluster.inference.engine import EngineSettings
from cluster.models.hub import check_hub_model
from cluster.models.model import check_model, is_hub_name
from cluster.node_facts import (
    ENGINES,
    RAY_PORTS,
    NodeFacts,
    facts_of_all_nodes,
    installed_packages,
)
from cluster.session import ClusterSettings, StorageSettings, check_storage_root, ray_session
from cluster.store.folder import Folder
from cluster.store.network import FIRST_ANSWER_S
from cluster.terminal import say
from commands.arguments import add_overrides
from commands.version import REPOSITORY
from pipelines.config import load_config

LEAST_MEMORY_GIB = 4.0
LEAST_DISK_GIB = 5.0
NODE_TIMEOUT_S = 330.0
LOOPBACK = {"127.0.0.1", "::1"}


@dataclass(frozen=True)
class Finding:
    """One line of output: what was checked, whether it is right, and what was found."""

    subject: str
    is_right: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok   ' if self.is_right else 'WRONG'}  {self.subject}: {self.text}"


@dataclass(frozen=True)
class Needs:
    """The parts of a config that are checked."""

    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    engine: EngineSettings | None = None
    """None without a config; GPUs are then only listed."""
    model: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the config, whose cluster, storage, engine and model are checked."""
    parser.add_argument("config", nargs="?", help="a YAML file, or the name of one in configs/")
    add_overrides(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; returns 1 when a check fails."""
    needs = _needs_of(arguments)
    num_wrong = 0
    for finding in _look(needs):
        say(str(finding))
        num_wrong += not finding.is_right
    say(f"{num_wrong} wrong" if num_wrong else "nothing is wrong")
    return 1 if num_wrong else 0


def _needs_of(arguments: argparse.Namespace) -> Needs:
    if arguments.config is None:
        if arguments.set:
            raise InputError("--set needs a config: regenesis doctor CONFIG --set a.b=value")
        return Needs()
    config = load_config(arguments.config, arguments.set)
    return Needs(config.cluster, config.storage, config.engine, config.model.path)


def _look(needs: Needs) -> Iterator[Finding]:
    """Yield each finding as soon as it is known; checks that need no Ray come first."""
    lock = "gpu.lock" if "vllm" in installed_packages() else "cpu.lock"
    locked = read_lock(REPOSITORY / "requirements" / lock)
    yield check_versions(installed_packages(), locked, lock)
    if needs.model is not None:
        yield check_model_path(needs.model)
    check_storage_root(needs.storage.root)
    try:
        with ray_session(needs.cluster):
            nodes = _ask_nodes(needs.storage)
    except StoreRefusedError as error:
        yield Finding("storage", False, _first_line(error))
        return
    except (ConnectionError, InputError, RuntimeError, TimeoutError) as error:
        yield Finding("cluster", False, f"Ray cannot be reached or started: {_first_line(error)}")
        return
    except OSError as error:
        yield Finding("storage", False, f"{needs.storage.root}: {_first_line(error)}")
        return
    yield from check_nodes(nodes, needs.engine)


def _ask_nodes(storage: StorageSettings) -> dict[str, NodeFacts | str]:
    root = Folder.open(storage.root, min(storage.outage_s, FIRST_ANSWER_S))
    folder = root.child(f"doctor-{uuid.uuid4().hex[:12]}")
    folder.write_bytes("driver", b"seen by every node?")
    try:
        return facts_of_all_nodes(folder, storage.cache, NODE_TIMEOUT_S)
    finally:
        folder.delete()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# --- the checks, which turn facts into lines -----------------------------------------------------


def read_lock(path: Path) -> dict[str, str]:
    """The versions that a lock pins."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\;]+)", path.read_text(), re.MULTILINE))


def check_versions(found: Mapping[str, str], locked: Mapping[str, str], lock: str) -> Finding:
    """Check that the main packages have the versions of the lock."""
    wanted = {name: locked.get(name) for name in found}
    engines = [name for name in ENGINES if name in found]
    wrong = [
        f"{name} {found[name]} (locked: {wanted[name]})"
        for name in found
        if found[name] != wanted[name]
    ]
    if not engines:
        wrong.append("vllm is missing")
    if wrong:
        return Finding("versions", False, f"{', '.join(wrong)}; install requirements/{lock}")
    shown = ", ".join(f"{name} {version}" for name, version in found.items())
    return Finding("versions", True, f"{shown}, as in requirements/{lock}")


def check_token(where: str, mode: int | None) -> Finding:
    """Check that other users of the machine cannot read the token."""
    if mode is None:
        asked = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
        given = bool(os.environ.get("RAY_AUTH_TOKEN"))
        if asked and not given:
            text = f"{where} has no token, but RAY_AUTH_MODE requires one; see docs/CLUSTER.md"
            return Finding("token", False, text)
        return Finding("token", True, f"{where} has no token in a file")
    if mode & 0o077:
        text = f"other users of {where} can read it (mode {mode:o}); chmod 600 ~/.ray/auth_token"
        return Finding("token", False, text)
    return Finding("token", True, f"only its owner can read it on {where} (mode {mode:o})")


def check_model_path(path: str) -> Finding:
    """Check that the model is on this machine or can be downloaded from the hub."""
    try:
        check_model(path)
        if is_hub_name(path):
            check_hub_model(path)
    except InputError as error:
        return Finding("model", False, str(error))
    return Finding("model", True, f"{path} is available")


def check_nodes(
    nodes: Mapping[str, NodeFacts | str], engine: EngineSettings | None
) -> Iterator[Finding]:
    """Check each node, and that all nodes have the same packages."""
    answered = [facts for facts in nodes.values() if isinstance(facts, NodeFacts)]
    for name, facts in nodes.items():
        if isinstance(facts, NodeFacts):
            yield from check_node(facts)
        else:
            yield Finding(f"node {name}", False, facts)
    yield check_same(answered)
    if engine is not None:
        yield check_gpus_wanted(engine, sum(facts.ray_gpus for facts in answered))


def check_node(facts: NodeFacts) -> Iterator[Finding]:
    """Yield the findings for one node."""
    subject = f"node {facts.name}"
    yield Finding(f"{subject}, processor", True, f"{facts.num_cpus} CPUs; {facts.dtype}")
    yield check_gpus(facts)
    least, free = LEAST_MEMORY_GIB, facts.free_memory_gib
    enough = "" if free >= least else f"; with less than {least:.0f} GiB, processes are killed"
    text = f"{free:.1f} of {facts.memory_gib:.1f} GiB free{enough}"
    yield Finding(f"{subject}, memory", free >= least, text)
    for folder, free in facts.free_disk_gib.items():
        is_enough = free >= LEAST_DISK_GIB
        needed = "" if is_enough else f"; make room for {LEAST_DISK_GIB:.0f} GiB"
        yield Finding(f"{subject}, disk", is_enough, f"{free:.1f} GiB free at {folder}{needed}")
    error = facts.storage_error
    yield Finding(f"{subject}, storage", error is None, error or "written and read")
    yield check_token(f"node {facts.name}", facts.token_mode)
    yield check_ports(facts)


def check_gpus(facts: NodeFacts) -> Finding:
    """Check that Ray, torch and vLLM see the same GPUs."""
    subject, num = f"node {facts.name}, GPUs", len(facts.torch_gpus)
    seen = f"Ray sees {facts.ray_gpus}, torch {num}, vLLM computes on {facts.vllm_device}"
    cards = f" ({'; '.join(facts.torch_gpus)})" if num else ""
    agree = facts.ray_gpus == num and facts.vllm_device == ("cuda" if num else "cpu")
    text = seen + cards if agree else f"{seen}{cards}; they must agree; check the GPU driver"
    return Finding(subject, agree, text)


def check_gpus_wanted(engine: EngineSettings, num_gpus: int) -> Finding:
    """Check that there is a GPU if the config asks for one."""
    if engine.use_gpu and not num_gpus:
        text = "engine.use_gpu is true, but no node has a GPU; set engine.use_gpu=false"
        return Finding("config", False, text)
    uses = f"engines use {num_gpus} GPUs" if engine.use_gpu else "engines use the CPU"
    return Finding("config", True, uses)


def check_ports(facts: NodeFacts) -> Finding:
    """Check that the dashboard, which accepts jobs, is closed to other machines."""
    bound = [
        f"{RAY_PORTS[port]} ({port}) on {', '.join(addresses)}"
        for port, addresses in facts.ports.items()
    ]
    is_open = bool(set(facts.ports.get(8265, ())) - LOOPBACK)
    has_token = facts.token_mode is not None or bool(os.environ.get("RAY_AUTH_TOKEN"))
    text = "; ".join(bound) or "none of Ray's known ports is bound"
    if is_open and not has_token:
        text += "; without a token, anyone who can reach the dashboard can run code here"
    return Finding(f"node {facts.name}, ports", has_token or not is_open, text)


def check_same(nodes: list[NodeFacts]) -> Finding:
    """Check that all nodes have the same Python and packages."""
    kinds: dict[tuple[object, ...], list[str]] = {}
    for facts in nodes:
        kind = (facts.python, *sorted(facts.packages.items()))
        kinds.setdefault(kind, []).append(facts.name)
    if len(kinds) <= 1:
        return Finding("nodes", bool(nodes), f"{len(nodes)} with the same Python and packages")
    (first, *_), *others = kinds.values()
    names = ", ".join(name for group in others for name in group)
    return Finding("nodes", False, f"versions on {names} differ from {first}; use one lock")
