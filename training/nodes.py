"""Read from Ray what the nodes of the cluster offer to a training.

`read_nodes` runs on the driver. On each node, a task that takes neither a CPU nor a GPU reads the
node's memory, its processor's fast number type, and what NVIDIA's library reports about its cards.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster.cpu_dtype import FastDtype, this_processor_dtype
from training.device import Device, pretended_device
from training.placement import Node, Nodes

FIRST_WITH_BFLOAT16 = 8
"""Compute capability of the first cards that support bfloat16 (Ampere, 2020)."""

AMD_DRIVER = Path("/dev/kfd")
"""This path exists on a node with AMD cards, which NVIDIA's library does not know."""


@dataclass(frozen=True)
class _Cards:
    """The facts about a node's smallest and oldest card; None if unknown."""

    memory: float | None = None
    capability: int | None = None
    """Major number of CUDA's compute capability."""


@dataclass(frozen=True)
class _Found:
    """The facts that a node reports about itself."""

    memory: float
    dtype: FastDtype
    cards: _Cards | None
    """None if the node has no card that torch can use, whatever Ray counts."""


def read_nodes() -> Nodes:
    """The living nodes, and how large the cluster may get. Needs an initialised Ray."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    look = ray.remote(num_cpus=0, max_retries=2)(_look)
    asked = [
        look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
        ).remote(pretended_device())
        for node in alive
    ]
    found: list[_Found] = ray.get(asked)
    there = [_node(*pair) for pair in zip(alive, found, strict=True)]
    return Nodes(there, ray._private.state.state.get_max_resources_from_cluster_config() or {})


def _node(node: dict[str, Any], found: _Found) -> Node:
    resources, cards = node["Resources"], found.cards or _Cards()
    is_old = cards.capability is not None and cards.capability < FIRST_WITH_BFLOAT16
    return Node(
        name=str(node["NodeManagerAddress"]),
        num_cpus=int(resources.get("CPU", 0)),
        num_gpus=int(resources.get("GPU", 0)),
        has_cards=found.cards is not None,
        memory=found.memory,
        dtype=found.dtype,
        card_memory=cards.memory,
        card_dtype="float32" if is_old else "bfloat16",
    )


def _look(pretended: Device | None) -> _Found:
    import psutil

    cards = _Cards(pretended.memory) if pretended else _find_cards()
    return _Found(float(psutil.virtual_memory().total), this_processor_dtype(), cards)


def _find_cards() -> _Cards | None:
    """The cards in NVIDIA's management library, which Ray does not hide from a task without GPUs.

    For a torch that was built for CPUs only, there are none.
    """
    if version("torch").endswith("+cpu"):
        return None
    if AMD_DRIVER.exists():
        return _Cards()
    from ray._private.thirdparty import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        cards = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        if not cards:
            return None
        return _Cards(
            memory=min(float(pynvml.nvmlDeviceGetMemoryInfo(card).total) for card in cards),
            capability=min(pynvml.nvmlDeviceGetCudaComputeCapability(card)[0] for card in cards),
        )
    finally:
        pynvml.nvmlShutdown()
