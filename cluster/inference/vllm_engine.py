"""vLLM as an engine. All code that depends on vLLM is here, except what runs in its processes.

That is in `cluster.inference.vllm_loader`. vLLM is imported only when an engine starts, so
importing this module is cheap."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from cluster.errors import InputError
from cluster.inference import vllm_source
from cluster.inference.cpu_binding import served_dtype
from cluster.inference.engine import (
    Beginning,
    Completion,
    EngineDiedError,
    EngineSettings,
    GenerationError,
    PromptTooLongError,
    SamplingSettings,
)
from cluster.inference.engine_processes import start_reaper
from cluster.inference.vllm_options import (
    check_engine_options,
    check_sampling,
    refuse_unknown,
)

LOAD_FORMAT = "regenesis_digests"
"""Prefix of the names of the loaders that `cluster.inference.vllm_loader` registers in vLLM."""

READ_BY_NAME = (
    "auto",
    "hf",
    "safetensors",
    "fastsafetensors",
    "instanttensor",
    "runai_streamer",
    "mistral",
    "npcache",
    "pt",
)
"""Load formats of vLLM that read a model's files tensor by tensor, so that each can be digested.
The others read no files, or tensors that were already split and fused."""
READ_NO_SAFETENSORS = ("mistral", "npcache", "pt")
"""Those of them that do not read `model*.safetensors`, the files that a training saves."""

NEED_QUANTIZED_FILES = (
    *("awq", "auto_awq", "awq_marlin", "gptq", "auto_gptq", "gptq_marlin", "moe_wna16"),
    *("compressed-tensors", "modelopt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed"),
    *("quark", "fbgemm_fp8", "deepseek_v4_fp8", "gpt_oss_mxfp4"),
)
"""Quantizations that need quantized files. The others are computed while loading."""

_OWN_ARGUMENTS = (
    *("dtype", "max_model_len", "max_num_seqs", "gpu_memory_utilization"),
    *("tensor_parallel_size", "pipeline_parallel_size"),
)
_RUN_ARGUMENTS = ("model", "trust_remote_code")

_TOKENS_PER_SEQUENCE = 4
_VLLM_TOKENS = 2048
"""vLLM's default number of tokens per step on every card, when it is used as a library (0.32)."""

MAX_ADAPTERS_IN_BATCH = 8
"""vLLM reserves memory for so many adapters; requests of a further one wait for the next batch."""


def engine_environment(settings: EngineSettings) -> dict[str, str]:
    """Environment variables that a worker must have before vLLM is imported.

    Values that depend on the machine (cores `auto`, a planned cache) are not included: the worker
    sets them with `bind_cpu`.
    """
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if settings.use_gpu:
        return environment
    if settings.kv_cache_gib is not None:
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(settings.kv_cache_gib)
    if settings.omp_threads_bind != "auto":
        environment["VLLM_CPU_OMP_THREADS_BIND"] = settings.omp_threads_bind
    return environment


