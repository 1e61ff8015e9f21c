"""The inference engine: what a worker of the pool needs of one, and its settings.

An engine answers chats, one or several answers each (`Engine`). It lives inside a worker of the
pool (`cluster.inference.pool`). Two come with the project, each in a file that nothing else
imports: `cluster.inference.vllm_engine` runs a model, `cluster.inference.endpoint_engine` asks a
server that does. A further one is a class with the same methods, named by its import path in
`engine.implementation`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, cast, runtime_checkable

from pydantic import Field, field_validator, model_validator

from cluster.errors import InputError
from cluster.settings import OPERATIONAL, Neutral, Settings
from cluster.thinking import Turn, read_turn

# Arguments of vLLM's SamplingParams that are settings here, and those that the run decides.
_OWN_OPTIONS = ("temperature", "top_p", "top_k", "min_p", "max_tokens")
_RUN_OPTIONS = ("seed", "n", "output_kind", "detokenize", "skip_clone")

VLLM = "cluster.engine.VLLMEngine"
ENDPOINT = "endpoint"
ENGINES = {
    VLLM: "cluster.inference.vllm_engine.VLLMEngine",
    ENDPOINT: "cluster.inference.endpoint_engine.EndpointEngine",
}
"""Where the class of a known engine is. vLLM's name is the place where it was at first: every
folder of a step that generates is named after it, so it has to stay."""


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
                raise ValueError(f"{name} is a separate setting; write it next to options")
            if name in _RUN_OPTIONS:
                raise ValueError(f"{name} is decided by the run; leave it out")
        return options


class EndpointSettings(Settings):
    """A server that speaks the OpenAI API, with `engine.implementation: endpoint`."""

    url: Annotated[str, OPERATIONAL, Field(pattern=r"^https?://[^/@\s?#]+(/[^@\s?#]*)?$")]
    """Where its API begins, as in `http://10.0.0.5:8000/v1`; without a name or a key in it."""
    model: Annotated[str, Field(min_length=1)]
    """The model's name on the server."""
    prompts: Literal["chat", "token_ids"] = "chat"
    """`chat` sends messages, which the server's own template turns into a prompt. `token_ids` sends
    the prompt that the run's own model gets from its template, so the server has to serve that
    model, or one with the same tokenizer; only vLLM's server returns the ids of the answer."""
    key_variable: Annotated[
        Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None, OPERATIONAL
    ] = None
    """Name of the environment variable that holds the key, on every node that may run a worker. The
    key itself is never written anywhere. Null is a server without a key."""
    request_timeout_s: Annotated[float, OPERATIONAL, Field(gt=0)] = 600.0
    """Seconds after which a request is given up and made again."""
    max_retries: Annotated[int, OPERATIONAL, Field(ge=0)] = 8
    """How often a request is made again that the server refused for now, or did not answer."""
    first_wait_s: Annotated[float, OPERATIONAL, Field(gt=0)] = 1.0
    """Seconds before the first retry; each further wait is twice as long, up to `max_wait_s`. A
    Retry-After of the server is waited for, however long it is."""
    max_wait_s: Annotated[float, OPERATIONAL, Field(gt=0)] = 60.0
    """The longest wait before a retry that the server did not ask for."""


