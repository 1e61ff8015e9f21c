"""Check that vLLM accepts an option: its name, type and range, without importing vLLM.

Names, types and limits are read from the source of the installed vLLM
(`cluster.inference.vllm_source`). What a class of vLLM's requires of the values in its mapping is
left to vLLM; so are rules that concern several options.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pydantic

from cluster.errors import InputError
from cluster.inference import vllm_source
from cluster.inference.engine import SamplingSettings

CLASSES = {
    "structured_outputs": "StructuredOutputsParams",
    "repetition_detection": "RepetitionDetectionParams",
}
"""Sampling options whose type is one of vLLM's classes, which a config gives as a mapping."""

_Rule = tuple[Callable[[Any], bool], str]
_PENALTY: _Rule = (lambda value: -2 <= value <= 2, "between -2 and 2")
_LOGPROBS: _Rule = (lambda value: value >= -1, "-1 or more")
_TOKENS: _Rule = (lambda value: all(each >= 0 for each in value), "ids of tokens, 0 or more")
_TEXTS: _Rule = (
    lambda value: all(isinstance(each, str) and each for each in value),
    "non-empty texts",
)
RANGES: Mapping[str, _Rule] = {
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "repetition_penalty": (lambda value: 0 < value < math.inf, "above 0"),
    "min_tokens": (lambda value: value >= 0, "0 or more"),
    "logprobs": _LOGPROBS,
    "prompt_logprobs": _LOGPROBS,
    "stop": (lambda value: "" not in [*value] and value != "", "non-empty texts"),
    "bad_words": _TEXTS,
    "stop_token_ids": _TOKENS,
    "allowed_token_ids": (
        lambda value: len(value) > 0 and _TOKENS[0](value),
        "a list of one or more ids of tokens, 0 or more",
    ),
    "logit_bias": (
        lambda value: all(str(each).isdecimal() for each in value),
        "a mapping whose keys are ids of tokens",
    ),
    "stream_interval": (lambda value: value >= 1, "1 or more"),
    "thinking_token_budget": _LOGPROBS,
}
"""What vLLM requires of a value besides its type (SamplingParams._verify_args of 0.32)."""


class _NoValue:
    """A type of which a config cannot give a value, such as a function or a class."""

    dtype: type[Any]

    def __class_getitem__(cls, _: Any) -> type[_NoValue]:
        return cls


_NoValue.dtype = _NoValue.ndarray = _NoValue  # type: ignore[attr-defined]
_CHECKED_APART = ("LoadFormats", "QuantizationMethods")
"""Types of options whose values the engine compares with those that vLLM has."""
_ANY_CLASS = pydantic.ConfigDict(arbitrary_types_allowed=True)

_TYPES: Mapping[str, Any] = (
    {each.__name__: each for each in (int, float, bool, str, list, dict, tuple, set)}
    | {"Any": Any, "None": None, "Literal": typing.Literal}
    | dict.fromkeys(("type", "Callable", "torch", "np"), _NoValue)
    | {"object": object}
    | dict.fromkeys(("PreTrainedConfig", "Executor", "LogitsProcessor"), _NoValue)
)


def check_sampling(field: str, sampling: SamplingSettings) -> None:
    """Raise `InputError` for values that `SamplingParams` would refuse; `field` is the place of the
    settings in the config."""
    if sampling.temperature > 2:
        raise InputError(f"{field}.temperature {sampling.temperature:g}: vLLM accepts 0 to 2")
    types, where = vllm_source.sampling_types(), f"{field}.options"
    if not types:
        return
    refuse_unknown(where, "SamplingParams", sampling.options, types)
    check_types(where, sampling.options, types, strict=True)
    for name, value in sampling.options.items():
        if name in CLASSES and isinstance(value, Mapping):
            known = vllm_source.sampling_fields(CLASSES[name])
            refuse_unknown(f"{where}.{name}", CLASSES[name], value, known)
        elif value is not None and name in RANGES and not RANGES[name][0](value):
            raise InputError(f"{where}.{name} {value!r}: it must be {RANGES[name][1]}")
    least, most = sampling.options.get("min_tokens") or 0, sampling.max_tokens
    if most is not None and least > most:
        raise InputError(
            f"{where}.min_tokens {least} is more than {field}.max_tokens {most}; lower it"
        )


