"""Fits the engine pool to the cluster at hand: what the config left open is planned here.

On the driver, once Ray runs: which GPUs there are, and `cluster.planner` for the rest. On a node
with a GPU, in a task: how much memory one of them has.
"""

from __future__ import annotations

from collections import Counter

from cluster.engine import EngineSettings
from cluster.models import Model
from cluster.planner import GpuNodes, ModelShape, PoolPlan, plan_pool


def fit_engines(settings: EngineSettings, model: Model) -> tuple[EngineSettings, str]:
    """The settings with the parallel sizes planned, and one paragraph that says how.

    A config that names its tensor parallel size is taken at its word; so is a CPU.

    Raises `InputError` with the numbers when the model fits nowhere.
    """
    if not settings.use_gpu or settings.tensor_parallel_size is not None:
        return settings, ""
    nodes = _gpu_nodes()
    if nodes is None:  # they come with the first request for one
        return settings, ""
    return fit_to_nodes(settings, model, nodes)


def fit_to_nodes(
    settings: EngineSettings, model: Model, nodes: GpuNodes
) -> tuple[EngineSettings, str]:
    """What `fit_engines` makes of these GPUs. Raises `InputError` when the model fits nowhere."""
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
    return planned, plan.describe()


def _plan(settings: EngineSettings, model: Model, nodes: GpuNodes) -> PoolPlan:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model.fetch(), trust_remote_code=False)
    return plan_pool(
        ModelShape.from_config(config.to_dict(), name=model.path),
        nodes,
        context=settings.max_model_len,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        max_num_seqs=settings.max_num_seqs,
    )


def _gpu_nodes() -> GpuNodes | None:
    """The commonest kind of node with GPUs that is alive, and how many of it there are."""
    import ray

    counts = Counter(
        int(node["Resources"]["GPU"])
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU")
    )
    if not counts:
        return None
    gpus_per_node, num_nodes = counts.most_common(1)[0]
    memory_gib = float(ray.get(ray.remote(num_cpus=0, num_gpus=1)(_gpu_memory_gib).remote()))
    return GpuNodes(num_nodes, gpus_per_node, memory_gib)


def _gpu_memory_gib() -> float:
    import torch

    return float(torch.cuda.get_device_properties(0).total_memory) / 2**30
