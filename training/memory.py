"""How much memory a training takes on each worker: arithmetic, nothing is loaded.

Example: 8 billion parameters, all trained in bfloat16 on eight GPUs with ZeRO-3, are 15 GiB of
weights, 30 GiB of float32 gradients and 90 GiB of optimizer state, an eighth of it on each GPU,
and on top of it the layers that are whole at the moment, activations and logits.

Bytes; GiB are 2**30 bytes. The parts that hang on the number of parameters are DeepSpeed's own
bookkeeping (arXiv 1910.02054); activations are an allowance, counted from the tensors that a gated
feed-forward layer and its attention keep for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from cluster.planner import GIB
from training.settings import TrainingSettings

BUCKET = 500_000_000
"""Gradients that DeepSpeed gathers before it exchanges them (reduce_bucket_size), numbers."""

PREFETCH = 50_000_000
"""Weights that ZeRO-3 fetches ahead (stage3_prefetch_bucket_size), numbers."""

LOGIT_BYTES = 12
"""Of one logit: in the model's type, in float32, and its gradient."""


@dataclass(frozen=True)
class ModelSize:
    """What of a model decides the memory of its training."""

    num_parameters: int
    num_trained: int
    largest_module: int
    """Parameters of the module that ZeRO-3 gathers at once."""
    num_layers: int
    hidden_size: int
    attention_size: int
    """Numbers a token has in queries, keys and values of a layer together."""
    intermediate_size: int
    """Of all the experts that a token goes through, or of the one feed-forward layer."""
    vocab_size: int
    experts_per_token: int = 0
    """Experts that a token goes through, the shared ones not among them."""


@dataclass(frozen=True)
class BatchSize:
    """The largest micro-batch of a training."""

    num_tokens: int
    """Padding included."""
    num_answer_tokens: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker at the fullest moment of a step."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    host: float
    """In the memory of the node instead of the GPU's; for this worker alone."""

    @property
    def device(self) -> float:
        """Bytes on the GPU; without one, in the node's memory like the rest."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    def describe(self) -> str:
        """The parts, largest first: `optimizer 11.2 GiB, weights 1.9 GiB, ...`."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        largest_first = sorted(parts.items(), key=lambda part: -part[1])
        return ", ".join(
            f"{name} {value / GIB:.1f} GiB" for name, value in largest_first if value > 0.05 * GIB
        )


def estimate_memory(model: ModelSize, batch: BatchSize, settings: TrainingSettings) -> Memory:
    """The memory of each worker, for settings that name the number of workers."""
    stage, workers = settings.zero_stage, settings.num_workers
    width = 2 if settings.dtype == "bfloat16" else 4
    weights: float = model.num_parameters * width
    gradients: float = model.num_trained * 4
    # A float32 copy and Adam's two moments; without ZeRO float32 weights are their own copy.
    optimizer: float = model.num_trained * (8 if stage == 0 and width == 4 else 12)
    has_gpu = settings.gpus_per_worker > 0
    moved = 0.0
    if stage == 3:
        weights /= workers
        gathered = (model.largest_module + min(PREFETCH, model.num_parameters)) * width
        if settings.offload_weights and has_gpu:
            moved, weights = moved + weights, 0
        weights += gathered
    if stage >= 2:
        gradients = gradients / workers + min(BUCKET, model.num_trained) * width
    if stage >= 1:
        optimizer /= workers
    if settings.offload_optimizer and has_gpu:
        # The float32 gradients of its share go with it.
        moved, optimizer = moved + optimizer + model.num_trained * 4 / workers, 0
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=_activations(model, batch, settings, width),
        logits=batch.num_answer_tokens * model.vocab_size * LOGIT_BYTES,
        host=0 if settings.offload_folder else moved,
    )


def _activations(
    model: ModelSize, batch: BatchSize, settings: TrainingSettings, width: int
) -> float:
    """What the backward pass needs again; with checkpointing a layer's input, and one layer."""
    # Two norms keep their input, a float32 copy and their output; attention keeps its inputs before
    # and after the rotation, and its output; the feed-forward layer four products.
    norms = 2 * model.hidden_size * (2 * width + 4)
    attention = (2 * model.attention_size + model.hidden_size) * width
    # Each expert keeps the hidden states it is given, and what it makes of them for the router.
    experts = 2 * model.experts_per_token * model.hidden_size * width
    layer = norms + attention + experts + 4 * model.intermediate_size * width
    if not settings.gradient_checkpointing:
        return batch.num_tokens * model.num_layers * layer
    return batch.num_tokens * (model.num_layers * model.hidden_size * width + layer)


def explain_shortage(
    model: ModelSize,
    batch_of: Callable[[TrainingSettings], BatchSize],
    settings: TrainingSettings,
    device_bytes: float,
    host_bytes: float,
) -> str | None:
    """Why a training does not fit into so much memory, and what would help; None when it fits.

    `batch_of` says how large a micro-batch gets. `host_bytes` is one worker's part of its node's
    memory; without GPUs it is all there is.
    """
    memory = estimate_memory(model, batch_of(settings), settings)
    if _fits(memory, device_bytes, host_bytes):
        return None
    needed = f"{memory.device / GIB:.1f} GiB" + (
        f" and {memory.host / GIB:.1f} GiB of host memory" if memory.host else ""
    )
    there = f"{device_bytes / GIB:.1f} GiB" + (
        f" and {host_bytes / GIB:.1f} GiB of host memory" if memory.host else ""
    )
    for change in _mends(settings):
        mended = settings.model_copy(update=change)
        changed = estimate_memory(model, batch_of(mended), mended)
        if _fits(changed, device_bytes, host_bytes):
            names = ", ".join(f"training.{name}: {_yaml(value)}" for name, value in change.items())
            mend = f"it would fit with {names} ({changed.device / GIB:.1f} GiB)"
            break
    else:
        mend = "no stage, offload or smaller batch would do: use more or larger workers, or lora"
    return (
        f"training takes about {needed} on each worker ({memory.describe()}), there is {there}; "
        f"{mend}; if you know better, set training.check_memory: false"
    )


def _fits(memory: Memory, device_bytes: float, host_bytes: float) -> bool:
    return memory.device <= device_bytes and memory.host <= host_bytes


def _mends(settings: TrainingSettings) -> Iterator[dict[str, Any]]:
    """Changes that save memory, the cheapest first; each is tried on top of those before it."""
    change: dict[str, Any] = {}
    steps: list[dict[str, Any]] = [
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
            change |= news
            yield change


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
