"""Resources that have to be free at the same moment, and the visible wait for them.

Runs on the driver only, once Ray has started. Two runs that took GPUs one by one could each hold
half of what they need for ever. So a run requests all its GPUs as one placement group, which Ray
grants completely or not at all, and which an autoscaler sees while the run waits. Example::

    need = Need("8 engines", ({"GPU": 1, "CPU": 1},) * 8, "lower engine.min_workers")
    with reserved(need, patience, stop) as group:
        ...  # all 8 GPUs are held by `group`

While it waits, it prints `waiting for 8 GPUs: 4 of 16 free (2 min 10 s), to start 8 engines`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from cluster.errors import InputError, InterruptedRunError
from cluster.events import record
from cluster.inference.progress import format_seconds
from cluster.session import StopRequest
from cluster.terminal import ProgressLine

Bundle = Mapping[str, float]
"""Resources that have to be on one node, with Ray's names: `{"GPU": 4, "CPU": 1}`."""

ASK_EVERY_S = 0.2
QUIET_S = 2.0
"""A shorter wait is not reported: Ray needs this long to register resources that were released."""
LAUNCHED_NODES_S = 900.0
"""How long a cluster with a launcher or an operator gets to start machines."""
JOINING_NODES_S = 30.0
"""How long a cluster that was started by hand gets, because nodes may still be joining."""
LAUNCHED_LABEL = "ray.io/node-group"
"""Ray's label on a node that a cluster launcher, KubeRay or another autoscaler started."""


@dataclass(frozen=True, slots=True)
class Need:
    """The resources that one phase of a run needs at the same moment."""

    what: str
    """What is started with them, as in `8 engines`."""
    bundles: tuple[Bundle, ...]
    advice: str
    """What to change if the cluster has too little: `lower training.num_workers`."""
    without_gpus: str = ""
    """What to change if the cluster has no GPU at all: `set engine.use_gpu: false`."""

    def total(self, resource: str) -> float:
        """The amount of a resource in all bundles together."""
        return total(self.bundles, resource)

    @property
    def subject(self) -> str:
        """The beginning of a sentence: `8 engines need` or `1 engine needs`."""
        return f"{self.what} need{'s' if self.what.startswith('1 ') else ''}"

    def gpus_alone(self) -> Need:
        """The same need without its CPUs."""
        gpus = tuple({"GPU": b["GPU"]} for b in self.bundles if b.get("GPU"))
        return replace(self, bundles=gpus)

    @property
    def scarce(self) -> str:
        """The resource that is counted first: GPUs if any are needed."""
        return "GPU" if self.total("GPU") else "CPU"

    def hardware(self) -> str:
        """The smallest sufficient hardware: `8 GPUs`, or `8 GPUs (4 together on one node)`."""
        size = max(bundle.get(self.scarce, 0) for bundle in self.bundles)
        together = f" ({size:g} together on one node)" if size > 1 else ""
        return f"{_amount(self.bundles, self.scarce)}{together}"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait and how often to report it; a `ClusterSettings` has both."""

    progress_every_s: float = 5.0
    gpu_wait_s: float | None = None
    """The wait for resources that the cluster does not have; null means `default_wait_s`."""


def total(bundles: Iterable[Bundle], resource: str) -> float:
    """The amount of a resource in all bundles or nodes together."""
    return sum(bundle.get(resource, 0) for bundle in bundles)


def has_room(bundles: Sequence[Bundle], nodes: Sequence[Bundle]) -> bool:
    """Whether the nodes can hold all bundles at once, each bundle on a single node.

    The largest bundles are placed first, each on the fullest node that has room for it. If all
    bundles are alike, as they are here, this finds a placement whenever there is one.
    """
    left = [dict(node) for node in nodes]
    for bundle in sorted(bundles, key=_size, reverse=True):
        roomy = [node for node in left if _holds(node, bundle)]
        if not roomy:
            return False
        node = min(roomy, key=_size)
        for name, amount in bundle.items():
            node[name] = node.get(name, 0) - amount
    return True


def _holds(node: Bundle, bundle: Bundle) -> bool:
    # Ray counts in units of 1/10,000; sums of such fractions are not exact.
    return all(node.get(name, 0) > amount - 1e-6 for name, amount in bundle.items())


def _size(bundle: Bundle) -> tuple[float, float]:
    return bundle.get("GPU", 0), bundle.get("CPU", 0)


def all_nodes() -> list[dict[str, float]]:
    """The resources of each living node, whether or not they are in use."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def free_nodes() -> list[dict[str, float]]:
    """The free resources of each living node."""
    import ray

    return list(ray._private.state.available_resources_per_node().values())


def default_wait_s() -> float:
    """How long to wait for missing resources; a Ray that this run started gets no more nodes."""
    import ray

    if ray._private.worker._global_node.head:
        return 0.0
    launched = any(LAUNCHED_LABEL in node.get("Labels", {}) for node in ray.nodes())
    return LAUNCHED_NODES_S if launched else JOINING_NODES_S


def wait_for_room(need: Need, patience: Any, stop: StopRequest) -> None:
    """Wait until the cluster has the resources, even if they are in use.

    Raises as `reserved` does.
    """
    if has_room(need.bundles, all_nodes()):
        return
    with _group(need) as group:
        _wait(need, patience, stop, lambda: has_room(need.bundles, all_nodes()) or _is_there(group))


