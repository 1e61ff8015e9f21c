"""Real vLLM on the CPU, with a model of two layers and random weights."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from cluster.cpu_dtype import this_processor_dtype
from cluster.errors import InputError
from cluster.inference.cpu_binding import bind_cpu, cpu_bind, kv_cache_gib
from cluster.inference.engine import (
    Beginning,
    Completion,
    EngineDiedError,
    EngineSettings,
    GenerationError,
    PromptTooLongError,
    SamplingSettings,
    make_engine,
    slow_top_p,
)
from cluster.inference.vllm_engine import VLLMEngine, adapter_arguments, engine_environment
from cluster.models.chat_template import load_tokenizer, prompt_ids, target_ids
from cluster.models.model import tuned_model
from cluster.models.weight_digests import check_loaded, digest_folder
from cluster.store.folder import Folder
from evaluation.prompt import answer_messages
from evaluation.question import Question
from tests.cluster.test_weights import LINEAR, alter, save_step
from tests.conftest import REPOSITORY

QUESTION = Question("d/test/1", "d", "test", "in_domain", "What is 2 + 2?", "4", "number")
SETTINGS = EngineSettings(
    use_gpu=False,
    max_model_len=512,
    max_num_seqs=8,
    kv_cache_gib=1,
    options={"enforce_eager": True, "load_format": "safetensors"},
)
ENDLESS = SamplingSettings(temperature=0.0, max_tokens=None, options={"ignore_eos": True})


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


class Started:
    """An engine and the event loop it lives on."""

    def __init__(self, model: Path, settings: EngineSettings, adapters: Sequence[str] = ()) -> None:
        self.loop = asyncio.new_event_loop()
        self.engine = cast(VLLMEngine, self.run(self._start(model, settings, adapters)))

    async def _start(self, model: Path, settings: EngineSettings, adapters: Sequence[str]) -> Any:
        return make_engine(str(model), settings, adapters)

    def run(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    def chat(
        self, messages: Any, sampling: SamplingSettings, seed: int = 0, n: int = 1
    ) -> list[Completion]:
        return cast(list[Completion], self.run(self.engine.chat(messages, sampling, seed, n)))

    def close(self) -> None:
        # On its own loop, as in the product: vLLM closes its sockets there, and a collected context
        # with an open one waits for ever.
        self.run(self._close())
        self.loop.close()

    async def _close(self) -> None:
        self.engine.shutdown()
        await asyncio.sleep(0)


@pytest.fixture(scope="module")
def started(model_folder: Path) -> Iterator[Started]:
    os.environ.update(engine_environment(SETTINGS))
    started = Started(model_folder, SETTINGS)
    yield started
    started.close()


def test_engine_tells_the_digests_of_what_its_loader_read_and_one_other_tensor_is_refused(
    started: Started, model_folder: Path, tmp_path: Path
) -> None:
    loaded = started.run(started.engine.loaded_weights())
    assert loaded == [{"model": digest_folder(model_folder)}]
    assert started.engine.facts == {"dtype": this_processor_dtype()}
    source = Path(shutil.copytree(model_folder, tmp_path / "source"))
    for altered in (False, True):
        if altered:
            alter(source)
        tuned = tuned_model(save_step(source, Folder.open(str(tmp_path / "runs"))), "unused")
        with pytest.raises(InputError, match=LINEAR) if altered else nullcontext():
            check_loaded(loaded, tuned, str(model_folder))


def test_engine_chats_at_once_with_seeds_and_the_prompt_ids_of_training(
    started: Started, model_folder: Path
) -> None:
    messages = answer_messages(QUESTION)
    sampling = SamplingSettings(temperature=1.0, max_tokens=12)

    async def chat_all() -> list[Completion]:
        engine = started.engine
        answers = await asyncio.gather(*(engine.chat(messages, sampling, s) for s in (1, 2, 3)))
        return [completion for (completion,) in answers]

    first, again = started.run(chat_all()), started.run(chat_all())
    ids = prompt_ids(load_tokenizer(str(model_folder)), messages, {})
    assert {completion.num_prompt_tokens for completion in first} == {len(ids)}
    assert len({tuple(completion.token_ids) for completion in first}) == 3
    assert [c.token_ids for c in first] == [c.token_ids for c in again]
    assert all(1 <= len(completion.token_ids) <= 12 for completion in first)
    assert {completion.finish_reason for completion in first} <= {"stop", "length"}


def test_engine_goes_on_from_the_ids_of_an_answer_and_weighs_what_could_come_next(
    started: Started, model_folder: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    messages = answer_messages(QUESTION)
    greedy = SamplingSettings(temperature=0.0, max_tokens=12, options={"ignore_eos": True})
    [whole] = started.chat(messages, greedy)
    begun = replace(whole, token_ids=whole.token_ids[:5], turn=None)
    rest = greedy.model_copy(update={"max_tokens": 7})
    said = started.run(started.engine.go_on(messages, Beginning(begun, ""), rest))
    expected_ids = whole.token_ids[5:]  # without a last id that is no whole character
    assert len(expected_ids) > 3
    assert said.token_ids[: len(expected_ids)] == expected_ids

    weighed = Beginning(begun, " So:", ("A", "B", "C"))
    found = started.run(started.engine.go_on(messages, weighed, rest)).option_log_likelihoods
    tokenizer = load_tokenizer(str(model_folder))
    ids = [*prompt_ids(tokenizer, messages, {}), *begun.token_ids, *target_ids(tokenizer, " So:")]
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    letters = [target_ids(tokenizer, letter)[0] for letter in "ABC"]
    expected = torch.log_softmax(logits, -1)[letters].tolist()
    assert found == pytest.approx(expected, abs=0.02)  # bfloat16 on processors that have it
    # An answer that leaves no room for the cue loses its end, and is continued all the same.
    [full] = started.chat(messages, ENDLESS)
    assert (
        started.run(started.engine.go_on(messages, Beginning(full, " So:"), rest)).num_tokens == 7
    )


def test_engine_answers_asked_for_together_are_those_of_the_seeds_that_follow(
    started: Started,
) -> None:
    messages = answer_messages(QUESTION)
    sampling = SamplingSettings(temperature=1.0, max_tokens=40)
    together = started.chat(messages, sampling, seed=7, n=5)
    alone = [started.chat(messages, sampling, seed=7 + i)[0] for i in range(5)]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert len({tuple(c.token_ids) for c in together}) == 5
    # The largest seed a question can have, of 63 bits, leaves room for those that follow.
    assert len(started.chat(messages, sampling, seed=2**63 - 1, n=2)) == 2


def test_engine_greedy_answers_asked_for_together_are_the_same(started: Started) -> None:
    sampling = SamplingSettings(temperature=0.0, max_tokens=8)
    first, *others = started.chat(user("hi"), sampling, n=3)
    assert others == [first, first]


def test_engine_tells_how_much_of_a_prompt_was_cached(started: Started) -> None:
    messages = user("a prompt of several blocks, never seen before " * 8)
    sampling = SamplingSettings(temperature=1.0, max_tokens=4)
    (first,) = started.chat(messages, sampling, seed=1)
    (again,) = started.chat(messages, sampling, seed=2)
    together = started.chat(messages, sampling, seed=3, n=2)
    assert first.num_cached_tokens == 0
    # Whole blocks of 128 tokens, vLLM's size on a CPU.
    cached = again.num_prompt_tokens // 128 * 128
    assert cached > 0
    assert [c.num_cached_tokens for c in (again, *together)] == [cached] * 3


def test_engine_prompt_without_room_for_an_answer_is_refused(started: Started) -> None:
    with pytest.raises(PromptTooLongError, match="context is 512"):
        started.chat(user("x" * 600), SamplingSettings())


def test_engine_answer_never_exceeds_the_context(started: Started) -> None:
    sampling = SamplingSettings(temperature=0.0, max_tokens=2048, options={"min_tokens": 1024})
    (completion,) = started.chat(user("x" * 480), sampling)
    assert completion.num_prompt_tokens + len(completion.token_ids) <= 512


def test_engine_answer_without_a_limit_takes_what_the_context_leaves(started: Started) -> None:
    (completion,) = started.chat(user("x" * 400), ENDLESS)
    assert completion.num_prompt_tokens + len(completion.token_ids) == 512
    assert completion.finish_reason == "length"


def test_engine_structured_output_follows_its_expression(started: Started) -> None:
    options = {"structured_outputs": {"regex": "[0-9]{3}"}}
    sampling = SamplingSettings(temperature=1.0, max_tokens=20, options=options)
    texts = [completion.text for completion in started.chat(user("hi"), sampling, n=3)]
    assert all(len(text) == 3 and text.isdecimal() for text in texts), texts


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"repetition_penalti": 1.1}, r"no repetition_penalti; did you mean repetition_penalty\?"),
        ({"zzz": 1}, "no zzz; it has .*presence_penalty"),
        ({"repetition_penalty": -1.0}, "repetition_penalty must be greater than zero"),
        ({"repetition_penalty": "x"}, "repetition_penalty.*must be real number"),
        ({"structured_outputs": {"regexp": "a"}}, r"no regexp; did you mean regex\?"),
        ({"structured_outputs": {"regex": 3}}, "valid string"),
    ],
)
def test_engine_option_that_fits_no_question_ends_the_run(
    started: Started, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        started.chat(user("hi"), SamplingSettings(options=options))


def test_engine_request_that_vllm_refuses_leaves_the_others_alone(started: Started) -> None:
    sampling = SamplingSettings(max_tokens=4, options={"allowed_token_ids": [10**6]})
    with pytest.raises(GenerationError, match="allowed_token_ids") as caught:
        started.chat(user("hi"), sampling)
    assert "\n" not in str(caught.value)
    assert started.chat(user("hi"), SamplingSettings(max_tokens=4))


def test_engine_cancelled_chat_leaves_the_batch(started: Started) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(started.engine.chat(user("hi"), ENDLESS, 0, 1))
        while not started.engine._llm.get_num_unfinished_requests():
            await asyncio.sleep(0.01)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        started.run(cancel())
    assert started.engine._llm.get_num_unfinished_requests() == 0
    assert started.chat(user("hi"), SamplingSettings(max_tokens=4))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"options": {"enforce_eagr": True}}, r"engine.options: .* did you mean enforce_eager\?"),
        ({"adapter": "/nowhere"}, r"engine.adapter '/nowhere': .*adapter_config.json"),
    ],
)
def test_engine_wrong_setting_is_refused_before_the_engine_starts(
    model_folder: Path, settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        make_engine(str(model_folder), EngineSettings(use_gpu=False, **settings))


def test_engine_adapter_that_vllm_cannot_serve_is_refused(
    model_folder: Path, tmp_path: Path
) -> None:
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "use_dora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="DoRA"):
        make_engine(str(model_folder), EngineSettings(use_gpu=False, adapter=str(tmp_path)))


@pytest.mark.parametrize(("ranks", "max_rank"), [([4], 8), ([4, 20, 8], 32), ([1] * 9, 1)])
def test_engine_has_room_for_the_largest_rank_and_for_all_adapters(
    tmp_path: Path, ranks: list[int], max_rank: int
) -> None:
    folders = [tmp_path / str(number) for number in range(len(ranks))]
    for folder, rank in zip(folders, ranks, strict=True):
        folder.mkdir()
        config = {"r": 1, "lora_alpha": 8, "target_modules": ["q_proj"]}
        pattern = {"rank_pattern": {"q_proj": rank}}
        (folder / "adapter_config.json").write_text(json.dumps(config | pattern))
    of_all = {"enable_lora": True, "max_lora_rank": max_rank}
    on_gpus = adapter_arguments(list(map(str, folders)), use_gpu=True)
    in_batch = {"max_loras": min(len(ranks), 8), "max_cpu_loras": len(ranks)}
    assert on_gpus == of_all | in_batch
    on_cpus = adapter_arguments(list(map(str, folders)), use_gpu=False)
    assert on_cpus == of_all | dict.fromkeys(["max_loras", "max_cpu_loras"], len(ranks) + 1)


def test_engine_number_of_adapters_in_a_batch_is_not_chosen_on_cpus() -> None:
    options = {"max_loras": 2}
    VLLMEngine.check_settings(EngineSettings(options=options), False)
    with pytest.raises(InputError, match=r"engine\.options\.max_loras 2: on CPUs it follows"):
        VLLMEngine.check_settings(EngineSettings(options=options, use_gpu=False), False)


def save_adapter(model_folder: Path, folder: Path, rank: int, seed: int) -> Path:
    """A LoRA adapter whose two matrices are both random, so that it changes the model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    config = LoraConfig(
        r=rank, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
    )
    get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(model_folder, tmp_path_factory.mktemp("adapters") / "random", 4, 1)


