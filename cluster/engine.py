"""The inference engine: one asynchronous vLLM engine behind one method, `chat`.

Everything that knows vLLM is here, and in `cluster.loading` what runs inside its processes. An
engine lives inside a worker of the pool (`cluster.pool`); a test may name another implementation by
its import path (`engine.implementation`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, cast, get_args, runtime_checkable

from pydantic import Field, field_validator

from cluster.processes import start_reaper
from cluster.settings import OPERATIONAL, Settings

# Arguments of vLLM's SamplingParams that are settings here, and those that the run decides.
_OWN_OPTIONS = ("temperature", "top_p", "top_k", "min_p", "max_tokens")
_RUN_OPTIONS = ("seed", "n", "output_kind", "detokenize", "skip_clone")

LOAD_FORMAT = "regenesis_digests"
"""vLLM's name for the loader that `cluster.loading` registers."""
_DIGESTS = {
    "load_format": LOAD_FORMAT,
    "worker_extension_cls": "cluster.loading.LoadedTensors",
}


class SamplingSettings(Settings):
    """How one generation is drawn."""

    temperature: Annotated[float, Field(ge=0)] = 0.85
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Below 1 it halves the speed on a CPU, which sorts the whole vocabulary for it."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """0 is no limit."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Tokens below this share of the likeliest one's probability are not drawn; 0 is no limit."""
    max_tokens: Annotated[int, Field(gt=0)] | None = 1024
    """Most tokens of one generation, a thinking part included; null is what the context leaves."""
    template_args: dict[str, Any] = {}
    """Passed to the chat template, for example `{enable_thinking: true}`."""
    options: dict[str, Any] = {}
    """Any further argument of vLLM's SamplingParams: repetition_penalty, structured_outputs, ..."""

    @field_validator("options")
    @classmethod
    def _no_option_of_ours(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in options:
            if name in _OWN_OPTIONS:
                raise ValueError(f"{name} is a setting of its own; write it beside options")
            if name in _RUN_OPTIONS:
                raise ValueError(f"{name} is decided by the run; leave it out")
        return options


class EngineSettings(Settings):
    """The engine pool: which engine, how many, and on what."""

    implementation: str = "cluster.engine.VLLMEngine"
    """Import path of a class with the interface `Engine`."""
    dtype: str = "auto"
    """Number type of weights and activations; auto takes what suits the model and the machine."""
    max_model_len: Annotated[int, Field(gt=0)] | None = None
    """Tokens of prompt and answer together; null is what the model was made for."""
    options: dict[str, Any] = {}
    """Any further argument of vLLM's AsyncEngineArgs: quantization, speculative_config, ..."""
    adapter: str | None = None
    """Folder of a PEFT LoRA adapter to serve on top of the model; null is the model alone."""
    max_num_seqs: Annotated[int, OPERATIONAL, Field(gt=0)] = 256
    """Generations that one engine runs at once."""
    gpu_memory_utilization: Annotated[float, OPERATIONAL, Field(gt=0, le=1)] = 0.9
    """The share of each GPU's memory that an engine may take."""
    kv_cache_gib: Annotated[Annotated[int, Field(gt=0)] | None, OPERATIONAL] = None
    """On a CPU only: memory of one engine's key-value cache; null is planned (`kv_cache_gib`)."""
    omp_threads_bind: Annotated[str, OPERATIONAL] = "auto"
    """On a CPU only: the cores vLLM computes on, as in `0-1`; auto is all cores of the machine,
    divided among its workers (`cpu_bind`)."""
    tensor_parallel_size: Annotated[Annotated[int, Field(gt=0)] | None, OPERATIONAL] = None
    """GPUs over which an engine splits its layers; null is planned from the model and the GPUs
    (`cluster.planner`), and with it how many engines, how long a context and how large a batch."""
    pipeline_parallel_size: Annotated[int, OPERATIONAL, Field(gt=0)] = 1
    """Groups of layers of one engine, each on GPUs that hold nothing else of it."""
    min_workers: Annotated[Annotated[int, Field(gt=0)] | None, OPERATIONAL] = None
    """Engines to start with; null is all of them."""
    max_workers: Annotated[Annotated[int, Field(gt=0)] | None, OPERATIONAL] = None
    """Engines to grow to while the cluster has room for them; null is as many as the GPUs hold, one
    where there are none."""
    use_gpu: Annotated[bool, OPERATIONAL] = True
    """Whether engines compute on GPUs; false is the CPU."""
    cpus_per_worker: Annotated[float, OPERATIONAL, Field(gt=0)] = 1
    """Logical CPUs. Leave at least one on the machine unclaimed: a pool that takes every CPU
    starves the tasks that feed it."""
    placement_group: Annotated[bool, OPERATIONAL] = False
    """Reserve the bundles of each engine as one placement group; for engines over several nodes."""
    chunk_size: Annotated[int, OPERATIONAL, Field(gt=0)] = 8
    """Questions handed to a worker at once."""
    chunks_in_flight: Annotated[int, OPERATIONAL, Field(gt=0)] = 4
    """Chunks that a worker holds at once, so that the end of one hides behind the next."""
    flush_rows: Annotated[int, OPERATIONAL, Field(gt=0)] = 256
    """So many finished questions are written at once, or fewer after `flush_s`."""
    flush_s: Annotated[float, OPERATIONAL, Field(gt=0)] = 10.0
    """Finished questions are durable after at most this many rows or seconds."""
    generation_timeout_s: Annotated[Annotated[float, Field(gt=0)] | None, OPERATIONAL] = None
    """Seconds after which one generation is given up; null waits as long as it takes."""
    max_attempts: Annotated[int, OPERATIONAL, Field(gt=0)] = 3
    """How often a question is tried: again for its failed paths, and again when its engine died
    with it. A question that is still failing then is set aside with the reason."""
    max_restarts: Annotated[int, OPERATIONAL, Field(ge=0)] = 8
    """How often a dead worker is started again before the run stops with its engine's error."""

    @property
    def gpus_per_worker(self) -> int:
        """GPUs of one engine."""
        return (self.tensor_parallel_size or 1) * self.pipeline_parallel_size * self.use_gpu

    @property
    def generations_in_flight(self) -> int:
        """Chains offered to one engine: its batch and a quarter more, so that it never waits."""
        return self.max_num_seqs + max(1, self.max_num_seqs // 4)


@dataclass(frozen=True, slots=True)
class Completion:
    """What one generation returned."""

    text: str
    token_ids: list[int]
    finish_reason: str
    """`stop` when the model ended by itself, `length` when its limit cut it."""
    num_prompt_tokens: int
    num_cached_tokens: int = 0
    """How many of the prompt's tokens the prefix cache already held, in whole blocks. Of answers
    asked for together all have the number of the one that finished last."""


class GenerationError(RuntimeError):
    """One request failed; the engine goes on with the others."""


class PromptTooLongError(GenerationError):
    """The prompt leaves no room for an answer within the model's context."""


class GenerationTimeoutError(GenerationError):
    """The answer did not come within `engine.generation_timeout_s`."""


class EngineDiedError(RuntimeError):
    """The engine answers nothing any more."""


class Engine(Protocol):
    """What a worker needs of an engine."""

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        """`n` answers to one chat. Raises `GenerationError` and `EngineDiedError`."""

    def shutdown(self) -> None:
        """End the engine's own processes."""


@runtime_checkable
class TellsWeights(Protocol):
    """An engine that can tell what it serves."""

    async def loaded_weights(self) -> list[dict[str, dict[str, str]]]:
        """The digests (`cluster.weights`) of the tensors that each of its processes read, by name,
        of the `model` and of the `adapter`."""


def make_engine(model: str, settings: EngineSettings) -> Engine:
    """Start the engine that the settings name. Raises `ValueError` when there is no such class."""
    module_name, _, class_name = settings.implementation.rpartition(".")
    try:
        factory = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"engine.implementation {settings.implementation!r}: {error}") from error
    return cast(Engine, factory(model, settings))


def engine_environment(settings: EngineSettings) -> dict[str, str]:
    """Environment variables a worker must have before vLLM is imported.

    What depends on the machine (cores `auto`, a planned cache) is not among them: the worker sets
    it itself with `bind_cpu`.
    """
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if settings.use_gpu:
        return environment
    if settings.kv_cache_gib is not None:
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(settings.kv_cache_gib)
    if settings.omp_threads_bind != "auto":
        environment["VLLM_CPU_OMP_THREADS_BIND"] = settings.omp_threads_bind
    return environment


def bind_cpu(cores: str, kv_cache: int) -> None:
    """Tell the next vLLM engine of this process its cores, as in `0-1`, and its cache in GiB.

    vLLM reads both when an engine starts, so this works after vLLM is imported, too.
    """
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cores
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache)


