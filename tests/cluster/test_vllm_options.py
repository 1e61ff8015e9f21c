"""Which options of vLLM are refused before an engine starts. vLLM itself is not imported."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import importlib.util
import math
import typing
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.inference import vllm_options, vllm_source
from cluster.inference.engine import (
    EngineSettings,
    GenerationError,
    SamplingSettings,
    check_engine_options,
    make_engine,
)
from cluster.inference.vllm_engine import VLLMEngine, _completions, all_arguments
from cluster.inference.vllm_options import check_sampling
from cluster.settings import content_of, fingerprint


def settings(**options: Any) -> EngineSettings:
    return EngineSettings(options=options)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({}, None),
        ({"load_format": "safetensors", "config_format": "hf"}, None),
        ({"load_format": "AUTO"}, None),
        ({"moe_backend": "Deep-Gemm"}, None),  # vLLM makes it deep_gemm itself
        ({"load_format": "fastsafetensors"}, None),
        ({"load_format": "runai_streamer"}, None),
        ({"quantization": "fp8", "kv_cache_dtype": "fp8"}, None),
        ({"quantization": "int8_per_channel_weight_only"}, None),
        ({"hf_overrides": {"rope_scaling": {"factor": 2.0}}, "enable_prefix_caching": None}, None),
        ({"compilation_config": {"mode": 3}, "optimization_level": 2}, None),
        ({"attention_backend": "FLASH_ATTN", "max_num_batched_tokens": 4096}, None),
        ({"quantization_config": {"moe": {}}, "logits_processors": ["mine.Processor"]}, None),
        ({"load_format": "dummy"}, "load_format dummy reads no weights"),
        ({"load_format": "sharded_state"}, "load_format sharded_state reads no weights"),
        ({"load_format": "tensorizer"}, "load_format tensorizer reads no weights"),
        ({"load_format": "mistral"}, "does not read the safetensors files of a tuned model"),
        ({"load_format": "pt"}, "does not read the safetensors files of a tuned model"),
        ({"config_format": "mistral"}, r"does not read a tuned model's config\.json"),
        ({"worker_extension_cls": "mine.Extension"}, "worker_extension_cls replaces the"),
        ({"quantization": "awq"}, "quantization awq needs quantized files"),
        ({"quantization": "compressed-tensors"}, "needs quantized files"),
    ],
)
def test_options_that_cannot_prove_the_weights_are_refused_only_where_the_run_trained_them(
    options: dict[str, Any], refused: str | None
) -> None:
    check_engine_options(settings(**options), needs_weight_proof=False)
    with pytest.raises(InputError, match=refused) if refused else nullcontext():
        check_engine_options(settings(**options), needs_weight_proof=True)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"enforce_eagr": True}, r"has no enforce_eagr; did you mean enforce_eager\?"),
        ({"kv_cache_dtype": "fp7"}, r"kv_cache_dtype 'fp7': vLLM accepts auto, "),
        ({"tokenizer_mode": 3}, "tokenizer_mode 3"),
        ({"runner": "pool"}, "runner 'pool': vLLM accepts auto, "),
        ({"hf_overrides": 3}, "hf_overrides 3: vLLM accepts "),
        ({"hf_overrides": ["a"]}, "hf_overrides"),
        ({"compilation_config": 3}, "compilation_config 3: vLLM accepts a mapping; correct"),
        ({"compilation_config": {"moed": 3}}, "vLLM's CompilationConfig has no moed; did you"),
        ({"kv_transfer_config": "x"}, r"'x': vLLM accepts a mapping \| null; correct"),
        ({"quantization": 4}, "quantization 4"),
        ({"load_format": []}, r"load_format \[\]"),
        ({"attention_backend": 3}, "attention_backend 3"),
        ({"optimization_level": []}, "optimization_level"),
        ({"safetensors_load_strategy": "fast"}, "vLLM accepts lazy, eager, "),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens 0: it must be 1 or more"),
        ({"long_prefill_token_threshold": -1}, "threshold -1: it must be 0 or more"),
        ({"cpu_offload_gb": -1.5}, "cpu_offload_gb -1.5: it must be 0 or more"),
        ({"watermark": 2}, "watermark 2: it must be 0 or more and below 1"),
        ({"enforce_eager": None}, "enforce_eager None: vLLM accepts bool"),
        ({"load_format": "bitsandbytes"}, "no load_format 'bitsandbytes'; it has auto, "),
        ({"load_format": "gguf"}, "no load_format 'gguf'"),
        ({"quantization": "bitsandbytes"}, "no quantization 'bitsandbytes'; it has awq, "),
        ({"dtype": "float32"}, r"dtype is a setting; write it as engine\.dtype"),
        ({"tensor_parallel_size": 2}, r"write it as engine\.tensor_parallel_size"),
        ({"trust_remote_code": True}, "trust_remote_code is set by the run; leave it out"),
    ],
)
def test_options_that_vllm_does_not_know_or_that_are_settings_are_always_refused(
    options: dict[str, Any], refused: str
) -> None:
    for needs_weight_proof in (False, True):
        with pytest.raises(InputError, match=refused):
            check_engine_options(settings(**options), needs_weight_proof)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"structured_outputs": 3}, "structured_outputs 3: vLLM accepts a mapping"),
        ({"structured_outputs": {"jsno": {}}}, "has no jsno; did you mean json"),
        ({"min_tokens": None}, "min_tokens None: vLLM accepts int"),
        ({"stop_token_ids": [-1]}, "it must be ids of tokens, 0 or more"),
        ({"allowed_token_ids": []}, "it must be a list of one or more ids of tokens"),
        ({"logit_bias": {"x": 1.0}}, "it must be a mapping whose keys are ids of tokens"),
        ({"presence_penalty": math.nan}, "presence_penalty nan: it must be between -2 and 2"),
        ({"presence_penalty": "1"}, "presence_penalty '1': vLLM accepts float"),
        ({"stop": None, "logit_bias": {"5": 1.0}, "allowed_token_ids": [0]}, None),
    ],
)
def test_sampling_options_that_would_fail_every_generation_are_refused(
    options: dict[str, Any], refused: str | None
) -> None:
    sampling = SamplingSettings(options=options)
    with pytest.raises(InputError, match=refused) if refused else nullcontext():
        check_sampling("synthesis.stages.path", sampling)


def test_type_of_every_option_is_known() -> None:
    kinds = vllm_source.argument_types() | vllm_source.sampling_types()
    unknown = {name for name, kind in kinds.items() if vllm_options._known_type(kind) is Any}
    assert unknown == {"output_kind"}  # which the run sets


def test_values_that_a_plugin_of_vllm_may_add_are_left_to_vllm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not vllm_source.has_plugins()
    plugin = importlib.metadata.EntryPoint("mine", "mine:register", "vllm.general_plugins")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: (plugin,))
    quantized = settings(quantization="bitsandbytes", load_format="bitsandbytes")
    check_engine_options(quantized, needs_weight_proof=False)
    with pytest.raises(InputError, match="load_format bitsandbytes reads no weights"):
        check_engine_options(quantized, needs_weight_proof=True)


@pytest.mark.slow
def test_names_read_from_the_source_are_those_that_vllm_has() -> None:
    from vllm import AsyncEngineArgs
    from vllm.model_executor.layers.quantization import QuantizationMethods
    from vllm.model_executor.model_loader import LoadFormats

    names = [field.name for field in dataclasses.fields(AsyncEngineArgs)]
    assert sorted(vllm_source.argument_names()) == sorted(names)
    assert vllm_source.load_formats() == typing.get_args(LoadFormats)
    assert vllm_source.quantization_methods() == typing.get_args(QuantizationMethods)


def test_engine_that_is_not_there_is_refused_by_its_name() -> None:
    for name in ("nowhere.Engine", "cluster.inference.engine.NoEngine", "engine"):
        nowhere = EngineSettings(implementation=name)
        with pytest.raises(InputError, match=f"engine.implementation '{name}'.*give vllm"):
            check_engine_options(nowhere, needs_weight_proof=False)
        with pytest.raises(InputError, match=f"engine.implementation '{name}'"):
            make_engine("model", nowhere)


def test_every_name_of_vllm_gives_the_folders_of_the_first_one() -> None:
    names = ("vllm", "cluster.engine.VLLMEngine", "cluster.inference.vllm_engine.VLLMEngine")
    contents = [content_of(EngineSettings(implementation=name)) for name in names]
    assert contents == [content_of(EngineSettings())] * 3
    # What commit 811bd38 made of the default settings: a step's folder is named after it.
    assert fingerprint(contents[0]) == "9ce36992e11d"


@pytest.mark.parametrize("found", ["another form", "not installed"])
def test_options_are_left_to_a_vllm_whose_source_cannot_be_read(
    found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may define its names elsewhere, or be on the workers only."""
    if found == "not installed":
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        monkeypatch.setattr(vllm_source, "_parsed", vllm_source._parsed.__wrapped__)
    else:
        read = vllm_source._parsed.__wrapped__
        monkeypatch.setattr(vllm_source, "_parsed", lambda _: read("nowhere.py"))
    assert vllm_source.argument_names() == vllm_source.load_formats() == ()
    assert vllm_source.sampling_types() == {}
    unknown = settings(a_later_option=True, load_format="a_later_format")
    check_engine_options(unknown, needs_weight_proof=False)
    check_sampling("sampling", SamplingSettings(options={"a_later_option": 1}))