def greedy_ids(model: Any, ids: list[int], num_tokens: int) -> list[int]:
    import torch

    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), max_new_tokens=num_tokens, do_sample=False)
    return cast(list[int], out[0, len(ids) :].tolist())


@pytest.fixture(scope="module")
def adapted(model_folder: Path, adapter_folder: Path, started: Started) -> Iterator[Started]:
    """A second engine: with an adapter, on one core, and killed by the last of its tests."""
    bind_cpu("1", 2)
    settings = EngineSettings(
        use_gpu=False,
        dtype="float32",
        max_num_seqs=8,
        adapter=str(adapter_folder),
        options={"enforce_eager": True},
    )
    adapted = Started(model_folder, settings)
    yield adapted
    adapted.close()
    os.environ.update(engine_environment(SETTINGS))


def test_engine_tells_the_digests_of_its_adapter_before_it_is_asked_for(
    adapted: Started, model_folder: Path, adapter_folder: Path
) -> None:
    model, adapter = digest_folder(model_folder), digest_folder(adapter_folder)
    assert len(adapter) == 2 * 3 * 2, "two factors for each of three layers in two blocks"
    assert adapted.run(adapted.engine.loaded_weights()) == [
        {"model": model, str(adapter_folder): adapter}
    ]


def test_engine_serves_the_adapter_on_top_of_the_model(
    adapted: Started, model_folder: Path, adapter_folder: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    messages = answer_messages(QUESTION)
    ids = prompt_ids(load_tokenizer(str(model_folder)), messages, {})
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    base_ids = greedy_ids(base, ids, 16)
    adapted_ids = greedy_ids(PeftModel.from_pretrained(base, adapter_folder), ids, 16)
    (completion,) = adapted.chat(messages, SamplingSettings(temperature=0.0, max_tokens=16))
    assert completion.token_ids == adapted_ids
    assert completion.token_ids != base_ids


@pytest.mark.slow
def test_engine_serves_its_model_and_adapters_of_several_ranks_in_one_batch(
    model_folder: Path, adapter_folder: Path, started: Started, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    other = save_adapter(model_folder, tmp_path / "other", 12, 2)
    adapters = [str(adapter_folder), str(other)]
    bind_cpu("1", 2)
    settings = EngineSettings(
        use_gpu=False, dtype="float32", max_num_seqs=8, options={"enforce_eager": True}
    )
    shared = Started(model_folder, settings, adapters)
    try:
        messages = answer_messages(QUESTION)
        ids = prompt_ids(load_tokenizer(str(model_folder)), messages, {})
        sampling = SamplingSettings(temperature=0.0, max_tokens=16)
        served = [shared.engine, *map(shared.engine.with_adapter, adapters)]

        async def chat_all(order: Sequence[int]) -> list[list[int]]:
            chats = (served[each].chat(messages, sampling, 0) for each in order)
            return [completion.token_ids[:12] for (completion,) in await asyncio.gather(*chats)]

        expected = [greedy_ids(AutoModelForCausalLM.from_pretrained(model_folder), ids, 12)]
        for adapter in adapters:
            base = AutoModelForCausalLM.from_pretrained(model_folder)
            expected.append(greedy_ids(PeftModel.from_pretrained(base, adapter), ids, 12))
        assert len(set(map(tuple, expected))) == 3
        for order in ([0], [0, 1, 2], [2, 1, 0], [0, 1], [2, 0, 0]):
            assert shared.run(chat_all(order)) == [expected[each] for each in order]
        digests = {adapter: digest_folder(Path(adapter)) for adapter in adapters}
        report = {"model": digest_folder(model_folder)} | digests
        assert shared.run(shared.engine.loaded_weights()) == [report]
    finally:
        shared.close()
        os.environ.update(engine_environment(SETTINGS))


def core_process() -> psutil.Process:
    """The engine core started last."""
    cores = [p for p in psutil.Process().children() if "EngineCore" in p.name()]
    return max(cores, key=psutil.Process.create_time)


def test_engine_takes_the_cores_and_cache_bound_after_vllm_was_imported(adapted: Started) -> None:
    (worker,) = core_process().children()
    assert {1} in [os.sched_getaffinity(thread.id) for thread in worker.threads()]
    assert adapted.engine._llm.vllm_config.cache_config.kv_cache_memory_bytes == 2 * 2**30


def test_engine_killed_core_fails_every_pending_chat_soon(adapted: Started) -> None:
    async def kill() -> list[BaseException | list[Completion]]:
        tasks = [
            asyncio.create_task(adapted.engine.chat(user(f"{i}"), ENDLESS, 0)) for i in range(4)
        ]
        while adapted.engine._llm.get_num_unfinished_requests() < 4:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in tasks)
        core_process().send_signal(signal.SIGKILL)
        # Far less than ENDLESS takes: what ends here was ended by the death.
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)

    results = adapted.run(kill())
    assert [type(result) for result in results] == [EngineDiedError] * 4
    assert "EngineCore ended with -9" in str(results[0])
    with pytest.raises(EngineDiedError):
        adapted.chat(user("hi"), ENDLESS)


