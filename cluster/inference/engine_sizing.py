"""Fits the engine pool to the cluster at hand: what the config left open is planned here.

On the driver, once Ray runs: which GPUs there are, and `cluster.inference.gpu_plan` for the rest.
On each node with GPUs, in a task that takes none of them: how much memory one of them has."""

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
"""Of the environment, for tests alone: `module:name` of a function that tells the GiB of a GPU, for
GPUs that Ray counts and nobody can ask."""

KNOWN_GIB: dict[str, float] = {}
"""The memory of a GPU of each node that was asked, by the node's id, which no other ever gets."""


def fit_engines(settings: EngineSettings, model: Model) -> tuple[EngineSettings, str]:
    """The settings with the parallel sizes and the number of engines planned, and one paragraph
    that says how.

    A config that names its tensor parallel size is taken at its word; so is a CPU.

    Raises `InputError` with the numbers when the model fits nowhere, and when the memory of the
    GPUs cannot be read.
    """
    nodes = gpu_nodes()
    if not settings.use_gpu or not nodes:  # none: a pool that needs them waits for them
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
            f" A node has fewer CPUs than its engines would take: engine.cpus_per_worker is "
            f"{cpus:g} instead of {settings.cpus_per_worker:g}."
        )
        settings = settings.model_copy(update={"cpus_per_worker": cpus})
    return settings, said.strip()


def gpu_nodes() -> list[dict[str, float]]:
    """What each living node with GPUs has."""
    return [node for node in all_nodes() if node.get("GPU")]


def engines_on(nodes: Sequence[Bundle], settings: EngineSettings) -> int:
    """How many engines of the settings' size the GPUs of the nodes hold."""
    if settings.placement_group:
        return int(sum(node["GPU"] for node in nodes)) // settings.ranks
    return sum(int(node["GPU"]) // settings.ranks for node in nodes)


def cpus_per_engine(nodes: Sequence[Bundle], settings: EngineSettings) -> float:
    """The logical CPUs of an engine: what the settings say, or what the node with the fewest has
    for each of its engines, so that no GPU is idle for want of a CPU."""
    if settings.placement_group:
        return settings.cpus_per_worker
    shares = [
        int(100 * node.get("CPU", 0) / engines) / 100
        for node in nodes
        if (engines := int(node["GPU"]) // settings.ranks)
    ]
    return min([settings.cpus_per_worker, *shares])


def _planned(settings: EngineSettings, model: Model) -> tuple[EngineSettings, str]:
    """The settings as `cluster.inference.gpu_plan` completes them, and its paragraph."""
    try:
        nodes = _gpu_nodes()
    except InputError as error:
        if settings.implementation == EngineSettings().implementation:
            raise
        # Another engine may need no CUDA; what it needs of a GPU is for it to say.
        alone = settings.model_copy(update={"tensor_parallel_size": 1})
        replicas = max(1, engines_on(gpu_nodes(), alone))
        said = f"One engine for each GPU, since nothing can be planned: {error}."
        return alone.model_copy(update={"max_workers": settings.max_workers or replicas}), said
    return fit_to_nodes(settings, model, nodes)


def fit_to_nodes(
    settings: EngineSettings, model: Model, nodes: GpuNodes
) -> tuple[EngineSettings, str]:
    """What the planner makes of these GPUs: the settings without an open size, and its paragraph.

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
            "cache holds no more; what is set together with engine.tensor_parallel_size is kept."
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
    """The commonest kind of node with GPUs that is alive, and how many of it there are."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    # All are asked at once: importing torch takes each of them some seconds.
    asked = {n["NodeID"]: _ask_memory(n["NodeID"]) for n in alive if n["NodeID"] not in KNOWN_GIB}
    for node in alive:
        if node["NodeID"] in asked:
            address = str(node["NodeManagerAddress"])
            KNOWN_GIB[node["NodeID"]] = _told_memory(asked[node["NodeID"]], address)
    kinds = Counter((int(node["Resources"]["GPU"]), KNOWN_GIB[node["NodeID"]]) for node in alive)
    (gpus_per_node, memory_gib), num_nodes = kinds.most_common(1)[0]
    return GpuNodes(num_nodes, gpus_per_node, memory_gib)


def _ask_memory(node_id: str) -> Any:
    """Ask a node for the memory of one of its GPUs, by a task that takes no GPU of Ray's: they may
    all be in use."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    # A process for this alone, whose hold on the GPU ends with it.
    ask: Any = ray.remote(num_cpus=0, max_calls=1, scheduling_strategy=there)(_memory_reader())
    return ask.remote()


def _told_memory(answer: Any, address: str) -> float:
    """What a node told, in GiB. Raises `InputError` when it could not read it."""
    import ray

    try:
        return float(ray.get(answer))
    except ray.exceptions.RayTaskError as error:
        reason = str(error.cause).strip().splitlines()[0]
        raise InputError(
            f"Ray counts GPUs on the node {address}, whose memory cannot be read there: {reason}; "
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
    """Of the first GPU of this node, as CUDA reports it. Ray hides none from a task without."""
    import torch

    return float(torch.cuda.get_device_properties(0).total_memory) / 2**30