def cpu_bind(worker_index: int, workers_per_node: int, num_cores: int) -> str:
    """The cores of one worker, as in `0-1`: all cores of a node divided evenly among its workers.

    Of more workers than cores several share one; an index from `workers_per_node` on begins again
    at the first worker's cores.
    """
    index = worker_index % workers_per_node
    first = index * num_cores // workers_per_node
    last = max(first, (index + 1) * num_cores // workers_per_node - 1)
    return str(first) if first == last else f"{first}-{last}"


def kv_cache_gib(
    model_config: Mapping[str, Any],
    context: int,
    max_num_seqs: int,
    dtype_bytes: int,
    memory_gib: float,
) -> int:
    """GiB of key-value cache with which `max_num_seqs` sequences of `context` tokens fit at once.

    `model_config` is the parsed config.json, `dtype_bytes` the size of one number in the cache.
    At least 1, and otherwise at most a third of the machine's `memory_gib`; that third, too, for
    a model whose config does not tell its shape.
    """
    limit = math.floor(memory_gib / 3)
    token_bytes = _kv_token_bytes(model_config.get("text_config") or model_config, dtype_bytes)
    if token_bytes is None:
        return max(1, limit)
    return max(1, min(limit, math.ceil(token_bytes * context * max_num_seqs / 2**30)))


def _kv_token_bytes(config: Mapping[str, Any], dtype_bytes: int) -> int | None:
    """Bytes that one token takes in the cache: a key and a value in each layer."""
    try:
        layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
    except KeyError:
        return None
    kv_heads = config.get("num_key_value_heads") or heads
    return int(2 * layers * kv_heads * head_dim * dtype_bytes)


def bind_cpu_share(
    model: str, settings: EngineSettings, worker_index: int, workers_per_node: int
) -> None:
    """Bind the next engine to its share of this machine's cores and memory, where the settings
    leave them open. `model` is the folder that will be served; a hub name tells no shape."""
    import psutil

    config_file = Path(model) / "config.json"
    config = json.loads(config_file.read_text()) if config_file.exists() else {}
    context = settings.max_model_len or config.get("max_position_embeddings") or 4096
    dtype_bytes = 4 if settings.dtype in ("float32", "float") else 2
    memory_gib = psutil.virtual_memory().total / 2**30 / workers_per_node
    planned = kv_cache_gib(config, context, settings.max_num_seqs, dtype_bytes, memory_gib)
    cores = cpu_bind(worker_index, workers_per_node, len(os.sched_getaffinity(0)))
    auto = settings.omp_threads_bind == "auto"
    bind_cpu(cores if auto else settings.omp_threads_bind, settings.kv_cache_gib or planned)


def slow_top_p(samplings: Iterable[SamplingSettings], use_gpu: bool) -> str | None:
    """A warning in one sentence when `top_p` will slow a CPU down, else nothing."""
    if use_gpu or not any(each.top_p < 1 and each.temperature > 0 for each in samplings):
        return None
    return (
        "top_p below 1 about halves the speed on a CPU, where vLLM sorts the whole vocabulary "
        "for each token; min_p cuts off unlikely tokens without that"
    )


class VLLMEngine:
    """vLLM's AsyncLLM: every request joins the one continuous batch as soon as it is made.

    Raises `ValueError` for an option that vLLM does not know and for an adapter it cannot serve.
    """

    def __init__(self, model: str, settings: EngineSettings) -> None:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from cluster.chat import load_tokenizer

        arguments = _engine_arguments(model, settings)
        known = [field.name for field in dataclasses.fields(AsyncEngineArgs)]
        _refuse_unknown("engine.options", "AsyncEngineArgs", settings.options, known)
        # Whoever asks for another loader gets it, and cannot serve what a run tuned.
        self._has_digests = not _DIGESTS.keys() & settings.options.keys()
        arguments |= _DIGESTS if self._has_digests else {}
        self._adapter = None
        if settings.adapter is not None:
            arguments |= _adapter_arguments(settings.adapter)
            self._adapter = _adapter_request(settings.adapter)
        # vLLM's processes do not notice the death of this one.
        self._reaper = start_reaper()
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**(arguments | settings.options)))
        self._tokenizer = load_tokenizer(model)
        self._context = int(self._llm.model_config.max_model_len)
        self._request_ids = itertools.count()

    async def loaded_weights(self) -> list[dict[str, dict[str, str]]]:
        """See `TellsWeights`; an adapter is loaded for it. Raises `EngineDiedError`."""
        from vllm.v1.engine.exceptions import EngineDeadError

        if not self._has_digests:
            return []
        try:
            if self._adapter is not None:
                await self._llm.add_lora(self._adapter)
            return list(await self._llm.collective_rpc("loaded_tensors"))
        except EngineDeadError as error:
            raise EngineDiedError(f"{_reason(error)}{self._exit_codes()}") from error

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        """`n` answers to one chat; the i-th is drawn with `seed + i`.

        Greedy answers are all the same, so only one is computed. Cancelling takes the request out
        of the batch. Raises `GenerationError`, `EngineDiedError`, and `ValueError` for sampling
        options that vLLM refuses whatever the prompt.
        """
        from cluster.chat import prompt_ids

        params = _sampling_params(sampling)
        ids = prompt_ids(self._tokenizer, messages, sampling.template_args)
        room = self._context - len(ids)
        if room < 1:
            raise PromptTooLongError(
                f"the prompt has {len(ids)} tokens, the model's context {self._context}"
            )
        params.max_tokens = min(sampling.max_tokens or room, room)
        params.min_tokens = min(params.min_tokens, params.max_tokens)
        if sampling.temperature > 0:
            params.seed, params.n = seed, n
        completions = _completions(await self._generate(ids, params), len(ids))
        return completions if len(completions) == n else completions * n

    async def _generate(self, ids: list[int], params: Any) -> Any:
        """The final RequestOutput of vLLM, which holds all `params.n` answers."""
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
        """How the engine's own processes ended, as far as vLLM still knows."""
        with contextlib.suppress(AttributeError):
            codes = self._llm.engine_core.resources.engine_manager.finished_procs()
            return "".join(f" ({name} ended with {code})" for name, code in codes.items())
        return ""

    def shutdown(self) -> None:
        """End the engine's own processes."""
        self._llm.shutdown()
        self._reaper.terminate()
        self._reaper.wait()