class VLLMEngine:
    """vLLM's AsyncLLM: every request joins the shared continuous batch as soon as it arrives.

    It answers with `settings.adapter`; `with_adapter` answers with one of the further `adapters`.
    Raises `InputError` for an option that vLLM does not know, and `ValueError` for an adapter that
    it cannot serve.
    """

    def __init__(self, model: str, settings: EngineSettings, adapters: Sequence[str] = ()) -> None:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from cluster.models.chat_template import ChatModel

        _check_options(settings.options)
        arguments = all_arguments(model, settings)
        self._has_digests = bool(_digest_arguments(settings.options))
        folders = list(dict.fromkeys([*filter(None, [settings.adapter]), *adapters]))
        if folders:
            arguments = adapter_arguments(folders, settings.use_gpu) | arguments
        self._adapters = _adapter_requests(folders)
        self._adapter = self._adapters.get(settings.adapter or "")
        # vLLM's processes do not notice when this process dies.
        self._reaper = start_reaper()
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        self._chat = ChatModel.load(model)
        self._context = int(self._llm.model_config.max_model_len)
        self.facts = {"dtype": str(self._llm.model_config.dtype).removeprefix("torch.")}
        self._request_ids = itertools.count()

    @staticmethod
    def check_settings(settings: EngineSettings, needs_weight_proof: bool) -> None:
        """Refuse options that vLLM does not know, and options with which an engine cannot prove
        that it serves a model that the run trained. Raises `InputError`."""
        _check_options(settings.options)
        if not settings.use_gpu and "max_loras" in settings.options:
            raise InputError(
                f"engine.options.max_loras {settings.options['max_loras']!r}: on CPUs it "
                "follows from the number of adapters; leave the option out"
            )
        known = vllm_source.dtypes()
        if known and settings.dtype not in known:
            raise InputError(
                f"engine.dtype {settings.dtype!r}: vLLM computes in {', '.join(known)}; to use "
                "weights of fewer bits, set engine.options.quantization"
            )
        if needs_weight_proof and (reason := _no_weight_proof(settings.options)):
            raise InputError(
                f"engine.options: {reason}, and this run evaluates a model that it trains; leave "
                "the option out, or run with --until examples"
            )

    @staticmethod
    def check_sampling(field: str, sampling: SamplingSettings) -> None:
        """Refuse names and values that `SamplingParams` does not accept. Raises `InputError`."""
        check_sampling(field, sampling)

    async def loaded_weights(self) -> list[dict[str, dict[str, str]]]:
        """See `TellsWeights`; loads the adapters first. Raises `EngineDiedError`."""
        if not self._has_digests:
            return []
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            for request in self._adapters.values():
                await self._llm.add_lora(request)
            reports = await self._llm.collective_rpc("loaded_tensors")
        except EngineDeadError as error:
            raise EngineDiedError(f"{_reason(error)}{self._exit_codes()}") from error
        folders = {str(each.lora_int_id): each.lora_path for each in self._adapters.values()}
        return [{folders.get(name, name): of for name, of in each.items()} for each in reports]

    def with_adapter(self, adapter: str) -> VLLMEngine:
        """See `ServesAdapters`. The original is the one to shut down."""
        view = copy.copy(self)
        view._adapter = self._adapters[adapter]
        return view

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        """`n` answers to one chat; the i-th is drawn with `seed + i`.

        Greedy answers are all the same, so only one is computed. Cancelling removes the request
        from the batch. Raises `GenerationError`, `EngineDiedError`, and `ValueError` for sampling
        options that vLLM refuses for any prompt.
        """
        params = _sampling_params(self._chat.with_stops(sampling))
        prompt = self._chat.prompt(messages, sampling.template_args)
        ids = prompt.token_ids
        room = self._context - len(ids)
        if room < 1:
            raise PromptTooLongError(
                f"the prompt has {len(ids)} tokens, but the model's context is {self._context}"
            )
        params.max_tokens = min(sampling.max_tokens or room, room)
        params.min_tokens = min(params.min_tokens, params.max_tokens)
        if sampling.temperature > 0:
            params.seed, params.n = seed, n
        sampled = _completions(await self._generate(ids, params), len(ids))
        completions = [self._chat.read(each, prompt) for each in sampled]
        return completions if len(completions) == n else completions * n

    async def go_on(
        self,
        messages: Sequence[Mapping[str, str]],
        beginning: Beginning,
        sampling: SamplingSettings,
    ) -> Completion:
        """See `ContinuesAnswers`. Needs a token limit; the seed of a draw is 0.

        The likelihoods come with the first token (`logprob_token_ids`): those of prompt tokens
        (`prompt_logprobs`) would keep vLLM from using the cached prefix.
        """
        params = _sampling_params(self._chat.with_stops(sampling))
        prompt = self._chat.prompt(messages, sampling.template_args)
        ids = self._chat.begun_ids(prompt, beginning, self._context - (sampling.max_tokens or 1))
        weighed = self._chat.option_ids(beginning)
        params.logprob_token_ids = weighed or None
        output = await self._generate(ids, params)
        [completion] = _completions(output, len(ids))
        if weighed:
            first = output.outputs[0].logprobs[0]
            likelihoods = tuple(float(first[token].logprob) for token in weighed)
            completion = dataclasses.replace(completion, option_log_likelihoods=likelihoods)
        return completion

    async def _generate(self, ids: list[int], params: Any) -> Any:
        """The final RequestOutput of vLLM, which has all `params.n` answers."""
        from vllm.exceptions import VLLMError
        from vllm.inputs.engine import tokens_input

        request_id = str(next(self._request_ids))
        outputs = self._llm.generate(
            tokens_input(ids), params, request_id, lora_request=self._adapter
        )
        try:
            async for output in outputs:
                final = output
        except (VLLMError, ValueError) as error:
            if self._llm.errored:
                raise EngineDiedError(f"{_reason(error)}{self._exit_codes()}") from error
            raise GenerationError(_reason(error)) from error
        return final

    def _exit_codes(self) -> str:
        """How the processes of the engine ended, as far as vLLM still knows."""
        with contextlib.suppress(AttributeError):
            codes = self._llm.engine_core.resources.engine_manager.finished_procs()
            return "".join(f" ({name} ended with {code})" for name, code in codes.items())
        return ""

    def shutdown(self) -> None:
        """End the processes of the engine, which cannot be used after that."""
        self._llm.shutdown()
        # Its destructor shuts down once more. That is silent now, but not when Python ends.
        del self._llm
        self._reaper.terminate()
        self._reaper.wait()


