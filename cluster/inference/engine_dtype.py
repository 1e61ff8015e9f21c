"""The number type of a run's engines on CPUs: decided once, for all nodes and all models.

`engine.dtype: auto` is bfloat16 if the processors have instructions for it. A base model and a
tuned one have to be served in the same type, or their comparison would also measure the type. Nodes
may differ, and a stopped run may continue on another machine, so the decision is made before the
first engine starts and kept in the run's folder.
"""

from __future__ import annotations

from typing import Any

from cluster.cpu_dtype import explain_fast_dtype, fast_dtype, this_processor_flags
from cluster.errors import DamagedFileError
from cluster.inference.engine import EngineSettings
from cluster.store.folder import Folder

DTYPE_FILE = "engine_dtype.json"
DTYPES = ("bfloat16", "float32")
"""What `fast_dtype` gives."""


def pin_dtype(settings: EngineSettings, folder: Folder) -> tuple[EngineSettings, str]:
    """Return the settings with a type in place of `auto`, and a sentence that names the type if it
    is new or differs from what these nodes would get.

    On a GPU, for an endpoint, and for a type that the config names, the settings are unchanged.
    `folder` is the run's. Ray must be running: each of its nodes is asked for its processor.
    """
    if settings.use_gpu or settings.is_endpoint or settings.dtype != "auto":
        return settings, ""
    flags = _common_flags()
    fast, why = fast_dtype(flags), f"engine.dtype auto is {explain_fast_dtype(flags)}"
    dtype = _read_dtype(folder)
    if dtype is None:
        folder.write_json(DTYPE_FILE, {"dtype": fast})
        return settings.model_copy(update={"dtype": fast}), why
    told = "" if dtype == fast else f"engine.dtype auto is {dtype}, as at the start of this run"
    return settings.model_copy(update={"dtype": dtype}), told


def _read_dtype(folder: Folder) -> str | None:
    """The type that the run began with; None if it has none. Raises `DamagedFileError`."""
    known = folder.read_json(DTYPE_FILE)
    dtype = known.get("dtype") if isinstance(known, dict) else None
    if dtype in DTYPES:
        return str(dtype)
    if DTYPE_FILE in folder.file_names(".json"):
        raise DamagedFileError(
            f"{folder.uri}/{DTYPE_FILE} is damaged, which has the number type of the engines; "
            f'restore it, or write {{"dtype": "{DTYPES[0]}"}} or {{"dtype": "{DTYPES[1]}"}}'
        )
    return None


def _common_flags() -> frozenset[str]:
    """The processor flags that all nodes share on which an engine can start."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and _has_cpus(node)]
    ask = ray.remote(num_cpus=0)(this_processor_flags)
    # Soft affinity: a node that is lost in the meantime need not answer.
    asked = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)).remote()
        for node in nodes
        if node != here
    ]
    own = [this_processor_flags()] if here in nodes or not asked else []
    return frozenset.intersection(*own, *ray.get(asked))


def _has_cpus(node: dict[str, Any]) -> bool:
    return bool(node["Resources"].get("CPU"))