def _engine_arguments(model: str, settings: EngineSettings) -> dict[str, Any]:
    """What of AsyncEngineArgs our own settings decide."""
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": settings.dtype,
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
    else:
        # A prompt computed in parts rewinds its request's own random generator, which vLLM
        # 0.32 cannot do on a CPU: the first seeded request cut in two kills the engine.
        arguments["enable_chunked_prefill"] = False
        if settings.max_model_len is not None:
            arguments["max_num_batched_tokens"] = max(settings.max_model_len, 4096)
    if settings.placement_group:
        arguments["distributed_executor_backend"] = "ray"
    return arguments


def _adapter_arguments(adapter: str) -> dict[str, Any]:
    """The engine arguments for one LoRA adapter, checked: one that vLLM fails to load in the
    middle of the work ends the engine."""
    from vllm.config.lora import LoRAConfig, MaxLoRARanks
    from vllm.lora.peft_helper import PEFTHelper

    try:
        peft = PEFTHelper.from_local_dir(adapter, None)
        rank = max(peft.r, *peft.rank_pattern.values(), 0)
        # vLLM knows only some ranks; a smaller adapter is padded.
        max_rank = min(known for known in get_args(MaxLoRARanks) if known >= rank)
        peft.validate_legal(LoRAConfig(max_lora_rank=max_rank))
    except OSError as error:
        raise ValueError(
            f"engine.adapter {adapter!r}: {error}; give the folder that PEFT wrote the adapter to"
        ) from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"engine.adapter {adapter!r}: {error}") from error
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": max_rank}


