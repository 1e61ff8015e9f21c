"""Check a base model's files, except its weights, for `pipelines.planning.preflight`.

It runs in a subprocess. Each check is a function in `CHECKS`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from cluster.inference.engine import VLLM, EngineSettings, SamplingSettings
from cluster.models.chat_template import load_tokenizer, prompt_ids, unread_thinking
from cluster.models.model import GENERATION_CONFIG, local_model
from cluster.models.weight_files import check_weight_files, read_header
from cluster.thinking import TurnReader
from evaluation.prompt import Message
from training.checks import refuse_foreign_targets, without_weights
from training.saving import rehearse_companions
from training.settings import TrainingSettings

BROKEN = (Exception,)
"""What files of a model make the libraries raise: `tokenizers` raises nothing more specific, and a
template may fail in any way, such as `OverflowError` for a long range."""

POSITION_KEYS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    *("max_sequence_length", "max_seq_length", "seq_len"),
)
"""The names of the number of positions in configs, as vLLM 0.32 knows them."""
SCALED_POSITIONS = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
"""Kinds of scaled positions for which the config's number already includes the scaling."""


QUANTIZATION_KEYS = ("quantization_config", "compression_config")
"""Where vLLM and transformers look for how the weights are stored."""


class UnsureError(InputError):
    """A refusal that may be wrong because torch was hidden; a second look with torch decides."""


@dataclass(frozen=True)
class Asking:
    """One kind of prompt of a run."""

    name: str
    field: str
    """The place of its settings in the config, as in `synthesis.stages.path`."""
    messages: Sequence[Message]
    sampling: SamplingSettings
    engine: EngineSettings


@dataclass
class Base:
    """The facts about a base model. They are sent between processes, so they are plain values."""

    config: Mapping[str, Any]
    """Its `config.json` with the defaults of its class."""
    prompt_tokens: dict[str, int] = field(default_factory=dict)
    """The number of tokens in each prompt, with a short question."""
    opens_thinking: dict[str, bool] = field(default_factory=dict)
    """Whether a prompt leaves the thinking open for the answer to continue."""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Look:
    """The input of the checks."""

    path: str
    """The path in the config."""
    model: str
    """The folder or hub name that the libraries accept."""
    config: Any
    tokenizer: Any
    asked: Sequence[Asking]
    engines: Mapping[str, EngineSettings]
    """By the name of their settings; only the engines that run the model."""
    training: TrainingSettings | None
    """None if nothing is trained."""
    found: Base


def look_at_base(
    path: str,
    cache: str,
    asked: Sequence[Asking],
    engines: Mapping[str, EngineSettings],
    training: TrainingSettings | None,
    *,
    with_torch: bool = False,
) -> Base:
    """Run all checks; `asked` are the prompts of the run. Raises `InputError`.

    The libraries load faster without torch, so torch is hidden from this process permanently.
    """
    if not with_torch:
        os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    look = open_base(path, cache, asked, engines, training)
    for check in CHECKS:
        check(look)
    return look.found


def open_base(
    path: str,
    cache: str,
    asked: Sequence[Asking],
    engines: Mapping[str, EngineSettings],
    training: TrainingSettings | None,
) -> Look:
    """Load the config and the tokenizer. Raises `InputError` when they cannot be loaded."""
    from transformers import AutoConfig

    model = local_model(path, cache)
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except BROKEN as error:
        raise UnsureError(
            f"model.path {path!r}: its config cannot be read ({_line(error)})"
        ) from error
    try:
        tokenizer = load_tokenizer(model)
    except InputError:
        raise
    except BROKEN as error:
        raise UnsureError(
            f"model.path {path!r}: no tokenizer can be loaded ({_line(error)}); put its files, "
            "such as tokenizer.json and tokenizer_config.json, into the model's folder"
        ) from error
    found = Base(json.loads(config.to_json_string(use_diff=False)))
    return Look(path, model, config, tokenizer, asked, engines, training, found)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


# --- the files -----------------------------------------------------------------------------------


def check_weights(look: Look) -> None:
    """Refuse weights that are missing, cut, damaged or not finite."""
    check_weight_files(Path(look.model))


# --- prompts -------------------------------------------------------------------------------------


def check_template_arguments(look: Look) -> None:
    """Refuse arguments that the chat template does not read, since they would have no effect."""
    from transformers.utils.chat_template_utils import _get_template_variables

    known = set(_get_template_variables(look.tokenizer.get_chat_template()))
    shown = sorted(name for name in known - NO_ARGUMENTS if not name.endswith("_token"))
    for asking in look.asked:
        for name in asking.sampling.template_args:
            if name not in known:
                has = f"it reads {', '.join(shown)}" if shown else "it reads none"
                raise InputError(
                    f"{asking.field}.template_args.{name}: the chat template of {look.path} does "
                    f"not use it; {has}"
                )


NO_ARGUMENTS = {
    *("messages", "tools", "documents", "add_generation_prompt"),
    *("raise_exception", "strftime_now", "range", "namespace", "dict"),
}
"""Names that a template reads and that are always given to it."""


