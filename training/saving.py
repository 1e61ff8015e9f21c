"""Save a trained engine as a folder that vLLM and transformers load, and check it.

The training workers run this: all of them gather the weights, and the first one writes::

    config.json  model.safetensors  tokenizer.json  weights.txt  ...  adapter/ (LoRA only)

`weights.txt` lists the tensors of its folder (`cluster.models.weight_digests`). Importing this
module imports neither torch nor deepspeed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from cluster.models.model import GENERATION_CONFIG
from cluster.models.weight_digests import WEIGHTS, write_list
from cluster.store.folder import MANIFEST, Folder
from training.settings import PlacedTraining

ADAPTER = "adapter"

# Weights in any form and their descriptions are not copied from the base model.
WEIGHT_FILES = (
    "*.safetensors",
    "*.index.json",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.gguf",
    "*.onnx",
    "*.onnx_data",
    "*.npz",
    "*.pkl",
    "*.pickle",
    "params.json",
)
# Not copied either: code, which is never run, and files that a training or step of ours left there.
OTHER_FILES = ("*.py", "config.json", ".*", WEIGHTS, MANIFEST)
OTHER_FOLDERS = {"original", "onnx", ADAPTER, "checkpoints", "reference", "tensorboard", "wandb"}

State = dict[str, Any]


class IncompleteSaveError(RuntimeError):
    """The saved files differ from what was trained; nothing has been copied to storage."""


def save_trained(
    engine: Any, source: str, output: Folder, settings: PlacedTraining
) -> dict[str, Any]:
    """Write the trained model to `output`. Every worker must call it.

    Returns, on the first worker, the fingerprints of what was written, `weights_sha256` and, for
    LoRA, `adapter_sha256`, and `weights_changed`, the share of the base's weights that changed.
    Raises `IncompleteSaveError` when the files, loaded again, differ from the trained weights.
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
            # A copy, because save_pretrained removes tied names from its argument.
            _write_model(engine.module, source, folder, state_dict=dict(state))
        copy_companions(source, folder)
        check_saved(folder, state)
        facts: dict[str, Any] = {"weights_sha256": write_list(folder)}
        if settings.method == "lora":
            facts["adapter_sha256"] = write_list(folder / ADAPTER)
        facts["weights_changed"] = share_changed(source, state, settings)
        output.copy_from_local(folder)
    return facts


def rehearse_save(module: Any, source: str) -> None:
    """Write everything except the weights to a temporary folder and load it again.

    Raises `InputError` for a base whose config, generation config or tokenizer cannot be loaded
    again, because the same would happen after the training.
    """
    rehearse_companions(
        module.config, source, module.generation_config if module.can_generate() else None
    )