WORKER = """
import asyncio, os, sys, time
from cluster.inference.engine import EngineSettings, make_engine
from cluster.inference.vllm_engine import engine_environment
settings = EngineSettings.model_validate_json(sys.argv[2])
os.environ.update(engine_environment(settings))
async def start():
    return make_engine(sys.argv[1], settings)
loop = asyncio.new_event_loop()
engine = loop.run_until_complete(start())
print("ready", flush=True)
time.sleep(600)
"""

PARENT = """
import subprocess, sys, time
from cluster.inference.engine_processes import start_reaper
reaper = start_reaper()
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
time.sleep(3)
print("ready", flush=True)
time.sleep(600)
"""


def orphans_after_kill(script: str, *arguments: str, within_s: float) -> list[psutil.Process]:
    """Run a script to its line `ready`, kill it, and tell which of its processes live on."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert "ready" in (line.strip() for line in process.stdout)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.kill()
    process.wait()
    alive: list[psutil.Process] = psutil.wait_procs(children, timeout=within_s)[1]
    for orphan in alive:
        orphan.kill()
    return alive


def test_reaper_ends_the_children_of_a_killed_process() -> None:
    assert not orphans_after_kill(PARENT, within_s=15)


@pytest.mark.slow
def test_engine_of_two_processes_tells_the_digests_of_both(model_folder: Path) -> None:
    settings = SETTINGS.model_copy(update={"tensor_parallel_size": 2})
    os.environ.update(engine_environment(settings) | {"VLLM_CPU_OMP_THREADS_BIND": "0|1"})
    started = Started(model_folder, settings)
    loaded = started.run(started.engine.loaded_weights())
    started.close()
    os.environ.update(engine_environment(SETTINGS))
    assert loaded == [{"model": digest_folder(model_folder)}] * 2


@pytest.mark.slow
def test_engine_processes_end_after_their_worker_was_killed(model_folder: Path) -> None:
    arguments = str(model_folder), SETTINGS.model_dump_json()
    assert not orphans_after_kill(WORKER, *arguments, within_s=15)


@pytest.mark.parametrize(
    ("workers_per_node", "num_cores", "expected"),
    [
        (1, 1, ["0"]),
        (1, 2, ["0-1"]),
        (2, 2, ["0", "1"]),
        (2, 16, ["0-7", "8-15"]),
        (3, 4, ["0", "1", "2-3"]),
        (3, 8, ["0-1", "2-4", "5-7"]),
        (4, 2, ["0", "0", "1", "1"]),
        (3, 1, ["0", "0", "0"]),
    ],
)
def test_cpu_bind_divides_all_cores_evenly(
    workers_per_node: int, num_cores: int, expected: list[str]
) -> None:
    indices = range(workers_per_node)
    assert [cpu_bind(i, workers_per_node, num_cores) for i in indices] == expected
    # A worker that took the place of another.
    assert cpu_bind(workers_per_node, workers_per_node, num_cores) == expected[0]


SMALL = {
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_size": 576,
}


@pytest.mark.parametrize(
    ("config", "context", "max_num_seqs", "dtype_bytes", "memory_gib", "expected"),
    [
        # 2 * 30 * 3 * 64 * 4 bytes are 45 KiB a token.
        (SMALL, 1024, 64, 4, 24.0, 3),
        (SMALL, 1024, 64, 2, 24.0, 2),
        (SMALL, 1024, 256, 4, 24.0, 8),
        (SMALL, 1024, 1, 2, 24.0, 1),
        (SMALL, 1024, 64, 4, 2.0, 1),
        ({**SMALL, "head_dim": 128}, 1024, 64, 4, 24.0, 6),
        ({**SMALL, "num_key_value_heads": None}, 1024, 64, 4, 48.0, 9),
        ({"text_config": SMALL}, 1024, 64, 4, 24.0, 3),
        ({"n_layer": 12}, 1024, 64, 4, 24.0, 8),
    ],
)
def test_kv_cache_holds_a_full_batch_but_takes_no_more_than_a_third_of_the_memory(
    config: dict[str, Any],
    context: int,
    max_num_seqs: int,
    dtype_bytes: int,
    memory_gib: float,
    expected: int,
) -> None:
    assert kv_cache_gib(config, context, max_num_seqs, dtype_bytes, memory_gib) == expected


def test_engine_environment_leaves_to_the_worker_what_its_machine_decides() -> None:
    planned = engine_environment(EngineSettings(use_gpu=False))
    given = engine_environment(
        EngineSettings(use_gpu=False, kv_cache_gib=3, omp_threads_bind="0-2")
    )
    on_gpu = engine_environment(EngineSettings(kv_cache_gib=3))
    assert not [name for name in (*planned, *on_gpu) if name.startswith("VLLM_CPU")]
    assert given["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert given["VLLM_CPU_OMP_THREADS_BIND"] == "0-2"


@pytest.mark.parametrize(
    ("sampling", "use_gpu", "warned"),
    [
        ({"top_p": 0.9}, False, True),
        ({"top_p": 0.9}, True, False),
        ({"top_p": 1.0}, False, False),
        ({"top_p": 0.9, "temperature": 0.0}, False, False),
    ],
)
def test_slow_top_p_warns_where_it_slows(
    sampling: dict[str, Any], use_gpu: bool, warned: bool
) -> None:
    warning = slow_top_p([SamplingSettings(), SamplingSettings(**sampling)], use_gpu)
    assert bool(warning) == warned


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("temperature", "temperature is a separate setting; set it next to options"),
        ("max_tokens", "max_tokens is a separate setting; set it next to options"),
        ("n", "n is set by the run; leave it out"),
        ("seed", "seed is set by the run; leave it out"),
        ("output_kind", "output_kind is set by the run; leave it out"),
    ],
)
def test_sampling_option_that_is_a_setting_is_refused(name: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        SamplingSettings(options={name: 1})


def test_chat_base_model_without_template_gets_the_plain_one(
    model_folder: Path, tmp_path: Path
) -> None:
    for file in model_folder.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = load_tokenizer(str(tmp_path))
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "Hi"}], {})
    assert tokenizer.decode(ids) == "User: Hi\n\nAssistant:"


def test_chat_target_ids_hold_no_special_tokens(model_folder: Path) -> None:
    tokenizer = load_tokenizer(str(model_folder))
    ids = target_ids(tokenizer, "four \\boxed{4}")
    assert tokenizer.decode(ids) == "four \\boxed{4}"
    assert not set(ids) & set(tokenizer.all_special_ids)