def check_prompts(look: Look) -> None:
    """Refuse a template that fails, omits the message, or writes tokens that the model lacks;
    record how long each prompt is, and whether it leaves the thinking open."""
    for asking in look.asked:
        ids = _make_prompt(look, asking)
        text = str(look.tokenizer.decode(ids))
        if _letters(asking.messages[-1]["content"]) not in _letters(text):
            raise InputError(
                f"model.path {look.path!r}: the prompt of {asking.field}, made with the model's "
                "chat template and tokenizer, does not contain the question; correct the template"
            )
        _refuse_foreign_ids(look, ids, f"the prompt of {asking.field}")
        look.found.prompt_tokens[asking.name] = len(ids)
        opened = TurnReader(look.tokenizer).opened(ids, asking.messages[-1]["content"])
        look.found.opens_thinking[asking.name] = bool(opened)
        _refuse_unread_thinking(look, asking)


def _refuse_unread_thinking(look: Look, asking: Asking) -> None:
    """Refuse a template that marks thinking in a form that is not known: the thinking would be read
    as the answer, and learned with it."""
    if marks := unread_thinking(look.tokenizer, asking.sampling.template_args):
        raise InputError(
            f"model.path {look.path!r}: its chat template marks the model's thinking as in "
            f"{marks!r}, which this version cannot tell from the answer; turn the thinking off "
            f"with {asking.field}.template_args, or use a server that splits it off "
            "(engine.implementation: endpoint)"
        )


def _make_prompt(look: Look, asking: Asking) -> list[int]:
    from jinja2 import TemplateError

    try:
        return prompt_ids(look.tokenizer, asking.messages, asking.sampling.template_args)
    except (TemplateError, *BROKEN) as error:
        raise InputError(
            f"{asking.field}: the chat template of {look.path} makes no prompt ({_line(error)}); "
            f"correct the template, or {asking.field}.template_args"
        ) from error


def _letters(text: str) -> str:
    """The letters and digits, which every tokenizer keeps whatever it does to other characters."""
    return re.sub(r"[\W_]+", "", text).casefold()


def _refuse_foreign_ids(look: Look, ids: Sequence[int], what: str) -> None:
    size = getattr(look.config.get_text_config(), "vocab_size", None)
    if size and ids and max(ids) >= size:
        raise InputError(
            f"model.path {look.path!r}: {what} has token {max(ids)}, but the model's vocabulary is "
            f"{size} (vocab_size); the tokenizer belongs to another model"
        )


def check_end_of_turn(look: Look) -> None:
    """Refuse a model without an end token, since each answer would continue to its limit."""
    own = getattr(look.tokenizer, "eos_token_id", None)
    if own is None:
        raise InputError(
            f"model.path {look.path!r}: its tokenizer has no token that ends a turn (eos_token); "
            "name one in tokenizer_config.json"
        )
    _refuse_foreign_ids(look, [own], "eos_token")
    _check_generation_ends(look)


def _check_generation_ends(look: Look) -> None:
    """Refuse end tokens in the generation config that are no token ids, which stops an engine when
    it starts; warn of one that the model cannot write."""
    file = Path(look.model) / GENERATION_CONFIG
    try:
        ends = json.loads(file.read_bytes()).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return  # there is none, or `check_save` reports it better
    size = getattr(look.config.get_text_config(), "vocab_size", None)
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and (type(end) is not int or end < 0):
            raise InputError(
                f"model.path {look.path!r}: eos_token_id {end!r} in {GENERATION_CONFIG} is no "
                "token id; give the number of the token that ends an answer, or a list of numbers"
            )
        if end is not None and size and end >= size:
            look.found.warnings.append(
                f"model.path {look.path!r}: eos_token_id {end} in {GENERATION_CONFIG} is beyond "
                f"the vocabulary of {size}, so no answer ends with it"
            )


def check_token_ids(look: Look) -> None:
    """Refuse token ids in the sampling options that the model lacks; vLLM would refuse every
    request."""
    size = getattr(look.config.get_text_config(), "vocab_size", None)
    for asking in look.asked:
        if asking.engine.is_endpoint or size is None:
            continue
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            ids = [str(each) for each in asking.sampling.options.get(name) or ()]
            if wrong := [each for each in ids if not (each.isdecimal() and int(each) < size)]:
                raise InputError(
                    f"{asking.field}.options.{name} has token {wrong[0]}, but the vocabulary of "
                    f"{look.path} is {size} (vocab_size); correct the number"
                )


def check_heads(look: Look) -> None:
    """Refuse to split a model among GPUs that its heads cannot be divided among."""
    heads = getattr(look.config.get_text_config(), "num_attention_heads", None)
    for name, engine in look.engines.items():
        parts = engine.tensor_parallel_size
        if engine.implementation == VLLM and parts and isinstance(heads, int) and heads % parts:
            raise InputError(
                f"{name}.tensor_parallel_size {parts}: the {heads} attention heads of {look.path} "
                f"cannot be divided by it; set it to a divisor of {heads}, or to null"
            )


# --- the context ---------------------------------------------------------------------------------


