"""Checks that refuse a training before its weights are loaded.

They cover tokens of another model, LoRA targets, memory, the folder for offloading, and trackers.
Every worker runs them on the model's config and on a copy of the model without weights. If one
worker refuses, all do. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import InputError
from cluster.inference.gpu_plan import GIB, ModelShape
from cluster.models.weight_files import not_finite
from cluster.tracking import refuse_missing_trackers
from training.data.examples import longest_answers
from training.device import device_of
from training.memory import BatchSize, ModelSize, checkpoint_bytes, explain_shortage
from training.settings import PlacedTraining, TrainingSettings

EXPERT_NAMES = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
"""Modules that peft (0.21) treats as a router and its experts when they are not linear layers; it
does so even for a linear layer of the same name."""


class RefusedError(InputError):
    """An `InputError` that every worker of the group has raised."""


def agree(check: Callable[[], None]) -> None:
    """Run a check that may raise `InputError`; raises `RefusedError` if it did on any worker."""
    import torch

    sentence = ""
    try:
        check()
    except InputError as error:
        sentence = str(error)
    sentences: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(sentences, sentence)
    refusals = [sentence for sentence in sentences if sentence]
    if refusals:
        raise RefusedError(refusals[0])


def check_training(
    model: str, table: pa.Table, settings: PlacedTraining, workers_on_node: int
) -> None:
    """Raise `InputError` when the examples, LoRA targets or memory do not fit, when the folder for
    offloading cannot be used, or when a tracker is missing."""
    from transformers import AutoConfig

    refuse_missing_trackers(settings.tracking)
    if settings.offload_folder is not None:
        refuse_offload_folder(settings.offload_folder)
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    refuse_foreign_tokens(table, model, config.get_text_config().vocab_size)
    refuse_missing_positions(table, model, config)
    refuse_shifting_positions(table, model, config)
    if settings.method == "full" and not settings.check_memory:
        return
    skeleton = without_weights(config)
    refuse_foreign_targets(skeleton, model, settings)
    size = model_size(skeleton, config, settings)
    if settings.check_memory and size is not None:
        refuse_shortage(size, table, settings, workers_on_node)
        refuse_full_disk(size, settings, workers_on_node)


def refuse_offload_folder(folder: str) -> None:
    """Raise `InputError` when this node cannot write there as DeepSpeed does."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"training.offload_folder {folder!r} cannot be written on a training node "
            f"({error.strerror}); name a folder that exists on all of them"
        ) from error
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise InputError(
            "training.offload_folder: DeepSpeed needs libaio, and a training node has none; "
            "install it with its headers (libaio-dev), or leave the folder out"
        )


def refuse_foreign_tokens(table: pa.Table, model: str, vocab_size: int) -> None:
    """Raise `InputError` when an id is not in the model's vocabulary, which is never resized."""
    for name in (name for name in table.column_names if name.endswith("_token_ids")):
        largest = pc.max(pc.list_flatten(table.column(name))).as_py()
        if largest >= vocab_size:
            raise InputError(
                f"{name} contains token {largest}, but {model} has a vocabulary of {vocab_size}; "
                "the examples were made with another tokenizer"
            )


