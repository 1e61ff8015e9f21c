"""How much memory a training needs on each worker, by arithmetic alone.

Example: 8 billion parameters, all trained in bfloat16 on eight GPUs with ZeRO-3, need 15 GiB for
weights, 30 GiB for float32 gradients and 90 GiB for the optimizer's state, with an eighth on each
GPU, and in addition the layers that are gathered at the moment, activations and logits.

Sizes are in bytes; a GiB is 2**30 bytes. The parts that depend on the number of parameters follow
DeepSpeed's bookkeeping (arXiv 1910.02054). Activations are an allowance, counted from the tensors
that a gated feed-forward layer and its attention keep for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from cluster.inference.gpu_plan import GIB
from training.settings import PlacedTraining

BUCKET = 500_000_000
"""Number of gradients that DeepSpeed gathers before it exchanges them (reduce_bucket_size)."""

PREFETCH = 50_000_000
"""Number of weights that ZeRO-3 fetches ahead (stage3_prefetch_bucket_size)."""

LOGIT_BYTES = 12
"""Bytes per logit: in the model's type, in float32, and its gradient."""

CARD_RESERVE = GIB
"""Bytes of a GPU for CUDA's context and NCCL's channels; this is an allowance."""

RESERVE_SHARE = 0.05
"""Share of any memory that the allocator cannot use or, on a node, that the system and Ray hold.
This is an allowance; without it, an estimate of 136.3 GiB would pass with 139.8."""

Change = dict[str, Any]
"""Settings by name, with the values to set."""

OFFLOADS = {"offload_optimizer", "offload_weights"}

MOST_WORKERS = 1024
"""The largest number of workers for which it is checked whether more would help."""


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a model that determine the memory of its training."""

    num_parameters: int
    num_trained: int
    largest_module: int
    """Parameters of the largest module that ZeRO-3 gathers at once."""
    num_layers: int
    hidden_size: int
    attention_size: int
    """Numbers that a token has in the queries, keys and values of a layer together."""
    intermediate_size: int
    """Of all the experts that a token uses together, or of the single feed-forward layer."""
    vocab_size: int
    experts_per_token: int = 0
    """Experts that a token uses, without the shared ones."""


@dataclass(frozen=True)
class BatchSize:
    """The largest micro-batch of a training."""

    num_tokens: int
    """Number of tokens, including padding."""
    num_answer_tokens: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker at the peak of a step."""

    weights: float
    gradients: float
    buffers: float
    """Where DeepSpeed gathers gradients before it exchanges them in float32."""
    optimizer: float
    activations: float
    logits: float
    host: float
    """Bytes in the node's memory instead of the GPU's, for this worker alone."""

    @property
    def device(self) -> float:
        """Bytes on the GPU or, without one, in the node's memory."""
        states = self.weights + self.gradients + self.buffers + self.optimizer
        return states + self.activations + self.logits

    def describe(self) -> str:
        """The parts, largest first: `optimizer 11.2 GiB, weights 1.9 GiB, ...`."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        largest_first = sorted(parts.items(), key=lambda part: -part[1])
        return ", ".join(
            f"{name} {value / GIB:.1f} GiB" for name, value in largest_first if value > 0.05 * GIB
        )


def estimate_memory(model: ModelSize, batch: BatchSize, settings: PlacedTraining) -> Memory:
    """Estimate the memory of each worker."""
    stage, workers = settings.zero_stage, settings.num_workers
    width = 2 if settings.dtype == "bfloat16" else 4
    has_gpu = settings.gpus_per_worker > 0
    weights: float = model.num_parameters * width
    gradients: float = model.num_trained * 4
    # A float32 copy and Adam's two moments; without ZeRO, float32 weights need no copy.
    optimizer: float = model.num_trained * (8 if stage == 0 and width == 4 else 12)
    moved = 0.0
    if stage == 3:
        weights /= workers
        gathered = (model.largest_module + min(PREFETCH, model.num_parameters)) * width
        if settings.offload_weights and has_gpu:
            moved, weights = moved + weights, 0
        weights += gathered
    if stage >= 2:
        gradients /= workers
    if stage >= 1:
        optimizer /= workers
    if settings.offload_optimizer and has_gpu:
        # Its share of the float32 gradients is there too; stage 1 keeps all on the GPU as well.
        moved, optimizer = moved + optimizer + model.num_trained * 4 / workers, 0
        gradients = gradients if stage < 2 else 0
    return Memory(
        weights=weights,
        gradients=gradients,
        buffers=min(BUCKET, model.num_trained) * _bucket_width(width, has_gpu),
        optimizer=optimizer,
        activations=_activations(model, batch, settings, width),
        logits=batch.num_answer_tokens * model.vocab_size * LOGIT_BYTES,
        host=0 if settings.offload_folder else moved,
    )


def _bucket_width(width: int, has_gpu: bool) -> int:
    """Bytes per number in a bucket: the gathered numbers, twice on a GPU so that one bucket is
    exchanged while the next is gathered, their float32 copy for the exchange, and the result."""
    gathered = 2 * width if has_gpu else width
    return gathered + 4 + width


def checkpoint_bytes(model: ModelSize, settings: PlacedTraining) -> float:
    """Bytes of one checkpoint of all workers: the weights and, for trained weights, the float32
    copy and Adam's two moments. Frozen weights are left out."""
    width = 2 if settings.dtype == "bfloat16" else 4
    return float(model.num_trained * (width + 12))


def num_adapted(model: ModelSize, rank: int) -> ModelSize:
    """Parameters of adapters on all linear layers: both factors of each layer."""
    sides = 8 * model.hidden_size + model.attention_size + 3 * model.intermediate_size
    return replace(model, num_trained=rank * model.num_layers * sides)


