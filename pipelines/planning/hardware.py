"""Check what a run will need from the cluster, before anything is generated.

The needs of a step are known from the config. Otherwise missing hardware would be noticed only
after all the work of the earlier steps. Whether it is free at the moment is not checked; each step
waits.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from cluster.errors import InputError
from cluster.gpus import Need, wait_for_room
from cluster.inference.engine import EngineSettings
from cluster.inference.gpu_plan import ModelShape
from cluster.inference.pool import engines_need
from cluster.node_facts import ask_all_nodes, try_cache, try_storage
from cluster.session import StopRequest, StorageSettings
from cluster.store.folder import Folder
from cluster.store.step import Step
from cluster.terminal import say
from cluster.tracking import TrackingSettings, refuse_missing_trackers
from pipelines.config import Config
from pipelines.plan import lay_out_rounds
from pipelines.planning.base_checks import Base
from pipelines.planning.preflight import check_base, describe
from pipelines.run import Run
from pipelines.synthesis.chain import Recipe
from training.hardware import training_need
from training.nodes import read_nodes
from training.placement import check_training_fits

NODE_TIMEOUT_S = 120.0
GENERATE = ("guidelines", "paths", "predictions")


def wait_for_hardware(run: Run, stop: StopRequest, until: str | None = None) -> None:
    """Wait until the cluster has what the steps up to `until` will need, even if it is in use.

    Raises `InputError` when the cluster does not have it and does not get it in time.
    """
    for need in _needs(run, until):
        wait_for_room(need, run.config.cluster, stop)


def prepare(run: Run, stop: StopRequest, until: str | None = None) -> None:
    """Check, before anything is generated, what the steps up to `until` will need: the base model,
    the hardware, the abilities of each node, and the memory of the training.

    Raises `InputError`. Needs a running Ray. If all steps are done, nothing is checked.
    """
    to_make = {name for name, step in _steps(run, until) if not step.is_done}
    if not to_make & {*GENERATE, "model"}:
        return
    seen = check_base(run.config, Recipe.load(0, run.config.synthesis), until, may_fetch=True)
    for line in describe(seen) if seen else ():
        say(line)
    wait_for_hardware(run, stop, until)
    check_nodes(run, to_train="model" in to_make)
    if seen and "model" in to_make:
        check_training_fits(run.config.training, shape_of(seen, run.base.path), read_nodes())


def shape_of(seen: Base, name: str) -> ModelShape | None:
    """The sizes of the base model with this name; None for an unsupported architecture."""
    try:
        return ModelShape.from_config(seen.config, name=name)
    except InputError:
        return None


@dataclass(frozen=True)
class Readiness:
    """What a node reports about itself."""

    num_gpus: int
    storage_error: str | None
    tracker_error: str | None
    cache_error: str | None = None


def check_nodes(run: Run, *, to_train: bool) -> None:
    """Raise `InputError` when a node cannot write and read the run's folder, or when the training's
    trackers are missing where it will run. Nodes that do not answer are ignored."""
    folder = run.folder.child(f".preflight-{uuid.uuid4().hex[:12]}")
    tracking = run.config.training.tracking if to_train else TrackingSettings()
    storage = run.config.storage
    # Models are copied to it from a network store, and converted in it.
    cache = storage.cache if not folder.is_local or run.base.path.startswith("pypi:") else None
    try:
        folder.write_bytes("driver", folder.name.encode())
        answers = ask_all_nodes(
            look_at_node, lambda name: (name, folder, tracking, cache), NODE_TIMEOUT_S
        )
    finally:
        folder.delete()
    nodes = {name: each for name, each in answers.items() if isinstance(each, Readiness)}
    refuse_nodes(nodes, storage)


def look_at_node(
    name: str, folder: Folder, tracking: TrackingSettings, cache: str | None
) -> Readiness:
    """Runs on each node; `folder` is used only for this, and the driver has written a file to
    it. `cache` is None if the run copies no model."""
    import ray

    there = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
    gpus = int(there.get(ray.get_runtime_context().get_node_id(), {}).get("GPU", 0))
    missing = None
    try:
        refuse_missing_trackers(tracking)
    except InputError as error:
        missing = str(error)
    return Readiness(gpus, try_storage(folder, name), missing, cache and try_cache(cache))


def refuse_nodes(nodes: Mapping[str, Readiness], storage: StorageSettings) -> None:
    """Raise `InputError` that names the first node with a problem.

    If some nodes have GPUs, a training runs on those only.
    """
    trains_on_gpus = any(node.num_gpus for node in nodes.values())
    for name, node in nodes.items():
        if node.storage_error:
            raise InputError(
                f"storage.root {storage.root!r}: node {name} cannot use it ({node.storage_error}); "
                "name a folder that all nodes share and may write, or a URI"
            )
        if node.cache_error:
            raise InputError(
                f"storage.cache {storage.cache!r}: node {name} cannot write it "
                f"({node.cache_error}); name a folder that every node can write"
            )
        if node.tracker_error and (node.num_gpus or not trains_on_gpus):
            raise InputError(f"on node {name}: {node.tracker_error}")


def _needs(run: Run, until: str | None) -> Iterator[Need]:
    """The needs of the unfinished steps up to `until`, one for each kind of step.

    The needs of a training are known once the nodes exist for which the engines waited.
    """
    open_steps = {name for name, step in _steps(run, until) if not step.is_done}
    for engine in engines_of(run.config, open_steps):
        if engine.use_gpu:
            # With few CPUs, `cluster.inference.engine_sizing` uses fewer for each engine.
            yield engines_need(engine).gpus_alone()
    if "model" in open_steps:
        yield training_need(run.config.training)


def engines_of(config: Config, steps: Collection[str]) -> list[EngineSettings]:
    """The different engines that these steps need, one after another.

    The paths may come from another engine than everything else (`synthesis.engine`).
    """
    of_paths = config.synthesis.engine or config.engine
    wanted = {"guidelines": config.engine, "paths": of_paths, "predictions": config.engine}
    engines = [wanted[name] for name in GENERATE if name in steps]
    return [engine for n, engine in enumerate(engines) if engine not in engines[:n]]


def _steps(run: Run, until: str | None) -> Iterator[tuple[str, Step]]:
    """The steps after the questions, up to `until`, each with the name of its kind."""
    if until == "questions":
        return
    if run.guidelines_step is not None:
        yield "guidelines", run.guidelines_step
    if until == "guidelines":
        return
    for round_ in lay_out_rounds(run):
        steps = {
            "paths": [round_.paths],
            "examples": [round_.examples],
            "model": [branch.model for branch in round_.branches],
            "predictions": [
                *run.base_steps().values(),
                *(branch.predictions for branch in round_.branches),
            ],
            "scores": [branch.scores for branch in round_.branches],
        }
        for name, of_name in steps.items():
            yield from ((name, step) for step in of_name)
            if until in (f"{round_.number}/{name}", name):
                return