def _adapter_request(adapter: str) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name=adapter, lora_int_id=1, lora_path=adapter)


def _sampling_params(sampling: SamplingSettings) -> Any:
    """The SamplingParams of the settings, without what depends on the prompt.

    Raises `ValueError` naming the option that vLLM does not know or refuses.
    """
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import RequestOutputKind

    if sampling.options:
        known = inspect.signature(SamplingParams.from_optional).parameters
        _refuse_unknown("sampling.options", "SamplingParams", sampling.options, known)
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
    """An option's value as vLLM wants it: two options are classes of their own."""
    from vllm.sampling_params import RepetitionDetectionParams, StructuredOutputsParams

    classes = {
        "structured_outputs": StructuredOutputsParams,
        "repetition_detection": RepetitionDetectionParams,
    }
    if name not in classes or not isinstance(value, Mapping):
        return value
    # vLLM ignores a name it does not know here, and would then generate freely.
    known = [field.name for field in dataclasses.fields(classes[name]) if field.init]
    _refuse_unknown(f"sampling.options.{name}", classes[name].__name__, value, known)
    return classes[name](**value)


def _refuse_unknown(
    field: str, vllm_class: str, options: Mapping[str, Any], known: Iterable[str]
) -> None:
    known = sorted(known)
    for name in options:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else f"it has {', '.join(known)}"
            raise ValueError(f"{field}: vLLM's {vllm_class} has no {name}; {hint}")


def _completions(output: Any, num_prompt_tokens: int) -> list[Completion]:
    """The answers of a RequestOutput in the order of their seeds."""
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
    """Why a generation failed, in one line: vLLM wraps what it did not expect in an empty error."""
    cause = error.__cause__
    return _one_line(cause if not str(error) and isinstance(cause, Exception) else error)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