def test_answer_that_vllm_gave_up_is_a_failed_generation() -> None:
    def answered(reason: str) -> Any:
        answer = SimpleNamespace(index=0, text="4", token_ids=[4], finish_reason=reason)
        return SimpleNamespace(outputs=[answer], num_cached_tokens=None)

    assert _completions(answered("stop"), 3)[0].text == "4"
    for reason in ("abort", "error"):
        with pytest.raises(GenerationError, match=f"vLLM ended the answer with '{reason}'"):
            _completions(answered(reason), 3)


def test_engine_with_a_worker_extension_of_ones_own_tells_no_weights() -> None:
    own = settings(worker_extension_cls="mine.Extension", load_format="safetensors")
    arguments = all_arguments("model", own)
    assert arguments["worker_extension_cls"] == "mine.Extension"
    assert arguments["load_format"] == "safetensors"
    engine = VLLMEngine.__new__(VLLMEngine)  # which has asked its arguments whether it can tell
    engine._has_digests = False
    assert asyncio.run(engine.loaded_weights()) == []


def test_processes_that_vllm_no_longer_knows_have_no_exit_codes() -> None:
    """A later vLLM may keep them elsewhere, and why an engine died is told all the same."""
    engine = VLLMEngine.__new__(VLLMEngine)
    engine._llm = SimpleNamespace(engine_core=SimpleNamespace())
    assert engine._exit_codes() == ""