def wait_until_free(need: Need, patience: Any, stop: StopRequest) -> None:
    """Wait until the resources are free at the same moment, for a caller that then takes them
    itself in one step. Raises as `reserved` does."""
    with reserved(need, patience, stop):
        pass


@contextmanager
def reserved(need: Need, patience: Any, stop: StopRequest) -> Iterator[Any]:
    """Hold all resources or none; yields the placement group, one bundle for each in `need`.

    `patience` is a `ClusterSettings` or a `Patience`. Raises `InputError` when the cluster does not
    have the resources, even in use, and does not get them in time, and `InterruptedRunError` when
    asked to stop.
    """
    with _group(need) as group:
        _wait(need, patience, stop, lambda: _is_there(group))
        yield group


@contextmanager
def _group(need: Need) -> Iterator[Any]:
    """Request the bundles close to each other; what was granted is released at the end."""
    import ray

    bundles = [{name: n for name, n in bundle.items() if n} for bundle in need.bundles]
    group = ray.util.placement_group(bundles, strategy="PACK")
    try:
        yield group
    finally:
        ray.util.remove_placement_group(group)


def _is_there(group: Any) -> bool:
    # The group's `wait` counts in whole seconds, and does not return early for a signal.
    return _state(group) == "CREATED"


def has_lost_bundles(group: Any) -> bool:
    """Whether a node of a granted group is gone and Ray is looking for another."""
    return _state(group) == "RESCHEDULING"


def _state(group: Any) -> str:
    import ray

    return str(ray.util.placement_group_table(group)["state"])


def _wait(need: Need, patience: Any, stop: StopRequest, done: Callable[[], bool]) -> None:
    """Poll until `done`, and show what the run is waiting for; raises as `reserved` does."""
    began = time.monotonic()
    lacking_since: float | None = None
    given = patience.gpu_wait_s
    wait_s = default_wait_s() if given is None else given
    line, has_said = ProgressLine(patience.progress_every_s), False
    while not done():
        if stop.is_set():
            raise InterruptedRunError(f"stopped while waiting for {need.hardware()}")
        nodes, now = all_nodes(), time.monotonic()
        has_enough = has_room(need.bundles, nodes)
        lacking_since = None if has_enough else lacking_since or now
        if lacking_since is not None and now - lacking_since >= wait_s:
            raise InputError(refusal(need, nodes, now - lacking_since))
        if now - began >= QUIET_S:
            limit = None if has_enough else wait_s
            shown = waiting_line(need, nodes, free_nodes(), now - began, limit)
            line.show(shown, due=not has_said)
            if not has_said:
                record("waiting", what=need.what, needed=need.hardware())
            has_said = True
        time.sleep(ASK_EVERY_S)
    if has_said:
        waited = format_seconds(time.monotonic() - began)
        record("waited", what=need.what, seconds=round(time.monotonic() - began, 1))
        line.end(
            f"{_amount(need.bundles, need.scarce)} to start {need.what}: available after {waited}"
        )


def waiting_line(
    need: Need, nodes: Sequence[Bundle], free: Sequence[Bundle], waited: float, limit: float | None
) -> str:
    """Say what the run is waiting for, how much of it there is, and how long it has waited.

    `limit` is given when the nodes do not have enough, even in use; the wait then ends after it.
    """
    counts = [f"{total(free, need.scarce):g} of {total(nodes, need.scarce):g} free"]
    if total(free, need.scarce) >= need.total(need.scarce) and not has_room(need.bundles, free):
        if total(free, "CPU") < need.total("CPU"):
            counts.append(f"{total(free, 'CPU'):g} of {_amount(need.bundles, 'CPU')} for them")
        else:
            counts.append("not together on one node")
    until = f" of at most {format_seconds(limit)}" if limit is not None else ""
    return (
        f"waiting for {_amount(need.bundles, need.scarce)}: {', '.join(counts)} "
        f"({format_seconds(waited)}{until}), to start {need.what}"
    )


def refusal(need: Need, nodes: Sequence[Bundle], waited: float) -> str:
    """Explain in one sentence why a run ends that needs more than the cluster has."""
    after = f" after a wait of {format_seconds(waited)}" if round(waited) else ""
    if need.total("GPU") and not total(nodes, "GPU"):
        return (
            f"{need.subject} {need.hardware()}, but the cluster has no GPU{after}; "
            f"{need.without_gpus or need.advice}, or run on at least {need.hardware()}"
        )
    short = need.scarce if total(nodes, "CPU") >= need.total("CPU") else "CPU"
    if total(nodes, need.scarce) < need.total(need.scarce):
        short = need.scarce
    has = " + ".join(f"{node[short]:g}" for node in nodes if node.get(short))
    per_node = f" ({has} on its nodes)" if "+" in has else ""
    needs = need.hardware() if short == need.scarce else _amount(need.bundles, short)
    return (
        f"{need.subject} {needs} at once, but the cluster has {_amount(nodes, short)}{per_node}"
        f"{after}; {need.advice}, or run on at least {needs}"
    )


def _amount(bundles: Sequence[Bundle], resource: str) -> str:
    number = total(bundles, resource)
    return f"{number:g} {resource}{'' if number == 1 else 's'}"
