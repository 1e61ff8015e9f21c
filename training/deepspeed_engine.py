"""DeepSpeed: its config, its engine and its environment. No other file configures it.

Runs on the training workers only; importing this module imports neither torch nor deepspeed.

DeepSpeed's engine is driven directly: the loss of a global batch is one sum over its answer tokens,
however many workers and micro-batches there are, and a step may have any number of them.
docs/TRAINING.md explains why transformers' Trainer is not used.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from training.device import device_of
from training.packing import use_packed_attention
from training.settings import PlacedTraining


def deepspeed_config(settings: PlacedTraining, world_size: int) -> dict[str, Any]:
    """The config for `deepspeed.initialize`, for a number of workers.

    Gradients are accumulated and exchanged in float32, except at stage 0 in bfloat16, where
    DeepSpeed (0.19) only accumulates them in the weights' type.
    """
    half = settings.dtype == "bfloat16"
    config: dict[str, Any] = {
        **_batch_config(settings, world_size),
        "bf16": {"enabled": half},
        "zero_optimization": _zero_config(settings),
        "gradient_clipping": settings.max_grad_norm,
        "communication_data_type": "fp32",
        # DeepSpeed calls torch's AdamW untested; our tests compare it with a plain loop.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    if settings.zero_stage > 0 or not half:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _batch_config(settings: PlacedTraining, world_size: int) -> dict[str, int]:
    """Sizes that agree with each other, as DeepSpeed requires; the loop does not depend on them.

    The number of packed rows in a step varies. Two accumulation steps are given, because with one
    DeepSpeed may leave out what only accumulation needs.
    """
    micro = 1 if settings.packing else settings.micro_batch_size
    steps = 2 if settings.packing else settings.global_batch_size // (micro * world_size)
    return {
        "train_batch_size": micro * steps * world_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
    }


def _zero_config(settings: PlacedTraining) -> dict[str, Any]:
    on_gpu = device_of(settings).is_gpu
    zero: dict[str, Any] = {
        "stage": settings.zero_stage,
        "contiguous_gradients": True,
        # Overlap needs streams, which a CPU does not have.
        "overlap_comm": on_gpu,
    }
    place: dict[str, Any] = {"device": "cpu", "pin_memory": on_gpu}
    if settings.offload_folder is not None:
        place |= {"device": "nvme", "nvme_path": settings.offload_folder}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = place
    if settings.offload_weights:
        zero["offload_param"] = place
    return zero


def prepare_process(settings: PlacedTraining) -> None:
    """Set what DeepSpeed and torch read once; call it before anything imports deepspeed."""
    device = device_of(settings)
    os.environ.update(device.environment)
    import deepspeed
    import torch
    import transformers

    torch.set_num_threads(settings.cpus_per_worker)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    # DeepSpeed calls collectives by names that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    if not device.is_gpu:
        # Otherwise DeepSpeed compiles a shared-memory collective that only its inference uses.
        deepspeed.ops.__compatible_ops__ = {}
    device.select()


def build_engine(source: str, settings: PlacedTraining, world_size: int) -> Any:
    """Load a model from a local folder or the hub, with its optimizer, ready to train.

    Raises what transformers and peft raise for a missing model or LoRA target.
    """
    import deepspeed
    import torch

    config = deepspeed_config(settings, world_size)
    torch.manual_seed(settings.seed)  # same initial adapter weights on every worker
    model = _load_model(source, settings, config)
    if settings.packing:
        use_packed_attention(model)
    if settings.method == "lora":
        model = _add_adapters(model, settings)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        model_parameters=trained,
        optimizer=_optimizer(trained, settings),
        config=config,
        dist_init_required=False,
    )
    if settings.zero_stage == 0 and settings.dtype == "bfloat16":
        # DeepSpeed has tried the optimizer on zero gradients, which Adam counts as its first step.
        # Without a reset, the real first step would move the weights by 0.74 of the correct amount.
        engine.optimizer.optimizer.state.clear()
    engine.train()
    return engine


def _load_model(source: str, settings: PlacedTraining, config: dict[str, Any]) -> Any:
    import deepspeed
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    deepspeed.init_distributed(dist_init_required=False)
    # While this object exists, transformers splits the weights over the workers as it loads them.
    split = HfDeepSpeedConfig(config) if settings.zero_stage == 3 else None
    model = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=getattr(torch, settings.dtype),
        attn_implementation=attention_of(source),
        trust_remote_code=False,
    )
    del split
    return model


def attention_of(source: str) -> str | None:
    """The attention implementation that a model needs; None leaves the choice to transformers.

    torch's scaled dot product attention has no soft cap, so transformers (5.19) silently drops it
    there, while vLLM applies it when it generates.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, trust_remote_code=False).get_text_config()
    return "eager" if getattr(config, "attn_logit_softcapping", None) else None


def _add_adapters(model: Any, settings: PlacedTraining) -> Any:
    import peft

    targets = settings.lora.target_modules
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    # The adapters have the model's type; the optimizer updates a float32 copy.
    return peft.get_peft_model(model, config, autocast_adapter_dtype=False)


def _optimizer(trained: list[Any], settings: PlacedTraining) -> Any:
    """AdamW: torch's, or DeepSpeed's if the state is in host memory while training on a GPU."""
    import torch

    # The schedule sets the rate before each step; DeepSpeed's trial steps must change nothing.
    options = {"lr": 0.0, "weight_decay": settings.weight_decay}
    if settings.offload_optimizer and device_of(settings).is_gpu:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(trained, adamw_mode=True, **options)
    return torch.optim.AdamW(trained, fused=True, **options)


def set_learning_rate(engine: Any, rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def step_engine(engine: Any) -> float:
    """Clip, update the weights and clear the gradients. Returns the norm before clipping."""
    norm = _norm_without_zero(engine) if engine.zero_optimization_stage() == 0 else None
    engine.step()
    norm = engine.get_global_grad_norm() if norm is None else norm
    return float(norm)


def _norm_without_zero(engine: Any) -> float:
    """The gradient norm at stage 0, where every worker has the complete reduced gradient."""
    import torch

    grads = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm([grad.float() for grad in grads]))


_FLOAT32_COPIES = (
    "single_partition_of_fp32_groups",  # ZeRO 1 and 2
    "fp32_partitioned_groups_flat",  # ZeRO 3
    "fp32_groups_flat_partition",  # bfloat16 without ZeRO
)
"""Where DeepSpeed's optimizers keep their part of the trained weights in float32."""


def shard_bytes(engine: Any, settings: PlacedTraining) -> int:
    """Bytes that this worker writes into a checkpoint: the float32 copy and the moments of its part
    of the weights; the first worker also writes the weights, with LoRA only the trained ones."""
    optimizer = engine.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    kept = [each for name in _FLOAT32_COPIES for each in getattr(optimizer, name, ())]
    kept += [each for state in inner.state.values() for each in state.values()]
    if engine.global_rank == 0:
        weights = engine.module.parameters()
        kept += [each for each in weights if each.requires_grad or settings.method == "full"]
    tensors = [each for each in kept if hasattr(each, "element_size")]
    return sum(each.numel() * each.element_size() for each in tensors)
