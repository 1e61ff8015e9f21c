"""The inference engine: the interface that a worker of the pool uses, and its settings.

An engine answers chats, each with one or several answers (`Engine`). It lives inside a worker of
the pool (`cluster.inference.pool`). The project has two, each in a file that nothing else imports:
`cluster.inference.vllm_engine` runs a model, and `cluster.inference.endpoint_engine` sends requests
to a server. A new one is a class with the same methods, named by its import path in
`engine.implementation`."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, cast, runtime_checkable

from pydantic import Field, field_validator, model_validator

from cluster.errors import InputError
from cluster.settings import OPERATIONAL, Neutral, Settings
from cluster.thinking import Turn, read_turn

# Arguments of vLLM's SamplingParams that are separate settings here, and those that the run sets.
_OWN_OPTIONS = ("temperature", "top_p", "top_k", "min_p", "max_tokens")
_RUN_OPTIONS = ("seed", "n", "output_kind", "detokenize", "skip_clone")

VLLM = "cluster.engine.VLLMEngine"
ENDPOINT = "endpoint"
ENGINES = {
    VLLM: "cluster.inference.vllm_engine.VLLMEngine",
    ENDPOINT: "cluster.inference.endpoint_engine.EndpointEngine",
}
"""Where the class of a known engine is. vLLM's entry is the class's first import path, because the
folders of all steps that generate are named after it; so it must not change."""


class SamplingSettings(Settings):
    """How one generation is sampled."""

    temperature: Annotated[float, Field(ge=0)] = 0.85
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Below 1 it halves the speed on a CPU, because the whole vocabulary is sorted for it."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """0 means no limit."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Tokens below this share of the likeliest token's probability are not drawn; 0 is no limit."""
    max_tokens: Annotated[int, Field(gt=0)] | None = 1024
    """Token limit of one generation, including its thinking; null is what the context leaves."""
    template_args: dict[str, Any] = {}
    """Passed to the chat template, for example `{enable_thinking: true}`."""
    options: dict[str, Any] = {}
    """Any further argument of vLLM's SamplingParams: repetition_penalty, structured_outputs, ..."""

    @field_validator("options")
    @classmethod
    def _no_option_of_ours(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in options:
            if name in _OWN_OPTIONS:
                raise ValueError(f"{name} is a separate setting; set it next to options")
            if name in _RUN_OPTIONS:
                raise ValueError(f"{name} is set by the run; leave it out")
        return options


class EndpointSettings(Settings):
    """A server that speaks the OpenAI API, with `engine.implementation: endpoint`."""

    url: Annotated[str, OPERATIONAL, Field(pattern=r"^https?://[^/@\s?#]+(/[^@\s?#]*)?$")]
    """Base URL of its API, as in `http://10.0.0.5:8000/v1`; without a user name or key."""
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
    key itself is never written anywhere. Null means that the server needs no key."""
    request_timeout_s: Annotated[float, OPERATIONAL, Field(gt=0)] = 600.0
    """Seconds after which a request is abandoned and repeated."""
    max_retries: Annotated[int, OPERATIONAL, Field(ge=0)] = 8
    """How often a request is repeated that the server refused temporarily or did not answer."""
    first_wait_s: Annotated[float, OPERATIONAL, Field(gt=0)] = 1.0
    """Seconds before the first retry; each further wait is twice as long, up to `max_wait_s`. A
    Retry-After of the server is always respected, however long it is."""
    max_wait_s: Annotated[float, OPERATIONAL, Field(gt=0)] = 60.0
    """The longest wait before a retry, unless the server requested a longer one."""


class EngineSettings(Settings):
    """The engine pool: which engine, how many, and on which hardware."""

    implementation: str = VLLM
    """`vllm` (the same as the default), `endpoint`, or the import path of a class with the
    interface `Engine`."""
    dtype: str = "auto"
    """Number type of the weights in memory. On a GPU, auto is vLLM's choice for the model. On a CPU
    it is bfloat16 if the processor has instructions for it and float32 otherwise, the same for all
    engines of a run (`cluster.inference.engine_dtype`)."""
    max_model_len: Annotated[int, Field(gt=0)] | None = None
    """Tokens of prompt and answer together; null is the context that the model was made for."""
    options: dict[str, Any] = {}
    """Any further argument of vLLM's AsyncEngineArgs: quantization, speculative_config, ..."""
    endpoint: Annotated[EndpointSettings | None, Neutral(None)] = None
    """The server to use, with `implementation: endpoint`. Each worker sends it `max_num_seqs`
    requests at once; settings that describe a local engine do not apply."""
    adapter: str | None = None
    """Folder of a PEFT LoRA adapter to serve on top of the model; null serves the model alone."""
    max_num_seqs: Annotated[int, OPERATIONAL, Field(gt=0)] = 256
    """Generations that one engine runs at once."""
    gpu_memory_utilization: Annotated[float, OPERATIONAL, Field(gt=0, le=1)] = 0.9
    """The share of each GPU's memory that an engine may use."""
    kv_cache_gib: Annotated[Annotated[int, Field(gt=0)] | None, OPERATIONAL] = None
    """On a CPU only: memory of one engine's key-value cache; null is planned (`kv_cache_gib`)."""
    omp_threads_bind: Annotated[str, OPERATIONAL] = "auto"
    """On a CPU only: the cores that vLLM computes on, as in `0-1`; auto is all cores of the
    machine, divided among its workers (`cpu_bind`)."""
    tensor_parallel_size: Annotated[Annotated[int, Field(gt=0)] | None, OPERATIONAL] = None
    """GPUs over which an engine splits each layer; null plans this from the model and the GPUs
    (`cluster.inference.gpu_plan`), together with the number of engines, the context and the
    batch."""
    pipeline_parallel_size: Annotated[int, OPERATIONAL, Field(gt=0)] = 1
    """Groups into which the layers of one engine are divided, each on separate GPUs."""
    min_workers: Annotated[Annotated[int, Field(gt=0)] | None, OPERATIONAL] = None
    """Engines to start with; null means all of them."""
    max_workers: Annotated[Annotated[int, Field(gt=0)] | None, OPERATIONAL] = None
    """Engines to grow to while the cluster has room for them; null is as many as the GPUs can hold,
    or one without GPUs."""
    use_gpu: Annotated[bool, OPERATIONAL] = True
    """Whether engines compute on GPUs; false means the CPU."""
    cpus_per_worker: Annotated[float, OPERATIONAL, Field(gt=0)] = 1
    """Logical CPUs per engine. Leave at least one CPU of the machine free: a pool that takes every
    CPU starves the tasks that feed it."""
    placement_group: Annotated[bool, OPERATIONAL] = False
    """Reserve each engine's bundles as one placement group; for engines over several nodes."""
    chunk_size: Annotated[int, OPERATIONAL, Field(gt=0)] = 8
    """Questions that a worker gets at once."""
    chunks_in_flight: Annotated[int, OPERATIONAL, Field(gt=0)] = 4
    """Chunks that a worker holds at once, so that the end of one hides behind the next."""
    flush_rows: Annotated[int, OPERATIONAL, Field(gt=0)] = 256
    """Number of finished questions that are written at once; fewer after `flush_s`."""
    flush_s: Annotated[float, OPERATIONAL, Field(gt=0)] = 10.0
    """Seconds after which finished questions are written, even if they are fewer."""
    generation_timeout_s: Annotated[Annotated[float, Field(gt=0)] | None, OPERATIONAL] = None
    """Seconds after which one generation is abandoned; null waits without limit."""
    max_attempts: Annotated[int, OPERATIONAL, Field(gt=0)] = 3
    """How often a question is tried: again for its failed paths, and again when its engine died
    during it. A question that still fails after that is marked as failed, with the reason."""
    max_restarts: Annotated[int, OPERATIONAL, Field(ge=0)] = 8
    """How often a dead worker is restarted before the run stops with its engine's error."""

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
    def _workers_in_order(self) -> EngineSettings:
        if (self.min_workers or 0) > (self.max_workers or math.inf):
            raise ValueError(
                f"engine.min_workers {self.min_workers} is more than max_workers "
                f"{self.max_workers}; lower it, or raise max_workers"
            )
        return self

    @model_validator(mode="after")
    def _endpoint_is_whole(self) -> EngineSettings:
        if self.is_endpoint != (self.endpoint is not None):
            raise ValueError(
                "engine.implementation: endpoint and engine.endpoint {url, model} belong together; "
                "give both or neither"
            )
        if self.is_endpoint and self.use_gpu:
            raise ValueError(
                "engine.use_gpu: true is for a local engine, but "
                "engine.implementation: endpoint uses a server; leave use_gpu out"
            )
        return self

    @property
    def is_endpoint(self) -> bool:
        """Whether a remote server runs the model, so that its files are not needed here."""
        return self.implementation == ENDPOINT

    @property
    def needs_model(self) -> bool:
        """Whether an answer depends on the run's model, or on its tokenizer."""
        return self.endpoint is None or self.endpoint.prompts == "token_ids"

    @property
    def ranks(self) -> int:
        """The number of processes, or GPUs, that one engine uses."""
        return (self.tensor_parallel_size or 1) * self.pipeline_parallel_size

    @property
    def gpus_per_worker(self) -> int:
        """GPUs of one engine."""
        return self.ranks * self.use_gpu

    @property
    def generations_in_flight(self) -> int:
        """Chains offered to one engine: its batch and a quarter more, so that it never idles."""
        return self.max_num_seqs + max(1, self.max_num_seqs // 4)


@dataclass(frozen=True, slots=True)
class Completion:
    """The result of one generation."""

    text: str
    token_ids: list[int]
    """The ids of the text in the tokenizer of the run's model; empty if the engine lacks them."""
    finish_reason: str
    """`stop` when the model ended by itself, `length` when a limit cut it off."""
    num_prompt_tokens: int
    num_cached_tokens: int = 0
    """The number of prompt tokens that the prefix cache already held, in complete blocks. Answers
    that are requested together all report the number of the one that finished last."""
    num_counted_tokens: int | None = None
    """The generated tokens, if they differ from those of the text: a server returns no ids, or a
    stop string was cut off."""
    turn: Turn | None = None
    """Thinking and answer, as the engine split them by ids and prompt; None: split by the text."""
    option_log_likelihoods: tuple[float, ...] = ()
    """Of each option of a `Beginning`, the log-probability of its token right behind the cue."""

    @property
    def own_turn(self) -> Turn:
        """The thinking and the answer."""
        return self.turn or read_turn(self.text)

    @property
    def end_reason(self) -> str:
        """`stop` when the model ended its answer; a thought that never ended counts as cut off."""
        return self.finish_reason if self.own_turn.answer is not None else "length"

    @property
    def num_tokens(self) -> int:
        """The number of tokens in the answer."""
        counted = self.num_counted_tokens
        return len(self.token_ids) if counted is None else counted


@dataclass(frozen=True, slots=True)
class Beginning:
    """How an answer begins that an engine is to continue."""

    answered: Completion | None
    """An earlier answer to the same chat, which is continued by its ids; None continues the prompt.
    """
    cue: str
    """Text that is written behind it."""
    options: tuple[str, ...] = ()
    """Texts that could come next, each with its white space, whose likelihoods are wanted."""


class GenerationError(RuntimeError):
    """One request failed; the engine continues with the others."""


class PromptTooLongError(GenerationError):
    """The prompt leaves no room for an answer within the model's context."""


class GenerationTimeoutError(GenerationError):
    """The answer did not come within `engine.generation_timeout_s`."""


class EngineDiedError(RuntimeError):
    """The engine no longer answers."""


class Engine(Protocol):
    """The interface of an engine."""

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        """`n` answers to one chat. Raises `GenerationError` and `EngineDiedError`."""

    def shutdown(self) -> None:
        """End the processes of the engine."""


@runtime_checkable
class ContinuesAnswers(Protocol):
    """An engine that can continue an answer from its token ids."""

    async def go_on(
        self,
        messages: Sequence[Mapping[str, str]],
        beginning: Beginning,
        sampling: SamplingSettings,
    ) -> Completion:
        """What follows the beginning of an answer to a chat, without the beginning itself.

        The ids of the prompt and of the answer are those of `chat`: nothing is tokenized again but
        the cue. Tokens that end the answer are left out. A thought that the answer or the prompt
        leaves open is closed as the model's template closes it. If the context is too short, the
        end of the answer is left out. Where an option is not one token, there are no likelihoods.
        Raises `GenerationError` and `EngineDiedError`.
        """


@runtime_checkable
class TellsWeights(Protocol):
    """An engine that can report which weights it serves."""

    async def loaded_weights(self) -> list[dict[str, dict[str, str]]]:
        """The digests (`cluster.models.weight_digests`) of the tensors that each process of the
        engine read, by name, for the `model` and for each adapter by its folder."""


@runtime_checkable
class ServesAdapters(Protocol):
    """An engine that serves several LoRA adapters of its model at once.

    Its class takes their folders as a third argument, besides model and settings.
    """

    def with_adapter(self, adapter: str) -> Engine:
        """The same engine, whose answers are those of one of the adapters."""


@runtime_checkable
class TellsFacts(Protocol):
    """An engine that can report how it serves its model."""

    facts: Mapping[str, str]
    """Facts for the manifest, such as `{"dtype": "bfloat16"}`; the same for all engines of a
    pool."""


@runtime_checkable
class ChecksServer(Protocol):
    """An engine class whose server can be tried before the first question."""

    @staticmethod
    def check_server(settings: EngineSettings) -> None:
        """See `check_engine_server`."""


@runtime_checkable
class ChecksSettings(Protocol):
    """An engine class that can check its settings before anything is started."""

    @staticmethod
    def check_settings(settings: EngineSettings, needs_weight_proof: bool) -> None:
        """See `check_engine_options`."""


@runtime_checkable
class ChecksSampling(Protocol):
    """An engine class that can check sampling options."""

    @staticmethod
    def check_sampling(field: str, sampling: SamplingSettings) -> None:
        """See `check_sampling_options`."""


def make_engine(model: str, settings: EngineSettings, adapters: Sequence[str] = ()) -> Engine:
    """Start the engine that the settings name, with the folders of the adapters that it serves
    besides `settings.adapter`. Raises `InputError` when there is no such class."""
    further = (adapters,) if adapters else ()
    return cast(Engine, _engine_class(settings)(model, settings, *further))


def serves_adapters(settings: EngineSettings) -> bool:
    """Whether one engine can serve several adapters (`ServesAdapters`). Raises `InputError`."""
    return issubclass(_engine_class(settings), ServesAdapters)


def check_engine_options(settings: EngineSettings, needs_weight_proof: bool) -> None:
    """Refuse, before anything is generated, settings that the engine would refuse later.

    `needs_weight_proof` is whether the engine will serve a model that the run trained, whose
    weights are compared with those that the training saved. Raises `InputError`.
    """
    engine_class = _engine_class(settings)
    if isinstance(engine_class, ChecksSettings):
        engine_class.check_settings(settings, needs_weight_proof)


def check_sampling_options(
    settings: EngineSettings, field: str, sampling: SamplingSettings
) -> None:
    """Refuse, before anything is generated, sampling options that the engine would refuse later.

    `field` is their place in the config, as in `synthesis.stages.path`. Raises `InputError`.
    """
    engine_class = _engine_class(settings)
    if isinstance(engine_class, ChecksSampling):
        engine_class.check_sampling(field, sampling)


def check_engine_continues(settings: EngineSettings, field: str) -> None:
    """Refuse what needs an engine that continues answers, before anything is generated.

    `field` is what the user asked for. Raises `InputError`.
    """
    if not issubclass(_engine_class(settings), ContinuesAnswers):
        raise InputError(
            f"{field} needs an engine that continues an answer from its token ids, and the engine "
            f"{settings.implementation} does not; leave it out, or run the model here with vllm"
        )


def check_engine_server(settings: EngineSettings) -> None:
    """Try the server that an engine will use, if it uses one. Raises `InputError`."""
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
    """A warning in one sentence if `top_p` will slow down a CPU, else an empty text."""
    if use_gpu or not any(each.top_p < 1 and each.temperature > 0 for each in samplings):
        return None
    return (
        "top_p below 1 about halves the speed on a CPU, where vLLM sorts the whole vocabulary "
        "for each token; min_p cuts off unlikely tokens without that"
    )