def all_arguments(model: str, settings: EngineSettings) -> dict[str, Any]:
    """The keyword arguments of AsyncEngineArgs, without those of an adapter."""
    digests = _digest_arguments(settings.options)
    return engine_arguments(model, settings) | settings.options | digests


def engine_arguments(model: str, settings: EngineSettings) -> dict[str, Any]:
    """The arguments of AsyncEngineArgs that our settings decide, before `engine.options`."""
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": served_dtype(settings),
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel_size or 1,
        "pipeline_parallel_size": settings.pipeline_parallel_size,
        "enable_prefix_caching": True,
        "trust_remote_code": False,
        "disable_log_stats": True,
    }
    if settings.max_model_len is not None:
        arguments["max_model_len"] = settings.max_model_len
    if settings.use_gpu:
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
        arguments |= _batched_tokens(settings)
    else:
        # A prompt that is computed in parts resets the random generator of its request, which vLLM
        # 0.32 cannot do on a CPU: the first seeded request that is split kills the engine.
        arguments["enable_chunked_prefill"] = False
        if settings.max_model_len is not None:
            arguments["max_num_batched_tokens"] = max(settings.max_model_len, 4096)
    if settings.placement_group:
        arguments["distributed_executor_backend"] = "ray"
    elif settings.gpus_per_worker > 1:
        # All ranks are on this node. By default vLLM would use the placement group of the pool.
        arguments["distributed_executor_backend"] = "mp"
    return arguments


def _batched_tokens(settings: EngineSettings) -> dict[str, int]:
    """Token limit of one step, prompts included, if vLLM's default of 2,048 would slow the batch.

    Each running sequence takes one token of a step for its next token. Our chains read about 1.1
    new prompt tokens for each token that they generate, so a full batch needs 2.1 tokens per
    sequence and step; twice that leaves room for prompts that arrive together. 2,048 are enough
    for 512 sequences. A larger step needs more memory for activations, so it is not used earlier.
    """
    needed = _TOKENS_PER_SEQUENCE * settings.max_num_seqs
    # Without chunked prefill a step must hold a complete context, which vLLM sets itself.
    is_chunked = settings.options.get("enable_chunked_prefill", True)
    return {"max_num_batched_tokens": needed} if is_chunked and needed > _VLLM_TOKENS else {}


def _digest_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """The engine arguments with which vLLM's processes digest what they load; empty if the options
    name a loader or a worker extension that cannot be combined with ours."""
    load_format = _load_format(options)
    if load_format not in READ_BY_NAME or "worker_extension_cls" in options:
        return {}
    return {
        "load_format": f"{LOAD_FORMAT}_{load_format}",
        "worker_extension_cls": "cluster.inference.vllm_loader.LoadedTensors",
    }


def _load_format(options: Mapping[str, Any]) -> str:
    return str(options.get("load_format", "auto")).lower()