def check_context(look: Look) -> None:
    """Refuse a context that exceeds the model's positions, or that a prompt fills; warn if an
    answer cannot get all the tokens of its limit."""
    positions = num_positions(look.found.config)
    for name, engine in look.engines.items():
        wanted = engine.max_model_len
        if wanted and positions and wanted > positions and "hf_overrides" not in engine.options:
            raise InputError(
                f"{name}.max_model_len {wanted}: {look.path} has {positions} positions; set it to "
                f"{positions} or less"
            )
    for asking in look.asked:
        context = asking.engine.max_model_len or positions
        if context and not asking.engine.is_endpoint:
            _check_room(look, asking, context)


def _check_room(look: Look, asking: Asking, context: int) -> None:
    prompt, most = look.found.prompt_tokens[asking.name], asking.sampling.max_tokens
    room = context - prompt
    if room < 1:
        raise InputError(
            f"{asking.field}: its prompt has {prompt} tokens with a short question, but the "
            f"context is {context}; raise engine.max_model_len or shorten the prompt"
        )
    if most is not None and most > room:
        look.found.warnings.append(
            f"{asking.field}.max_tokens {most}: the context of {context} tokens leaves an answer "
            f"at most {room} after a prompt of {prompt}"
        )


def num_positions(config: Mapping[str, Any]) -> int | None:
    """The context that a model was made for, with scaled positions; None if it is not given.

    It is derived as in vLLM 0.32 (`_get_and_verify_max_len`), except for a tokenizer's limit.
    """
    inner = {k: v for k, v in (config.get("text_config") or {}).items() if v is not None}
    fields = {**config, **inner}
    if longest := fields.get("model_max_length"):
        return int(longest)
    numbers = [fields[key] for key in POSITION_KEYS if isinstance(fields.get(key), int)]
    if not numbers:
        return None
    return int(min(numbers) * _stretch(fields))


def _stretch(fields: Mapping[str, Any]) -> float:
    if "gemma3" in str(fields.get("model_type", "")):
        return 1.0
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    each = [rope, *(value for value in rope.values() if isinstance(value, Mapping))]
    factors = [
        one["factor"]
        for one in each
        if one.get("factor") and one.get("rope_type", one.get("type")) not in SCALED_POSITIONS
    ]
    return float(max(factors, default=1.0))


# --- what is trained -----------------------------------------------------------------------------


def check_quantized(look: Look) -> None:
    """Refuse to train quantized weights."""
    config = look.found.config
    inner = config.get("text_config") or {}
    found = ((name, of.get(name)) for of in (config, inner) for name in QUANTIZATION_KEYS)
    name, quantized = next(((name, value) for name, value in found if value), ("", None))
    if look.training is None or not quantized:
        return
    is_tree = isinstance(quantized, Mapping)
    method = (is_tree and quantized.get("quant_method")) or f"{name} in config.json"
    raise InputError(
        f"model.path {look.path!r} is quantized ({method}), but training needs weights in "
        "bfloat16 or float32; use the model that it was made from"
    )


def check_lora_targets(look: Look) -> None:
    """Refuse LoRA targets that match no layer.

    The names of the tensors quickly show that all targets exist; if one seems to be missing, the
    model itself decides, which is built without weights.
    """
    training = look.training
    if training is None or training.method != "lora" or _are_there(look, training):
        return
    if sys.modules.get("torch", 0) is None:
        raise UnsureError("training.lora.target_modules: torch is needed to find them")
    refuse_foreign_targets(without_weights(look.config), look.path, training)


def _are_there(look: Look, training: TrainingSettings) -> bool:
    targets, layers = training.lora.target_modules, _layers(look)
    has_experts = any("expert" in key and value for key, value in _fields(look.found.config))
    if has_experts or not layers:
        return False
    if isinstance(targets, str):
        return True
    return all(any(layer.endswith(f".{target}") for layer in layers) for target in targets)


def _layers(look: Look) -> list[str]:
    """The matrices except those of the vocabulary, each with a dot before its name."""
    size = getattr(look.config.get_text_config(), "vocab_size", None)
    return [
        f".{name.removesuffix('.weight')}"
        for name, shape in tensor_shapes(Path(look.model)).items()
        if len(shape) == 2 and size not in shape
    ]


def _fields(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [*config.items(), *(config.get("text_config") or {}).items()]


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """The shapes of the tensors in a folder's safetensors files, read from their headers."""
    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        shapes |= {name: facts["shape"] for name, facts in read_header(file).items()}
    return shapes


def check_save(look: Look) -> None:
    """Save config, generation config, tokenizer and processor, and load them again, as will be done
    with the tuned model."""
    if look.training is None:
        return
    try:
        rehearse_companions(look.config, look.model)
    except InputError as error:
        raise UnsureError(str(error)) from error


Check = Callable[[Look], None]
CHECKS: tuple[Check, ...] = (
    check_weights,
    check_prompts,
    check_template_arguments,
    check_end_of_turn,
    check_token_ids,
    check_heads,
    check_context,
    check_quantized,
    check_lora_targets,
    check_save,
)