def refuse_missing_positions(table: pa.Table, model: str, config: Any) -> None:
    """Raise `InputError` when an example is longer than the model's table of positions.

    Rotary positions have no end; learned ones (GPT-2, OPT) do.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = longest_example(table)
    if positions is None or longest <= positions:
        return
    skeleton = without_weights(config)
    if any(table.num_embeddings < longest for table in _position_tables(skeleton)):
        raise InputError(
            f"an example has {longest} tokens, but {model} has learned {positions} positions; set "
            f"training.max_length: {positions}"
        )


def refuse_shifting_positions(table: pa.Table, model: str, config: Any) -> None:
    """Raises `InputError` when a long example would change the positions of those next to it.

    Some models (Phi-3's `longrope`, `dynamic`) rotate a whole batch in another way once one of its
    examples is longer than the context before it was stretched.
    """
    bounds = _bounds_of_rotation(config.get_text_config())
    longest = longest_example(table)
    if bounds and longest > min(bounds):
        raise InputError(
            f"an example has {longest} tokens, and {model} gives all examples of a batch other "
            f"positions when one has more than {min(bounds)}; set training.max_length: "
            f"{min(bounds)}"
        )


def _bounds_of_rotation(config: Any) -> list[int]:
    """Tokens after which the rotation of positions is another one, of each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    whole = getattr(config, "max_position_embeddings", None)
    bounds = [
        kind.get("original_max_position_embeddings") or whole
        for kind in kinds
        if kind.get("rope_type") in ("longrope", "dynamic")
    ]
    return [bound for bound in bounds if bound]


def _position_tables(skeleton: Any) -> list[Any]:
    import torch

    tokens = skeleton.get_input_embeddings()
    return [
        module
        for name, module in skeleton.named_modules()
        if isinstance(module, torch.nn.Embedding)
        and module is not tokens
        and ("pos" in _last_part(name) or _last_part(name) == "wpe")
    ]


def refuse_broken_weights(module: Any, model: str) -> None:
    """Raise `InputError` that names the first tensor of this worker with NaN or infinity."""
    for name, parameter in module.named_parameters():
        # ZeRO-3 replaces it by an empty tensor, which keeps this worker's part in an attribute.
        if not bool(getattr(parameter, "ds_tensor", parameter).detach().isfinite().all()):
            raise InputError(not_finite(model, name))


def without_weights(config: Any) -> Any:
    """The model with the shapes of its weights only."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def refuse_foreign_targets(skeleton: Any, model: str, settings: TrainingSettings) -> None:
    """Raise `InputError` when a LoRA target names no linear layer of the model, or experts that
    are stored as one three-dimensional parameter."""
    targets = settings.lora.target_modules
    if settings.method != "lora":
        return
    names = [name for name, _ in linear_layers(skeleton)]
    if _has_fused_experts(skeleton):
        refuse_expert_targets(names, model, targets)
    if isinstance(targets, str):
        return
    for target in targets:
        if not any(_is_target(name, target) for name in names):
            known = sorted({_last_part(name) for name in names})
            raise InputError(
                f"training.lora.target_modules: {target!r} matches no layer of {model}; its "
                f"linear layers are {', '.join(known)}"
            )


def refuse_expert_targets(names: list[str], model: str, targets: str | tuple[str, ...]) -> None:
    """Raise `InputError` when peft would add adapters to experts, as `all-linear` also does."""
    if isinstance(targets, str) or any(_last_part(target) in EXPERT_NAMES for target in targets):
        known = sorted({_last_part(name) for name in names} - EXPERT_NAMES)
        raise InputError(
            f"training.lora.target_modules: {targets!r} would add adapters to the experts of "
            f"{model}, which is not supported; name layers outside the experts: "
            f"{', '.join(known)}"
        )


def _has_fused_experts(skeleton: Any) -> bool:
    """Whether any module, except convolutions, directly has several matrices in one weight.

    A weight with a single matrix does not belong to experts: Gemma 3's image encoder has one.
    """
    import torch

    return any(
        parameter.ndim == 3 and parameter.shape[0] > 1
        for module in skeleton.modules()
        if not isinstance(module, torch.nn.Conv1d)
        for parameter in module.parameters(recurse=False)
    )


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


def linear_layers(skeleton: Any) -> list[tuple[str, Any]]:
    """Names and modules of all linear layers except the output head."""
    import torch
    from transformers.pytorch_utils import Conv1D  # GPT-2's: the same with its weight transposed

    head = skeleton.get_output_embeddings()
    return [
        (name, module)
        for name, module in skeleton.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    ]


def _is_target(name: str, target: str) -> bool:
    """Match an entry of a list as peft does: the name itself, or its end after a dot."""
    return name == target or name.endswith(f".{target}")


def refuse_shortage(
    size: ModelSize, table: pa.Table, settings: PlacedTraining, workers_on_node: int
) -> None:
    """Raise `InputError` when the training needs more memory than this worker has."""
    there = _memory_of_worker(settings, workers_on_node)
    shortage = explain_shortage(size, partial(largest_batch, table), settings, *there)
    if shortage:
        raise InputError(shortage)


def refuse_full_disk(size: ModelSize, settings: PlacedTraining, workers_on_node: int) -> None:
    """Raise `InputError` when this node's temporary folder is too small for its part of a
    checkpoint, which is written there before it is copied to storage."""
    if not settings.makes_checkpoints:
        return
    whole = checkpoint_bytes(size, settings)
    needed = whole * workers_on_node / settings.num_workers
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"a checkpoint takes {whole / GIB:.1f} GiB, {needed / GIB:.1f} GiB of it on this node, "
            f"but {folder} has {free / GIB:.1f} GiB free; point TMPDIR to a larger disk on every "
            "node, or make no checkpoints (training.checkpoint_every_n_steps: 0, "
            "checkpoint_every_s: null)"
        )


def model_size(skeleton: Any, config: Any, settings: PlacedTraining) -> ModelSize | None:
    """The sizes of a model; None if its architecture is not supported."""
    try:
        shape = ModelShape.from_config(config.to_dict())
    except InputError:
        return None
    experts = shape.experts
    active = experts.per_token * experts.size + experts.shared_size if experts else 0
    return ModelSize(
        num_parameters=sum(parameter.numel() for parameter in skeleton.parameters()),
        num_trained=_num_trained(skeleton, settings),
        largest_module=max(
            sum(parameter.numel() for parameter in module.parameters(recurse=False))
            for module in skeleton.modules()
        ),
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        attention_size=(shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim,
        intermediate_size=max(shape.intermediate_size, active),
        vocab_size=shape.vocab_size,
        experts_per_token=experts.per_token if experts else 0,
    )


def _num_trained(skeleton: Any, settings: PlacedTraining) -> int:
    """Number of parameters with a gradient: all, or two factors for each layer with an adapter."""
    if settings.method == "full":
        return sum(parameter.numel() for parameter in skeleton.parameters())
    targets = settings.lora.target_modules
    return sum(
        settings.lora.rank * sum(layer.weight.shape)
        for name, layer in linear_layers(skeleton)
        if isinstance(targets, str) or any(_is_target(name, target) for target in targets)
    )


def largest_batch(table: pa.Table, settings: PlacedTraining) -> BatchSize:
    """The largest micro-batch that may occur, in any order of the examples."""
    longest, longest_answer = longest_example(table), pc.max(longest_answers(table)).as_py()
    if settings.packing:
        return BatchSize(settings.tokens_per_row, settings.tokens_per_row)
    rows = settings.micro_batch_size * settings.sequences_per_example
    return BatchSize(rows * longest, rows * min(longest, longest_answer))


def longest_example(table: pa.Table) -> int:
    """Tokens of the longest example, prompt and answer together."""
    prompts = pc.list_value_length(table.column("prompt_token_ids"))
    return int(pc.max(pc.add(prompts, longest_answers(table))).as_py())


def _memory_of_worker(settings: PlacedTraining, workers_on_node: int) -> tuple[float, float]:
    """Bytes of the card (of the node without one) and of the worker's share of its node's
    memory."""
    import psutil

    host = psutil.virtual_memory().total / workers_on_node
    return device_of(settings).card_memory() or host, host
