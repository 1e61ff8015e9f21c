"""From a trained engine to a folder that vLLM and transformers load, checked before it counts.

Runs on the training workers: all of them gather the weights, the first one writes::

    config.json  model.safetensors  tokenizer.json  weights.txt  ...  adapter/ (LoRA only)

`weights.txt`, in either folder, lists its tensors (`cluster.weights`). Importing this module
imports neither torch nor deepspeed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from cluster.storage import Folder
from cluster.weights import write_list
from training.settings import PlacedTraining

ADAPTER = "adapter"

# Copied byte for byte: saving a loaded tokenizer may rewrite its files.
TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer.model",
    "*.tiktoken",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.*",
    "sentencepiece.bpe.model",
    "spiece.model",
)

State = dict[str, Any]


class IncompleteSaveError(RuntimeError):
    """What was read back is not what was trained; nothing has been copied to storage."""


def save_trained(
    engine: Any, source: str, output: Folder, settings: PlacedTraining
) -> dict[str, str]:
    """Write the trained model into `output`. Every worker must call it.

    Returns, on the first worker, the fingerprints of what was written: `weights_sha256` and, of a
    LoRA, `adapter_sha256`. Raises `IncompleteSaveError` when the files, loaded again, are not the
    trained weights.
    """
    import torch

    first = torch.distributed.get_rank() == 0
    state = gather_state(engine.module, only_trained=settings.method == "lora", keep=first)
    if not first:
        return {}
    with tempfile.TemporaryDirectory(prefix="regenesis-model-") as name:
        folder = Path(name)
        if settings.method == "lora":
            state = _write_merged(engine.module, state, source, folder, settings)
        else:
            # A copy: save_pretrained takes tied names out of the dict it is given.
            engine.module.save_pretrained(folder, state_dict=dict(state), max_shard_size="5GB")
        _copy_tokenizer(source, folder)
        check_saved(folder, state, settings.dtype)
        fingerprints = {"weights_sha256": write_list(folder)}
        if settings.method == "lora":
            fingerprints["adapter_sha256"] = write_list(folder / ADAPTER)
        output.copy_from_local(folder)
    return fingerprints


def gather_state(module: Any, *, only_trained: bool, keep: bool) -> State:
    """The module's state dict on the CPU, whole, also where ZeRO-3 has split it.

    Every worker must call it; the weights stay only with `keep`, elsewhere it is empty. Tied
    weights stay one tensor under two names. One parameter is gathered at a time.
    """
    state: State = {}
    copies: dict[int, Any] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if only_trained and not tensor.requires_grad:
            continue
        with _whole(tensor):
            if keep:
                if id(tensor) not in copies:
                    copies[id(tensor)] = tensor.detach().to("cpu", copy=True).contiguous()
                state[name] = copies[id(tensor)]
    return state


def _whole(tensor: Any) -> AbstractContextManager[Any]:
    """A context in which a tensor split by ZeRO-3 is whole."""
    if not hasattr(tensor, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([tensor])  # type: ignore[no-any-return]


def _write_merged(
    module: Any, adapter: State, source: str, folder: Path, settings: PlacedTraining
) -> State:
    """Write the adapter, and the base model with it merged in. Returns the merged state.

    The base is read again from its source, so what is merged is the adapter as it was written.
    """
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    module.save_pretrained(folder / ADAPTER, state_dict=adapter)
    _check_adapter(folder / ADAPTER, adapter)
    base = AutoModelForCausalLM.from_pretrained(
        source, dtype=getattr(torch, settings.dtype), trust_remote_code=False
    )
    merged = peft.PeftModel.from_pretrained(base, folder / ADAPTER, autocast_adapter_dtype=False)
    merged = merged.merge_and_unload(safe_merge=True)
    merged.save_pretrained(folder, max_shard_size="5GB")
    return dict(merged.state_dict())


def _check_adapter(folder: Path, adapter: State) -> None:
    """Compare the written adapter with the trained one; peft leaves its own name for it out."""
    from safetensors.torch import load_file

    saved = load_file(folder / "adapter_model.safetensors")
    if not saved or len(saved) != len(adapter):
        raise IncompleteSaveError(f"the adapter has {len(saved)} tensors, trained {len(adapter)}")
    for name, tensor in saved.items():
        trained = adapter[name.replace(".weight", ".default.weight")]
        _compare(f"{ADAPTER}/{name}", tensor, trained, str(trained.dtype))


def check_saved(folder: Path, state: State, dtype: str) -> None:
    """Load a saved model again and compare it with the state it was written from.

    Raises `IncompleteSaveError` naming the first tensor that is missing, unknown, empty, not
    finite, of another type or of another value.
    """
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", trust_remote_code=False, output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            raise IncompleteSaveError(f"{problem} in the saved model: {sorted(report[problem])}")
    loaded = model.state_dict()
    if set(loaded) != set(state):
        raise IncompleteSaveError(f"saved and trained differ: {sorted(set(loaded) ^ set(state))}")
    for name, tensor in _weights(loaded):
        _compare(name, tensor, state[name], f"torch.{dtype}")


def _weights(state: State) -> Iterator[tuple[str, Any]]:
    """The floating point tensors; others are counters and masks without a type to ask for."""
    return ((name, tensor) for name, tensor in state.items() if tensor.is_floating_point())


def _compare(name: str, saved: Any, trained: Any, dtype: str) -> None:
    if saved.numel() == 0:
        raise IncompleteSaveError(f"{name} is empty")
    if str(saved.dtype) != dtype:
        raise IncompleteSaveError(f"{name} is {saved.dtype}, not {dtype}")
    if not bool(saved.isfinite().all()):
        raise IncompleteSaveError(f"{name} holds values that are not finite")
    if saved.shape != trained.shape or not bool((saved == trained).all()):
        raise IncompleteSaveError(f"{name} is not what was trained")


def _copy_tokenizer(source: str, folder: Path) -> None:
    origin = Path(source)
    if not origin.is_dir():
        from huggingface_hub import snapshot_download

        origin = Path(snapshot_download(source, allow_patterns=list(TOKENIZER_FILES)))
    for pattern in TOKENIZER_FILES:
        for file in origin.glob(pattern):
            shutil.copyfile(file, folder / file.name)