def check_engine_options(field: str, options: Mapping[str, Any]) -> None:
    """Raise `InputError` for names, types and values that `AsyncEngineArgs` would refuse."""
    types = vllm_source.argument_types()
    if not types:
        return
    refuse_unknown(field, "AsyncEngineArgs", options, types)
    fields = vllm_source.argument_fields()
    there = {n: v for n, v in options.items() if v is not None or not _may_be_null(fields, n)}
    check_types(field, there, types, strict=False)
    for name, value in there.items():
        class_name = types[name].removesuffix(" | None")
        if isinstance(value, Mapping) and (known := vllm_source.config_names(class_name)):
            refuse_unknown(f"{field}.{name}", class_name, value, known)
        elif name in fields:
            _refuse_out_of_range(f"{field}.{name}", value, fields[name].bounds)


def _may_be_null(fields: Mapping[str, vllm_source.ConfigField], name: str) -> bool:
    return name not in fields or fields[name].may_be_null


_LIMITS: Mapping[str, tuple[Callable[[float, float], bool], str]] = {
    "ge": (operator.ge, "{:g} or more"),
    "gt": (operator.gt, "above {:g}"),
    "le": (operator.le, "{:g} or less"),
    "lt": (operator.lt, "below {:g}"),
}


def _refuse_out_of_range(field: str, value: Any, bounds: Mapping[str, float]) -> None:
    if isinstance(value, str | bool) or not isinstance(value, int | float):
        return
    if all(_LIMITS[name][0](value, limit) for name, limit in bounds.items()):
        return
    wanted = " and ".join(_LIMITS[name][1].format(limit) for name, limit in bounds.items())
    raise InputError(f"{field} {value!r}: it must be {wanted}")


def check_types(
    field: str, options: Mapping[str, Any], types: Mapping[str, str], *, strict: bool
) -> None:
    """Raise `InputError` for a value that does not have the type in vLLM's source.

    With `strict`, a text that could be parsed as a number is not accepted as one.
    """
    for name, value in options.items():
        kind = _known_type(types.get(name, "Any"))
        try:
            pydantic.TypeAdapter(kind, config=_ANY_CLASS).validate_python(value, strict=strict)
        except pydantic.ValidationError:
            texts = _texts_of(kind)
            if value is not None and _plain(value) in map(_plain, texts):
                continue
            accepted = ", ".join(map(str, texts)) or _in_words(types[name])
            raise InputError(
                f"{field}.{name} {value!r}: vLLM accepts {accepted}; correct the value"
            ) from None


def _in_words(source: str) -> str:
    """A type of vLLM's source as a user writes its values."""
    parts = [part.strip() for part in source.strip("'").split("|")]
    words = ["a mapping" if _is_class(part) else part for part in parts]
    return " | ".join("null" if word == "None" else word for word in words)


def _is_class(name: str) -> bool:
    return name in CLASSES.values() or vllm_source.is_config_class(name)


def _texts_of(kind: Any) -> list[Any]:
    """The values of a `Literal`, also as a part of a union; nothing for other types."""
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return [text for part in parts for text in (_texts_of(part) or [part])]
    return [text for part in parts for text in _texts_of(part)]


def _plain(value: Any) -> str:
    """A name as vLLM may compare it: some of its settings take other cases and dashes."""
    return str(value).lower().replace("-", "_")


def _known_type(source: str) -> Any:
    """The type that an annotation denotes; any type if it names one of vLLM's classes."""
    try:
        return _evaluated(source)
    except (NameError, AttributeError, TypeError, SyntaxError):
        return Any


def _evaluated(source: str) -> Any:
    names = set(re.findall(r"\b[A-Z]\w+", source)) - _TYPES.keys()
    named = vllm_source.type_names() if names else {}
    known = {name: _evaluated(named[name]) for name in names & named.keys()}
    known |= {name: dict[str, Any] for name in names - known.keys() if _is_class(name)}
    known |= {name: str for name in names if name.endswith("Enum") or name in _CHECKED_APART}
    kind = eval(source, {"__builtins__": {}}, {**_TYPES, **known})  # noqa: S307, of installed code
    return _evaluated(kind) if isinstance(kind, str) else kind


def refuse_unknown(
    field: str, vllm_class: str, options: Mapping[str, Any], known: Iterable[str]
) -> None:
    known = sorted(known)
    for name in options:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else f"it has {', '.join(known)}"
            raise InputError(f"{field}: vLLM's {vllm_class} has no {name}; {hint}")
