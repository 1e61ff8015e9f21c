"""Fit the engine pool to the cluster: plan whatever the config leaves open.

On the driver, once Ray is running, it looks at the GPUs and lets `cluster.inference.gpu_plan`
compute the rest. On each node with GPUs, a task that takes none of them reads the memory of one."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from cluster.errors import InputError
from cluster.gpus import Bundle, all_nodes
from cluster.inference.engine import EngineSettings
from cluster.inference.gpu_plan import GpuNodes, ModelShape, PoolPlan, plan_pool, with_options
from cluster.models.model import Model

PRETENDED_MEMORY = "REGENESIS_PRETENDED_GPU_MEMORY"
"""An environment variable for tests only: `module:name` of a function that returns the GiB of a
GPU, for GPUs that Ray counts but that do not exist."""

KNOWN_GIB: dict[str, float] = {}
"""The memory of one GPU by node id, for nodes that were asked; node ids are never reused."""


def fit_engines(settings: EngineSettings, model: Model) -> tuple[EngineSettings, str]:
    """Return the settings with the parallel sizes and the number of engines planned, and a
    paragraph that explains them.

    A tensor parallel size in the config is kept as it is; so are the settings for a CPU.

    Raises `InputError` with the numbers when the model fits nowhere, and when the memory of the
    GPUs cannot be read.
    """
    nodes = gpu_nodes()
    if not settings.use_gpu or not nodes:  # without nodes, the pool waits for them later
        return settings, ""
    if settings.tensor_parallel_size is None:
        settings, said = _planned(settings, model)
    else:
        replicas = max(1, engines_on(nodes, settings))
        settings = settings.model_copy(update={"max_workers": settings.max_workers or replicas})
        said = ""
    cpus = cpus_per_engine(nodes, settings)
    if cpus < settings.cpus_per_worker:
        said += (
            f" A node has fewer CPUs than its engines would use: engine.cpus_per_worker is "
            f"{cpus:g} instead of {settings.cpus_per_worker:g}."
        )
        settings = settings.model_copy(update={"cpus_per_worker": cpus})
    return settings, said.strip()


def gpu_nodes() -> list[dict[str, float]]:
    """The resources of each living node with GPUs."""
    return [node for node in all_nodes() if node.get("GPU")]


def engines_on(nodes: Sequence[Bundle], settings: EngineSettings) -> int:
    """How many engines of the configured size fit on the GPUs of the nodes."""
    if settings.placement_group:
        return int(sum(node["GPU"] for node in nodes)) // settings.ranks
    return sum(int(node["GPU"]) // settings.ranks for node in nodes)


def cpus_per_engine(nodes: Sequence[Bundle], settings: EngineSettings) -> float:
    """The logical CPUs of an engine: the configured number, or what the node with the fewest CPUs
    has for each of its engines, so that no GPU is idle for lack of a CPU."""
    if settings.placement_group:
        return settings.cpus_per_worker
    shares = [
        int(100 * node.get("CPU", 0) / engines) / 100
        for node in nodes
        if (engines := int(node["GPU"]) // settings.ranks)
    ]
    return min([settings.cpus_per_worker, *shares])


def _planned(settings: EngineSettings, model: Model) -> tuple[EngineSettings, str]:
    """The settings as `cluster.inference.gpu_plan` completes them, with its paragraph."""
    try:
        nodes = _gpu_nodes()
    except InputError as error:
        if settings.implementation == EngineSettings().implementation:
            raise
        # Another engine may not need CUDA; it has to check its GPU memory itself.
        alone = settings.model_copy(update={"tensor_parallel_size": 1})
        replicas = max(1, engines_on(gpu_nodes(), alone))
        said = f"One engine for each GPU, since nothing can be planned: {error}."
        return alone.model_copy(update={"max_workers": settings.max_workers or replicas}), said
    return fit_to_nodes(settings, model, nodes)


def fit_to_nodes(
    settings: EngineSettings, model: Model, nodes: GpuNodes
) -> tuple[EngineSettings, str]:
    """Plan for these GPUs: returns the settings with all sizes, and a paragraph about them.

    Raises `InputError` when the model fits nowhere.
    """
    plan = _plan(settings, model, nodes)
    planned = settings.model_copy(
        update={
            "max_workers": settings.max_workers or plan.replicas,
            "tensor_parallel_size": plan.tensor_parallel_size,
            "pipeline_parallel_size": plan.pipeline_parallel_size,
            "placement_group": settings.placement_group or plan.needs_placement_group,
            "max_num_seqs": min(settings.max_num_seqs, plan.max_num_seqs),
            "max_model_len": plan.max_model_len,
            "options": {"enable_expert_parallel": plan.expert_parallel} | settings.options,
        }
    )
    said = plan.describe()
    if plan.max_num_seqs < settings.max_num_seqs:
        said += (
            f" engine.max_num_seqs is {plan.max_num_seqs} instead of {settings.max_num_seqs}: the "
            "cache holds no more. To keep your value, set engine.tensor_parallel_size too."
        )
    return planned, said


def _plan(settings: EngineSettings, model: Model, nodes: GpuNodes) -> PoolPlan:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model.fetch("config"), trust_remote_code=False)
    return plan_pool(
        ModelShape.from_config(with_options(config.to_dict(), settings.options), name=model.path),
        nodes,
        context=settings.max_model_len,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        max_num_seqs=settings.max_num_seqs,
    )


def _gpu_nodes() -> GpuNodes:
    """The most common kind of living node with GPUs, and how many of them there are."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    # All nodes are asked at once, because importing torch takes some seconds on each.
    asked = {n["NodeID"]: _ask_memory(n["NodeID"]) for n in alive if n["NodeID"] not in KNOWN_GIB}
    for node in alive:
        if node["NodeID"] in asked:
            address = str(node["NodeManagerAddress"])
            KNOWN_GIB[node["NodeID"]] = _told_memory(asked[node["NodeID"]], address)
    kinds = Counter((int(node["Resources"]["GPU"]), KNOWN_GIB[node["NodeID"]]) for node in alive)
    (gpus_per_node, memory_gib), num_nodes = kinds.most_common(1)[0]
    return GpuNodes(num_nodes, gpus_per_node, memory_gib)


def _ask_memory(node_id: str) -> Any:
    """Ask a node for the memory of one of its GPUs, by a task that requests no GPU from Ray,
    because all of them may be in use."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    # A separate process, so that its hold on the GPU ends with it.
    ask: Any = ray.remote(num_cpus=0, max_calls=1, scheduling_strategy=there)(_memory_reader())
    return ask.remote()


def _told_memory(answer: Any, address: str) -> float:
    """The memory in GiB that a node reported. Raises `InputError` when it could not read it."""
    import ray

    try:
        return float(ray.get(answer))
    except ray.exceptions.RayTaskError as error:
        reason = str(error.cause).strip().splitlines()[0]
        raise InputError(
            f"Ray counts GPUs on node {address}, but their memory cannot be read there: {reason}; "
            "make CUDA work on it, or set engine.tensor_parallel_size so that nothing is planned"
        ) from None


def _memory_reader() -> Callable[[], float]:
    """The function that a node runs."""
    module, _, name = os.environ.get(PRETENDED_MEMORY, "").partition(":")
    reader: Callable[[], float] = (
        getattr(importlib.import_module(module), name) if module else _cuda_memory_gib
    )
    return reader


def _cuda_memory_gib() -> float:
    """The memory of the node's first GPU as CUDA reports it. Ray hides none from this task."""
    import torch

    return float(torch.cuda.get_device_properties(0).total_memory) / 2**30
