"""The inference engine: one asynchronous vLLM engine behind one method, `chat`.

Everything that knows vLLM is here. An engine lives inside a worker of the pool (`cluster.pool`);
a test may name another implementation by its import path (`engine.implementation`).
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, cast

from pydantic import Field

from cluster.settings import OPERATIONAL, Settings


class SamplingSettings(Settings):
    """How one generation is drawn."""

    temperature: Annotated[float, Field(ge=0)] = 0.85
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Below 1 it halves the speed on a CPU, which sorts the whole vocabulary for it."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """0 is no limit."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_tokens: Annotated[int, Field(gt=0)] = 1024
    """Most tokens of one generation, a thinking part included."""
    template_args: dict[str, Any] = {}
    """Passed to the chat template, for example `{enable_thinking: true}`."""


class EngineSettings(Settings):
    """The engine pool: which engine, how many, and on what."""

    implementation: str = "cluster.engine.VLLMEngine"
    """Import path of a class with the interface `Engine`."""
    dtype: str = "auto"
    max_model_len: Annotated[int, Field(gt=0)] | None = None
    """Tokens of prompt and answer together; null is what the model was made for."""
    options: dict[str, Any] = {}
    """Any further argument of vLLM's AsyncEngineArgs: quantization, speculative_config, ..."""
    max_num_seqs: Annotated[int, OPERATIONAL, Field(gt=0)] = 256
    """Generations that one engine runs at once."""
    gpu_memory_utilization: Annotated[float, OPERATIONAL, Field(gt=0, le=1)] = 0.9
    kv_cache_gib: Annotated[int, OPERATIONAL, Field(gt=0)] = 2
    """On a CPU only: memory of one engine's key-value cache."""
    omp_threads_bind: Annotated[str, OPERATIONAL] = "auto"
    """On a CPU only: the cores vLLM computes on, as in `0-1`; auto is all of them."""
    tensor_parallel_size: Annotated[int, OPERATIONAL, Field(gt=0)] = 1
    pipeline_parallel_size: Annotated[int, OPERATIONAL, Field(gt=0)] = 1
    min_workers: Annotated[int, OPERATIONAL, Field(gt=0)] = 1
    """Engines to start with."""
    max_workers: Annotated[int, OPERATIONAL, Field(gt=0)] = 1
    """Engines to grow to while the cluster has room for them."""
    use_gpu: Annotated[bool, OPERATIONAL] = True
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
    flush_s: Annotated[float, OPERATIONAL, Field(gt=0)] = 10.0
    """Finished questions are durable after at most this many rows or seconds."""
    max_restarts: Annotated[int, OPERATIONAL, Field(ge=0)] = 2
    """How often a dead engine is started again, and a chunk that it held tried again."""

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


class PromptTooLongError(ValueError):
    """The prompt leaves no room for an answer within the model's context."""


class Engine(Protocol):
    """What a worker needs of an engine."""

    async def chat(
        self, messages: Sequence[Mapping[str, str]], sampling: SamplingSettings, seed: int
    ) -> Completion:
        """One generation. Raises `PromptTooLongError`."""

    def shutdown(self) -> None:
        """End the engine's own processes."""


def make_engine(model: str, settings: EngineSettings) -> Engine:
    """Start the engine that the settings name. Raises `ValueError` when there is no such class."""
    module_name, _, class_name = settings.implementation.rpartition(".")
    try:
        factory = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"engine.implementation {settings.implementation!r}: {error}") from error
    return cast(Engine, factory(model, settings))


def engine_environment(settings: EngineSettings) -> dict[str, str]:
    """Environment variables a worker must have before vLLM is imported."""
    common = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if settings.use_gpu:
        return common
    return common | {
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": settings.omp_threads_bind,
    }


class VLLMEngine:
    """vLLM's AsyncLLM: every request joins the one continuous batch as soon as it is made."""

    def __init__(self, model: str, settings: EngineSettings) -> None:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from cluster.chat import load_tokenizer

        arguments: dict[str, Any] = {
            "model": model,
            "dtype": settings.dtype,
            "max_num_seqs": settings.max_num_seqs,
            "tensor_parallel_size": settings.tensor_parallel_size,
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
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**(arguments | settings.options)))
        self._tokenizer = load_tokenizer(model)
        self._context = int(self._llm.model_config.max_model_len)
        self._request_ids = itertools.count()

    async def chat(
        self, messages: Sequence[Mapping[str, str]], sampling: SamplingSettings, seed: int
    ) -> Completion:
        """One generation. Raises `PromptTooLongError`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        from cluster.chat import prompt_ids

        ids = prompt_ids(self._tokenizer, messages, sampling.template_args)
        room = self._context - len(ids)
        if room < 1:
            raise PromptTooLongError(
                f"the prompt has {len(ids)} tokens, the model's context {self._context}"
            )
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=min(sampling.max_tokens, room),
            seed=seed if sampling.temperature > 0 else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        request_id = str(next(self._request_ids))
        async for output in self._llm.generate({"prompt_token_ids": ids}, params, request_id):
            final = output.outputs[0]
        return Completion(
            text=final.text,
            token_ids=list(final.token_ids),
            finish_reason=final.finish_reason,
            num_prompt_tokens=len(ids),
        )

    def shutdown(self) -> None:
        """End the engine's own processes."""
        self._llm.shutdown()