def rehearse_companions(config: Any, source: str, generation_config: Any = None) -> None:
    """The part of `rehearse_save` that needs no model.

    `generation_config` is written if the base has none.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="regenesis-rehearsal-") as name:
            folder = Path(name)
            config.save_pretrained(folder)
            if not has_generation_config(source) and generation_config is not None:
                generation_config.save_pretrained(folder)
            copy_companions(source, folder)
            _load_companions(source, folder)
    except Exception as error:
        raise InputError(
            f"{source}: the model could not be saved after the training, so it was not started "
            f"({' '.join(str(error).split())[:500]}); fix this in the model's files"
        ) from error


def _load_companions(source: str, folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if (folder / GENERATION_CONFIG).is_file():
        GenerationConfig.from_pretrained(folder)
    try:
        of_base = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError):
        return  # a base without one has nothing to compare
    saved = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if _tokenized(saved) != _tokenized(of_base):
        raise ValueError("the tokenizer or its chat template differs after it was copied")


def _tokenized(tokenizer: Any) -> tuple[Any, ...]:
    """What decides the ids of a prompt, and the ids of one that holds each special token."""
    special = sorted(tokenizer.all_special_tokens)
    asked = f"{''.join(special)}What is 17 plus 25?\n  \u00bd \u7b54 {' '.join(special)}"
    return len(tokenizer), tokenizer.chat_template, tokenizer(asked)["input_ids"]


def _write_model(model: Any, source: str, folder: Path, **options: Any) -> None:
    """Write config and weights, and a generation config if the base has none to copy.

    transformers refuses to write some that it can read, such as a temperature without sampling.
    """
    if has_generation_config(source):
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig()
    model.save_pretrained(folder, max_shard_size="5GB", **options)


def share_changed(source: str, state: State, settings: PlacedTraining) -> float:
    """The share of the weights in a state that differ from the base's in the training's type."""
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(
        source, dtype=getattr(torch, settings.dtype), trust_remote_code=False
    ).state_dict()
    changed = total = 0
    for name, tensor in _weights(state):
        if name in base and base[name].shape == tensor.shape:
            changed += int((base[name] != tensor).sum())
            total += tensor.numel()
    return changed / total if total else 1.0


def gather_state(module: Any, *, only_trained: bool, keep: bool) -> State:
    """Gather the module's complete state dict on the CPU, even when ZeRO-3 has split it.

    Every worker must call it; only with `keep` are the weights returned, otherwise the dict is
    empty. Tied weights remain one tensor with two names. One parameter is gathered at a time.
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
    """A context in which a tensor split by ZeRO-3 is complete."""
    if not hasattr(tensor, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([tensor])  # type: ignore[no-any-return]


def _write_merged(
    module: Any, adapter: State, source: str, folder: Path, settings: PlacedTraining
) -> State:
    """Write the adapter, and the base model with the adapter merged. Returns the merged state.

    The base is loaded again from its source, and the adapter is merged as it was written.
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
    _write_model(merged, source, folder)
    return dict(merged.state_dict())


def _check_adapter(folder: Path, adapter: State) -> None:
    """Compare the written adapter with the trained one; peft omits its name for it in the file."""
    from safetensors.torch import load_file

    saved = load_file(folder / "adapter_model.safetensors")
    if not saved or len(saved) != len(adapter):
        raise IncompleteSaveError(f"the adapter has {len(saved)} tensors, not {len(adapter)}")
    for name, tensor in saved.items():
        trained = adapter[name.replace(".weight", ".default.weight")]
        _compare(f"{ADAPTER}/{name}", tensor, trained)


def check_saved(folder: Path, state: State) -> None:
    """Load a saved model again and compare it with the state it was written from.

    Raises `IncompleteSaveError` naming the first tensor that is missing, unknown, empty, not
    finite, or of another type or value than was trained. (A model may keep some of its parts in
    float32, whatever the type of the others.)
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
        _compare(name, tensor, state[name])


def _weights(state: State) -> Iterator[tuple[str, Any]]:
    """The floating-point tensors; others are counters and masks without a specified type."""
    return ((name, tensor) for name, tensor in state.items() if tensor.is_floating_point())


def _compare(name: str, saved: Any, trained: Any) -> None:
    if saved.numel() == 0:
        raise IncompleteSaveError(f"{name} is empty")
    if saved.dtype != trained.dtype:
        raise IncompleteSaveError(f"{name} is {saved.dtype}, not {trained.dtype}")
    if not bool(saved.isfinite().all()):
        raise IncompleteSaveError(f"{name} contains values that are not finite")
    if saved.shape != trained.shape or not bool((saved == trained).all()):
        raise IncompleteSaveError(f"{name} differs from what was trained")


def has_generation_config(source: str) -> bool:
    """Whether the base has a generation config."""
    return (_origin(source) / GENERATION_CONFIG).is_file()


def copy_companions(source: str, folder: Path) -> None:
    """Copy the base's files other than weights: tokenizer, templates, processors, licence.

    They are copied byte for byte, because saving a loaded tokenizer may rewrite its files.
    """
    origin = _origin(source)
    for file in sorted(origin.rglob("*")):
        place = file.relative_to(origin)
        if file.is_file() and _is_companion(place):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / place)


def _is_companion(place: Path) -> bool:
    """Whether a file at this place in a model's folder is copied with the tuned model."""
    is_hidden = any(part.startswith(".") for part in place.parts)
    is_others = bool(OTHER_FOLDERS & set(place.parts[:-1])) or is_hidden
    return not is_others and not any(map(place.match, (*WEIGHT_FILES, *OTHER_FILES)))


def _origin(source: str) -> Path:
    """The folder of a base; for a hub name, the folder of its small files."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, ignore_patterns=list(WEIGHT_FILES)))