def _activations(model: ModelSize, batch: BatchSize, settings: PlacedTraining, width: int) -> float:
    """Bytes that the backward pass needs; with checkpointing, the layers' inputs and one layer."""
    # Two norms keep their input, a float32 copy and their output. Attention keeps its inputs before
    # and after the rotation, and its output. The feed-forward layer keeps four products.
    norms = 2 * model.hidden_size * (2 * width + 4)
    attention = (2 * model.attention_size + model.hidden_size) * width
    # Each expert keeps the hidden states that it gets, and its output for the router.
    experts = 2 * model.experts_per_token * model.hidden_size * width
    layer = norms + attention + experts + 4 * model.intermediate_size * width
    if not settings.gradient_checkpointing:
        return batch.num_tokens * model.num_layers * layer
    return batch.num_tokens * (model.num_layers * model.hidden_size * width + layer)


def explain_shortage(
    model: ModelSize,
    batch_of: Callable[[PlacedTraining], BatchSize],
    settings: PlacedTraining,
    device_bytes: float,
    host_bytes: float,
) -> str | None:
    """Explain why a training does not fit, and what would help; None if it fits.

    `batch_of` returns how large a micro-batch gets. `host_bytes` is one worker's share of its
    node's memory, which without GPUs is all there is. A part of both is kept in reserve.
    """
    memory = estimate_memory(model, batch_of(settings), settings)
    if _fits(memory, settings, device_bytes, host_bytes):
        return None
    needed = f"{memory.device / GIB:.1f} GiB" + (
        f" and {memory.host / GIB:.1f} GiB of host memory" if memory.host else ""
    )
    there = f"{device_bytes / GIB:.1f} GiB" + (
        f" and {host_bytes / GIB:.1f} GiB of host memory" if memory.host else ""
    )
    helps = list(_remedies(model, batch_of, settings, device_bytes, host_bytes))
    remedy = f"it would fit {', or '.join(helps)}" if helps else "use larger workers"
    return (
        f"training takes about {needed} on each worker ({memory.describe()}); a worker has "
        f"{there}, part of which is kept free; {remedy}; if you know better, set "
        "training.check_memory: false"
    )


def _fits(memory: Memory, settings: PlacedTraining, device_bytes: float, host_bytes: float) -> bool:
    on_card = CARD_RESERVE if settings.gpus_per_worker else 0
    room = 1 - RESERVE_SHARE
    return memory.device <= device_bytes * room - on_card and memory.host <= host_bytes * room


def _remedies(
    model: ModelSize,
    batch_of: Callable[[PlacedTraining], BatchSize],
    settings: PlacedTraining,
    device_bytes: float,
    host_bytes: float,
) -> Iterator[str]:
    """Changes that would make a training fit: other settings, more workers, adapters."""

    def memory_with(change: Change) -> Memory | None:
        """The memory with these changes; None if that is still too much."""
        changed = settings.model_copy(update=change)
        if not changed.splits_over(changed.num_workers):
            return None
        with_lora = changed.method == "lora" != settings.method
        size = num_adapted(model, settings.lora.rank) if with_lora else model
        memory = estimate_memory(size, batch_of(changed), changed)
        return memory if _fits(memory, changed, device_bytes, host_bytes) else None

    changes = list(_savings(settings))
    on_cards = [change for change in changes if not change.keys() & OFFLOADS]
    thriftiest = on_cards[-1] if on_cards else {}
    more = ({**thriftiest, **workers} for workers in _more_workers(settings))
    lora = [{**thriftiest, "method": "lora"}] if settings.method == "full" else []
    for ways in (changes, more, lora):
        found = next((way for way in ways if memory_with(way)), None)
        if found is not None:
            needed = _only_needed(found, lambda change: memory_with(change) is not None)
            if memory := memory_with(needed):
                workers = needed.get("num_workers")
                hardware = f"on {workers} such GPUs " if workers else ""
                yield f"{hardware}with {_yaml(needed)} ({memory.device / GIB:.1f} GiB)"


def _only_needed(change: Change, is_enough: Callable[[Change], bool]) -> Change:
    """The change without the parts that are not needed."""
    for name in list(change):
        without = {other: value for other, value in change.items() if other != name}
        if is_enough(without):
            change = without
    return change


def _more_workers(settings: PlacedTraining) -> Iterator[Change]:
    """Larger numbers of GPUs, doubled each time, with a batch that has work for all of them.

    Workers on CPUs share a node's memory, so more of them need more.
    """
    workers = settings.num_workers
    while settings.gpus_per_worker and (workers := 2 * workers) <= MOST_WORKERS:
        batch = {} if workers <= settings.global_batch_size else {"global_batch_size": workers}
        yield {"num_workers": workers, **batch}


def _savings(settings: PlacedTraining) -> Iterator[Change]:
    """Changes that save memory, the cheapest first; each is tried on top of the previous ones."""
    change: Change = {}
    steps: list[Change] = [
        {"gradient_checkpointing": True},
        {"packing": False, "micro_batch_size": 1},
        {"zero_stage": 2},
        {"zero_stage": 3},
    ]
    if settings.gpus_per_worker:
        steps += [{"offload_optimizer": True}, {"offload_weights": True}]
    for step in steps:
        news = {name: value for name, value in step.items() if getattr(settings, name) != value}
        if "zero_stage" in news and settings.zero_stage > news["zero_stage"]:
            continue
        if news:
            change = change | news
            yield change


def _yaml(change: Change) -> str:
    """Format a change as `training.zero_stage: 3, training.offload_optimizer: true`."""
    values = {n: str(v).lower() if isinstance(v, bool) else v for n, v in change.items()}
    return ", ".join(f"training.{name}: {value}" for name, value in values.items())