def _no_weight_proof(options: Mapping[str, Any]) -> str | None:
    """Why an engine with these options cannot serve a model that the run trained, or cannot prove
    that it does; None if it can."""
    if "worker_extension_cls" in options:
        return "worker_extension_cls replaces the extension that reports loaded weights"
    if (load_format := _load_format(options)) not in READ_BY_NAME:
        return f"load_format {load_format} reads no weights that could be compared with saved ones"
    if load_format in READ_NO_SAFETENSORS:
        return f"load_format {load_format} does not read the safetensors files of a tuned model"
    if options.get("config_format", "auto") not in ("auto", "hf"):
        return f"config_format {options['config_format']} does not read a tuned model's config.json"
    if options.get("quantization") in NEED_QUANTIZED_FILES:
        return (
            f"quantization {options['quantization']} needs quantized files, which no training saves"
        )
    return None


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise `InputError` for names and values that vLLM does not know, and for separate
    settings."""
    for name in options:
        if name in _OWN_ARGUMENTS:
            raise InputError(f"engine.options: {name} is a setting; write it as engine.{name}")
        if name in _RUN_ARGUMENTS:
            raise InputError(f"engine.options: {name} is set by the run; leave it out")
    check_engine_options("engine.options", options)
    for name, values in (
        ("load_format", vllm_source.load_formats()),
        ("quantization", vllm_source.quantization_methods()),
    ):
        value = options.get(name)
        is_open = value is None or not values or vllm_source.has_plugins()
        if not is_open and str(value).lower() not in values:
            raise InputError(
                f"engine.options: this vLLM has no {name} {value!r}; it has {', '.join(values)}"
            )


def adapter_arguments(adapters: Sequence[str], use_gpu: bool) -> dict[str, Any]:
    """The engine arguments for some LoRA adapters: the largest rank among them, and their number.

    They are checked first, because an adapter that vLLM cannot load would end the engine in the
    middle of the work. Raises `ValueError`, which names the folder.
    """
    from vllm.config.lora import MaxLoRARanks

    checked = {adapter: _peft_of(adapter) for adapter in adapters}
    # vLLM supports only some ranks; a smaller adapter is padded.
    rank = max(_rank(peft) for peft in checked.values())
    slots = min(len(adapters), MAX_ADAPTERS_IN_BATCH)
    if not use_gpu:
        # On CPUs, vLLM computes a request without an adapter with the adapter in the last slot when
        # others in the batch have one. So the last slot stays empty.
        slots = len(adapters) + 1
    return {
        "enable_lora": True,
        "max_loras": slots,
        "max_cpu_loras": max(slots, len(adapters)),
        "max_lora_rank": min(known for known in get_args(MaxLoRARanks) if known >= rank),
    }


def _peft_of(adapter: str) -> Any:
    """How an adapter was made, as vLLM reads it. Raises `ValueError` for one it cannot serve."""
    from vllm.config.lora import LoRAConfig, MaxLoRARanks
    from vllm.lora.peft_helper import PEFTHelper

    try:
        peft = PEFTHelper.from_local_dir(adapter, None)
        peft.validate_legal(LoRAConfig(max_lora_rank=max(get_args(MaxLoRARanks))))
    except OSError as error:
        raise ValueError(
            f"engine.adapter {adapter!r}: {error}; give the folder that PEFT wrote the adapter to"
        ) from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"engine.adapter {adapter!r}: {error}") from error
    return peft


def _rank(peft: Any) -> int:
    return int(max(peft.r, *peft.rank_pattern.values(), 0))


def _adapter_requests(adapters: Sequence[str]) -> dict[str, Any]:
    """What names each adapter to vLLM, by its folder; vLLM numbers them from 1."""
    from vllm.lora.request import LoRARequest

    return {
        adapter: LoRARequest(lora_name=adapter, lora_int_id=number, lora_path=adapter)
        for number, adapter in enumerate(adapters, start=1)
    }


def _sampling_params(sampling: SamplingSettings) -> Any:
    """The SamplingParams of the settings, apart from what depends on the prompt.

    Raises `ValueError` that names the option which vLLM does not know or refuses.
    """
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import RequestOutputKind

    if sampling.options:
        known = inspect.signature(SamplingParams.from_optional).parameters
        refuse_unknown("sampling.options", "SamplingParams", sampling.options, known)
    try:
        return SamplingParams.from_optional(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_tokens,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **{name: _option(name, value) for name, value in sampling.options.items()},
        )
    except (VLLMValidationError, TypeError, ValueError) as error:
        raise ValueError(f"sampling {sampling.options}: {_one_line(error)}") from error


def _option(name: str, value: Any) -> Any:
    """An option's value in the form that vLLM expects: two options are instances of its classes."""
    from vllm.sampling_params import RepetitionDetectionParams, StructuredOutputsParams

    classes = {
        "structured_outputs": StructuredOutputsParams,
        "repetition_detection": RepetitionDetectionParams,
    }
    if name not in classes or not isinstance(value, Mapping):
        return value
    # vLLM ignores an unknown name here and would then generate without the constraint.
    known = [field.name for field in dataclasses.fields(classes[name]) if field.init]
    refuse_unknown(f"sampling.options.{name}", classes[name].__name__, value, known)
    return classes[name](**value)


def _completions(output: Any, num_prompt_tokens: int) -> list[Completion]:
    """The answers of a RequestOutput, in the order of their seeds."""
    answers = sorted(output.outputs, key=lambda answer: answer.index)
    for answer in answers:
        if answer.finish_reason in ("abort", "error"):
            raise GenerationError(f"vLLM ended the answer with {answer.finish_reason!r}")
    return [
        Completion(
            text=answer.text,
            token_ids=list(answer.token_ids),
            finish_reason=answer.finish_reason,
            num_prompt_tokens=num_prompt_tokens,
            num_cached_tokens=output.num_cached_tokens or 0,
        )
        for answer in answers
    ]


def _reason(error: Exception) -> str:
    """Why a generation failed, in one line: vLLM wraps unexpected errors in an empty one."""
    cause = error.__cause__
    return _one_line(cause if not str(error) and isinstance(cause, Exception) else error)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
