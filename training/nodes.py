"""Reads from Ray what the nodes of the cluster have for a training.

On the driver: `read_nodes`. On each node, in a task that takes neither a CPU nor a GPU: its memory,
what its processor computes fast, and what NVIDIA's library tells of its cards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.cpu_dtype import FastDtype, this_processor_dtype
from training.device import Device, pretended_device
from training.placement import Node, Nodes

FIRST_WITH_BFLOAT16 = 8
"""Compute capability of the first cards with bfloat16 (Ampere, 2020)."""


@dataclass(frozen=True)
class _Found:
    """What a node tells of itself."""

    memory: float
    dtype: FastDtype
    card_memory: float | None
    card_dtype: FastDtype


def read_nodes() -> Nodes:
    """The nodes that are alive, and how large the cluster may get. Needs an initialised Ray."""
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
    resources = node["Resources"]
    return Node(
        name=str(node["NodeManagerAddress"]),
        num_cpus=int(resources.get("CPU", 0)),
        num_gpus=int(resources.get("GPU", 0)),
        memory=found.memory,
        dtype=found.dtype,
        card_memory=found.card_memory,
        card_dtype=found.card_dtype,
    )


def _look(pretended: Device | None) -> _Found:
    import psutil

    memory, capability = (pretended.memory, None) if pretended else _smallest_card()
    has_bfloat16 = capability is None or capability >= FIRST_WITH_BFLOAT16
    return _Found(
        memory=float(psutil.virtual_memory().total),
        dtype=this_processor_dtype(),
        card_memory=memory,
        card_dtype="bfloat16" if has_bfloat16 else "float32",
    )


def _smallest_card() -> tuple[float | None, int | None]:
    """Bytes and major compute capability of this node's smallest card; None where there is none.

    NVIDIA's management library sees cards that Ray hides from a task which takes none.
    """
    from ray._private.thirdparty import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None, None
    try:
        cards = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        memory = min((float(pynvml.nvmlDeviceGetMemoryInfo(c).total) for c in cards), default=None)
        capabilities = [pynvml.nvmlDeviceGetCudaComputeCapability(card)[0] for card in cards]
        return memory, min(capabilities, default=None)
    finally:
        pynvml.nvmlShutdown()
