"""Where a training runs: decide by arithmetic what the config leaves to the cluster.

Example: on two nodes of four GPUs, a batch of 16 in micro-batches of 2 is split over all of them,
`8 workers on all 8 GPUs, in bfloat16`; on a node of six it is split over four, and the sentence
says why.

These are pure functions of the settings and of the nodes, which `training.nodes` reads from Ray.
The driver calls them before anything is generated, and again when a training starts. Sizes are in
bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.errors import InputError
from cluster.inference.gpu_plan import ModelShape
from training.memory import BatchSize, ModelSize, explain_shortage, num_adapted
from training.settings import PlacedTraining, TrainingSettings

Dtype = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class Node:
    """What one node of the cluster offers to a training."""

    name: str
    num_cpus: int
    num_gpus: int
    memory: float
    """Memory of the node itself."""
    dtype: Dtype
    """The number type that its processor computes fastest."""
    card_memory: float | None = None
    """Memory of each of its GPUs; None if it cannot be read."""
    card_dtype: Dtype = "bfloat16"
    """The number type that its GPUs compute fastest."""
    has_cards: bool = True
    """Whether torch can use the GPUs that Ray counts; only relevant if Ray counts some."""

    def room(self, cpus: int, gpus: int) -> int:
        """How many workers with these cores and GPUs fit on the node."""
        by_cpus = self.num_cpus // cpus
        return min(by_cpus, self.num_gpus // gpus) if gpus else by_cpus


@dataclass(frozen=True)
class Nodes:
    """The nodes that exist, and those that an autoscaler may add."""

    there: Sequence[Node]
    largest: Mapping[str, float] = field(default_factory=dict)
    """GPUs and CPUs (with Ray's names) of the cluster at its largest; empty without autoscaler."""

    @property
    def num_gpus(self) -> int:
        return sum(node.num_gpus for node in self.there)

    @property
    def num_cpus(self) -> int:
        return sum(node.num_cpus for node in self.there)

    @property
    def has_cards(self) -> bool:
        """Whether a node has cards, or an autoscaler may start a node with cards."""
        there = any(node.num_gpus and node.has_cards for node in self.there)
        return there or self.largest.get("GPU", 0) > 0

    def room(self, cpus: int, gpus: int) -> int:
        """How many workers fit on the existing nodes."""
        return sum(node.room(cpus, gpus) for node in self.there)

    def largest_room(self, cpus: int, gpus: int) -> int:
        """How many workers fit on the cluster at its largest."""
        growing = int(self.largest.get("CPU", 0)) // cpus
        if gpus:
            growing = min(growing, int(self.largest.get("GPU", 0)) // gpus)
        return max(self.room(cpus, gpus), growing)


@dataclass(frozen=True)
class Placement:
    """The settings with nothing left open, and a sentence that says what was chosen and why."""

    settings: PlacedTraining
    sentence: str


def place(
    settings: TrainingSettings,
    nodes: Nodes,
    *,
    began: Mapping[str, Any] | None = None,
    may_wait: bool = False,
) -> Placement:
    """Resolve the settings that are `auto`.

    `began` has the facts of an existing checkpoint (`num_workers`, `dtype`): a training continues
    as it began. With `may_wait`, a temporary lack of room is not an error. Raises `InputError` with
    the numbers when the workers do not fit.
    """
    began = began or {}
    gpus = _gpus_per_worker(settings, nodes)
    smallest_cpus = 1 if settings.cpus_per_worker == "auto" else settings.cpus_per_worker
    room = nodes.room(smallest_cpus, gpus) or nodes.largest_room(smallest_cpus, gpus)
    if settings.num_workers != "auto":
        workers = settings.num_workers
    else:
        workers = int(began.get("num_workers") or _most_workers(settings, room))
    decided = {
        "num_workers": workers,
        "gpus_per_worker": gpus,
        "cpus_per_worker": _cpus_per_worker(settings, nodes, workers, gpus),
        "dtype": _dtype(settings, nodes, gpus, began),
    }
    placed = PlacedTraining(**dict(settings) | decided)
    if not may_wait:
        refuse_without_room(placed, nodes)
    if gpus and nodes.num_gpus and not nodes.has_cards:
        raise InputError(
            f"training.gpus_per_worker {gpus}: Ray counts {nodes.num_gpus} GPUs, but torch can use "
            "none of them (no card, no driver, or a CPU build of torch); set it to 0 to train on "
            "CPUs, or install requirements/gpu.lock there"
        )
    return Placement(placed, _sentence(settings, placed, nodes, room, began))


def refuse_without_room(placed: PlacedTraining, nodes: Nodes) -> None:
    """Raise `InputError` for more workers than fit on the cluster at its largest."""
    workers, cpus, gpus = placed.num_workers, placed.cpus_per_worker, placed.gpus_per_worker
    if workers <= nodes.largest_room(cpus, gpus):
        return
    where = "this machine" if len(nodes.there) == 1 else "the cluster"
    raise InputError(
        f"training.num_workers {workers} workers of {gpus} GPUs and {cpus} CPUs do not fit: "
        f"{where} has {nodes.num_gpus} GPUs and {nodes.num_cpus} CPUs, room for "
        f"{nodes.room(cpus, gpus)}; lower training.num_workers, gpus_per_worker or "
        "cpus_per_worker, or set them to auto"
    )


def _gpus_per_worker(settings: TrainingSettings, nodes: Nodes) -> int:
    if settings.gpus_per_worker != "auto":
        return settings.gpus_per_worker
    return int(nodes.has_cards)


def _most_workers(settings: TrainingSettings, room: int) -> int:
    """The largest number of workers that a batch splits over; 1 if there is no room at all."""
    most = min(room, settings.global_batch_size)
    return next((n for n in range(most, 0, -1) if settings.splits_over(n)), 1)


def _cpus_per_worker(settings: TrainingSettings, nodes: Nodes, workers: int, gpus: int) -> int:
    """The cores of a node divided among its workers if the CPU trains or updates offloaded
    state."""
    if settings.cpus_per_worker != "auto":
        return settings.cpus_per_worker
    if gpus and not settings.offload_optimizer:
        return 1
    most = max((node.num_cpus for node in nodes.there), default=1)
    return next((cpus for cpus in range(most, 1, -1) if nodes.room(cpus, gpus) >= workers), 1)


def _dtype(settings: TrainingSettings, nodes: Nodes, gpus: int, began: Mapping[str, Any]) -> Dtype:
    """One type for all workers, wherever Ray places them."""
    if settings.dtype != "auto":
        return settings.dtype
    if began.get("dtype") in ("bfloat16", "float32"):
        return began["dtype"]  # type: ignore[no-any-return]
    return "float32" if _slow_nodes(nodes, gpus) else "bfloat16"


def _slow_nodes(nodes: Nodes, gpus: int) -> list[str]:
    """The nodes that may hold a worker and are slow in bfloat16."""
    return [
        node.name
        for node in nodes.there
        if node.room(1, gpus) and (node.card_dtype if gpus else node.dtype) == "float32"
    ]


def _sentence(
    settings: TrainingSettings,
    placed: PlacedTraining,
    nodes: Nodes,
    room: int,
    began: Mapping[str, Any],
) -> str:
    """Such as `4 workers on 4 of 6 GPUs, since a batch of 16 splits over 4; in bfloat16`."""
    parts = [_workers_and_why(settings, placed, nodes, room, began)]
    parts.append(f"in {placed.dtype}{_dtype_and_why(settings, placed, nodes, began)}")
    return "; ".join(parts)


def _workers_and_why(
    settings: TrainingSettings,
    placed: PlacedTraining,
    nodes: Nodes,
    room: int,
    began: Mapping[str, Any],
) -> str:
    workers, kind = placed.num_workers, "GPU" if placed.gpus_per_worker else "CPU"
    used = workers * (placed.gpus_per_worker or placed.cpus_per_worker)
    there = nodes.num_gpus if placed.gpus_per_worker else nodes.num_cpus
    on = f"{_count(workers, 'worker')} on "
    on += f"all {_count(there, kind)}" if used == there else f"{used} of {_count(there, kind)}"
    if nodes.num_gpus and not nodes.has_cards and settings.gpus_per_worker == "auto":
        on += f" (Ray counts {nodes.num_gpus} GPUs that torch cannot use)"
    if settings.num_workers != "auto":
        return f"{on}, as configured"
    if "num_workers" in began:
        return f"{on}, as the checkpoint was made by {workers}"
    if workers < room:
        return f"{on}, since {_split(settings, workers)}{_smaller_batches(settings, room, workers)}"
    return on


def _split(settings: TrainingSettings, workers: int) -> str:
    batch = f"a batch of {settings.global_batch_size}"
    if settings.packing:
        return f"{batch} has no example for more"
    return f"{batch} in micro-batches of {settings.micro_batch_size} splits over {workers}"


def _smaller_batches(settings: TrainingSettings, room: int, workers: int) -> str:
    """Name the largest smaller micro-batch that would use more of the cluster."""
    for size in range(settings.micro_batch_size - 1, 0, -1):
        smaller = settings.model_copy(update={"micro_batch_size": size})
        more = _most_workers(smaller, room) if smaller.splits_over(1) else 0
        if more > workers and not settings.packing:
            return f" (training.micro_batch_size: {size} would use {more})"
    return ""


def _dtype_and_why(
    settings: TrainingSettings, placed: PlacedTraining, nodes: Nodes, began: Mapping[str, Any]
) -> str:
    if settings.dtype != "auto":
        return ""
    if "dtype" in began:
        return ", as the training began"
    what = "GPUs" if placed.gpus_per_worker else "processors"
    slow = _slow_nodes(nodes, placed.gpus_per_worker)
    if not slow:
        return f", for which the {what} have instructions"
    return f", since the {what} of {slow[0]} have no instructions for bfloat16"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def check_training_fits(settings: TrainingSettings, shape: ModelShape | None, nodes: Nodes) -> None:
    """Refuse, before anything is generated, a training that cannot run on these nodes.

    It counts what does not depend on the examples: weights, gradients, optimizer and buffers. A
    training that passes may still be too large for its longest examples, which the workers check
    before they load the weights. Without a `shape`, for an unsupported architecture, only the
    number of workers is checked. Raises `InputError` that names the smallest sufficient change.
    """
    placed = place(settings, nodes).settings
    if not settings.check_memory or shape is None:
        return
    there = memory_of_worker(placed, nodes)
    if there is None:
        return
    size = size_of_shape(shape, placed)
    if explain_shortage(size, lambda _: BatchSize(0, 0), placed, *there):
        # The advice must leave room for the longest examples as well.
        shortage = explain_shortage(size, longest_batch, placed, *there)
        raise InputError(f"{shape.name}: {shortage}")


def longest_batch(settings: TrainingSettings) -> BatchSize:
    """A micro-batch of the longest allowed examples, as if all their tokens were learned."""
    rows = settings.micro_batch_size * settings.sequences_per_example
    tokens = settings.tokens_per_row if settings.packing else rows * settings.max_length
    return BatchSize(tokens, tokens)


def memory_of_worker(placed: PlacedTraining, nodes: Nodes) -> tuple[float, float] | None:
    """Bytes of the smallest card and of a worker's share of its node; None if no node reports them.

    Without GPUs, both are of the node.
    """
    cpus, gpus = placed.cpus_per_worker, placed.gpus_per_worker
    rooms = {node: min(node.room(cpus, gpus), placed.num_workers) for node in nodes.there}
    hosts = [node.memory / room for node, room in rooms.items() if room]
    cards = [node.card_memory for node, room in rooms.items() if room]
    known = [memory for memory in cards if memory is not None]
    if not hosts or (gpus and len(known) < len(cards)):
        return None
    return (min(known) if gpus else min(hosts)), min(hosts)


def size_of_shape(shape: ModelShape, settings: TrainingSettings) -> ModelSize:
    """The sizes of a model of which only the config is known.

    LoRA is counted as adapters on all linear layers outside the experts.
    """
    experts = shape.experts
    active = experts.per_token * experts.size + experts.shared_size if experts else 0
    of_experts = 3 * experts.count * experts.size * shape.hidden_size if experts else 0
    of_layer = 3 * shape.intermediate_size * shape.hidden_size
    size = ModelSize(
        num_parameters=shape.num_parameters,
        num_trained=shape.num_parameters,
        largest_module=max(shape.vocab_size * shape.hidden_size, of_experts, of_layer // 3),
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        attention_size=(shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim,
        intermediate_size=max(shape.intermediate_size, active),
        vocab_size=shape.vocab_size,
        experts_per_token=experts.per_token if experts else 0,
    )
    return num_adapted(size, settings.lora.rank) if settings.method == "lora" else size
