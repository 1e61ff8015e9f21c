"""The cores and the memory of a machine that a vLLM engine on a CPU gets.

Runs on the engine's node before the engine starts.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.cpu_dtype import this_processor_dtype
from cluster.errors import InputError
from cluster.inference.engine import EngineSettings

MOST_CORES = 65_535


def served_dtype(settings: EngineSettings) -> str:
    """Resolve `engine.dtype` on this machine: on a CPU, `auto` is the faster type."""
    is_open = settings.dtype == "auto" and not settings.use_gpu
    return this_processor_dtype() if is_open else settings.dtype


def bind_cpu(cores: str, kv_cache: int) -> None:
    """Set the cores (as in `0-1`) and the cache (in GiB) of the next vLLM engine of this process.

    vLLM reads both when an engine starts, so this also works after vLLM was imported.
    """
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cores
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache)


def cpu_bind(worker_index: int, workers_per_node: int, num_cores: int) -> str:
    """The cores of one worker, as in `0-1`: a node's cores divided evenly among its workers.

    With more workers than cores, several workers share a core. An index of at least
    `workers_per_node` starts again at the first worker's cores.
    """
    index = worker_index % workers_per_node
    first = index * num_cores // workers_per_node
    last = max(first, (index + 1) * num_cores // workers_per_node - 1)
    return str(first) if first == last else f"{first}-{last}"


def parse_cores(field: str, cores: str) -> list[int]:
    """The cores in `0-1`, `0,2` or `0-1|2-3` (one part per rank); empty for a word such as `auto`.

    Raises `InputError` that names the `field` for any other text.
    """
    if cores in ("auto", "nobind", "all"):
        return []
    found: list[int] = []
    for part in filter(None, cores.replace("|", ",").split(",")):
        first, dash, last = part.strip().partition("-")
        is_number = first.isdigit() and (not dash or last.isdigit())
        if not is_number or max(int(first), int(last or 0)) > MOST_CORES:
            raise InputError(f"{field} {cores!r}: give cores as in 0-3 or 0,2, or auto")
        found += range(int(first), int(last or first) + 1)
    return found


def kv_cache_gib(
    model_config: Mapping[str, Any],
    context: int,
    max_num_seqs: int,
    dtype_bytes: int,
    memory_gib: float,
) -> int:
    """GiB of key-value cache in which `max_num_seqs` sequences of `context` tokens fit at once.

    `model_config` is the parsed config.json and `dtype_bytes` the size of one number in the cache.
    The result is at least 1, and otherwise at most a third of the machine's `memory_gib`, which is
    also the result for a model whose config does not give its shape.
    """
    limit = math.floor(memory_gib / 3)
    token_bytes = _kv_token_bytes(model_config.get("text_config") or model_config, dtype_bytes)
    if token_bytes is None:
        return max(1, limit)
    return max(1, min(limit, math.ceil(token_bytes * context * max_num_seqs / 2**30)))


def _kv_token_bytes(config: Mapping[str, Any], dtype_bytes: int) -> int | None:
    """Bytes that one token takes in the cache: a key and a value in each layer."""
    try:
        layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
    except KeyError:
        return None
    kv_heads = config.get("num_key_value_heads") or heads
    return int(2 * layers * kv_heads * head_dim * dtype_bytes)


def bind_cpu_share(
    model: str, settings: EngineSettings, worker_index: int, workers_per_node: int
) -> None:
    """Bind the next engine to its share of this machine's cores and memory, unless the settings
    name them. `model` is the folder that will be served; the shape of a hub name is unknown."""
    import psutil

    config_file = Path(model) / "config.json"
    config = json.loads(config_file.read_text()) if config_file.exists() else {}
    context = settings.max_model_len or config.get("max_position_embeddings") or 4096
    dtype_bytes = 4 if served_dtype(settings) in ("float32", "float") else 2
    memory_gib = psutil.virtual_memory().total / 2**30 / workers_per_node
    planned = kv_cache_gib(config, context, settings.max_num_seqs, dtype_bytes, memory_gib)
    cores = cpu_bind(worker_index, workers_per_node, len(os.sched_getaffinity(0)))
    auto = settings.omp_threads_bind == "auto"
    bind_cpu(cores if auto else settings.omp_threads_bind, settings.kv_cache_gib or planned)