class EngineSettings(Settings):
    """The engine pool: which engine, how many, and on what."""

    implementation: str = VLLM
    """`vllm` (the same as the default), `endpoint`, or the import path of a class with the
    interface `Engine`."""
    dtype: str = "auto"
    """Of the weights in memory. On a GPU auto is vLLM's choice from the model. On a CPU it is
    bfloat16 where the processor has instructions for it and float32 elsewhere, the same for all
    engines of a run (`cluster.inference.engine_dtype`)."""
    max_model_len: Annotated[int, Field(gt=0)] | None = None
    """Tokens of prompt and answer together; null is what the model was made for."""
    options: dict[str, Any] = {}
    """Any further argument of vLLM's AsyncEngineArgs: quantization, speculative_config, ..."""
    endpoint: Annotated[EndpointSettings | None, Neutral(None)] = None
    """The server to ask, with `implementation: endpoint`. It takes `max_num_seqs` requests at once
    from each worker, and none of the settings that describe an engine here."""
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
    (`cluster.inference.gpu_plan`), and with it how many engines, how long a context and how large a
    batch."""
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

    @field_validator("implementation", mode="before")
    @classmethod
    def _one_name_of_vllm(cls, name: Any) -> Any:
        return VLLM if name in ("vllm", ENGINES[VLLM]) else name

    @model_validator(mode="before")
    @classmethod
    def _endpoint_uses_no_gpu(cls, tree: Any) -> Any:
        if isinstance(tree, Mapping) and tree.get("implementation") == ENDPOINT:
            return {"use_gpu": False, **tree}
        return tree

    @model_validator(mode="after")
    def _endpoint_is_whole(self) -> EngineSettings:
        if self.is_endpoint != (self.endpoint is not None):
            raise ValueError(
                "engine.implementation: endpoint and engine.endpoint {url, model} belong together; "
                "give both or neither"
            )
        if self.is_endpoint and self.use_gpu:
            raise ValueError(
                "engine.use_gpu: true is for an engine that runs here, and "
                "engine.implementation: endpoint asks a server; leave use_gpu out"
            )
        return self

    @property
    def is_endpoint(self) -> bool:
        """Whether a server elsewhere runs the model, so that its files are not needed here."""
        return self.implementation == ENDPOINT

    @property
    def needs_model(self) -> bool:
        """Whether an answer depends on the model that the run asks, or on its tokenizer."""
        return self.endpoint is None or self.endpoint.prompts == "token_ids"

    @property
    def ranks(self) -> int:
        """Processes, or GPUs, over which one engine is laid."""
        return (self.tensor_parallel_size or 1) * self.pipeline_parallel_size

    @property
    def gpus_per_worker(self) -> int:
        """GPUs of one engine."""
        return self.ranks * self.use_gpu

    @property
    def generations_in_flight(self) -> int:
        """Chains offered to one engine: its batch and a quarter more, so that it never waits."""
        return self.max_num_seqs + max(1, self.max_num_seqs // 4)


@dataclass(frozen=True, slots=True)
class Completion:
    """What one generation returned."""

    text: str
    token_ids: list[int]
    """Of the text, by the tokenizer of the run's model; empty where the engine cannot tell them."""
    finish_reason: str
    """`stop` when the model ended by itself, `length` when its limit cut it."""
    num_prompt_tokens: int
    num_cached_tokens: int = 0
    """How many of the prompt's tokens the prefix cache already held, in whole blocks. Of answers
    asked for together all have the number of the one that finished last."""
    num_counted_tokens: int | None = None
    """The generated tokens, where they are not those of the text: a server does not tell ids, or a
    stop string was cut off."""
    turn: Turn | None = None
    """The thinking and the answer, as the engine read them by ids and prompt; None: by the text."""

    @property
    def own_turn(self) -> Turn:
        """The thinking and the answer."""
        return self.turn or read_turn(self.text)

    @property
    def end_reason(self) -> str:
        """`stop` when the model ended its answer; a thought that never ended was cut off."""
        return self.finish_reason if self.own_turn.answer is not None else "length"

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer."""
        counted = self.num_counted_tokens
        return len(self.token_ids) if counted is None else counted


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
        """The digests (`cluster.models.weight_digests`) of the tensors that each of its processes
        read, by name, of the `model` and of the `adapter`."""


@runtime_checkable
class TellsFacts(Protocol):
    """An engine that can tell how it serves its model."""

    facts: Mapping[str, str]
    """For the manifest, for example `{"dtype": "bfloat16"}`; the same for all engines of a pool."""


@runtime_checkable
class ChecksServer(Protocol):
    """An engine class that asks a server, which can be tried before the first question."""

    @staticmethod
    def check_server(settings: EngineSettings) -> None:
        """See `check_engine_server`."""


@runtime_checkable
class ChecksSettings(Protocol):
    """An engine class that can tell what it will refuse, before anything is started."""

    @staticmethod
    def check_settings(settings: EngineSettings, needs_weight_proof: bool) -> None:
        """See `check_engine_options`."""


@runtime_checkable
class ChecksSampling(Protocol):
    """An engine class that can tell which sampling options it will refuse."""

    @staticmethod
    def check_sampling(field: str, sampling: SamplingSettings) -> None:
        """See `check_sampling_options`."""


def make_engine(model: str, settings: EngineSettings) -> Engine:
    """Start the engine that the settings name. Raises `InputError` when there is no such class."""
    return cast(Engine, _engine_class(settings)(model, settings))


def check_engine_options(settings: EngineSettings, needs_weight_proof: bool) -> None:
    """Refuse, before anything is generated, what the engine would refuse later.

    `needs_weight_proof` is whether the engine will serve a model that the run trained, whose
    weights are compared with those that the training saved. Raises `InputError`.
    """
    engine_class = _engine_class(settings)
    if isinstance(engine_class, ChecksSettings):
        engine_class.check_settings(settings, needs_weight_proof)


def check_sampling_options(
    settings: EngineSettings, field: str, sampling: SamplingSettings
) -> None:
    """Refuse, before anything is generated, a way to draw that the engine would refuse later.

    `field` is where the config has it, as in `synthesis.stages.path`. Raises `InputError`.
    """
    engine_class = _engine_class(settings)
    if isinstance(engine_class, ChecksSampling):
        engine_class.check_sampling(field, sampling)


def check_engine_server(settings: EngineSettings) -> None:
    """Try the server that an engine will ask, if it asks one. Raises `InputError`."""
    engine_class = _engine_class(settings)
    if isinstance(engine_class, ChecksServer):
        engine_class.check_server(settings)


def _engine_class(settings: EngineSettings) -> Any:
    name = ENGINES.get(settings.implementation, settings.implementation)
    module_name, _, class_name = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"engine.implementation {settings.implementation!r}: {error}; give vllm, endpoint or "
            "the import path of a class"
        ) from error


def slow_top_p(samplings: Iterable[SamplingSettings], use_gpu: bool) -> str | None:
    """A warning in one sentence when `top_p` will slow a CPU down, else nothing."""
    if use_gpu or not any(each.top_p < 1 and each.temperature > 0 for each in samplings):
        return None
    return (
        "top_p below 1 about halves the speed on a CPU, where vLLM sorts the whole vocabulary "
        "for each token; min_p cuts off unlikely tokens without that"
    )
