"""Real vLLM on the CPU, with a model of two layers and random weights."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.chat import load_tokenizer, prompt_ids, target_ids
from cluster.engine import (
    Engine,
    EngineSettings,
    PromptTooLongError,
    SamplingSettings,
    engine_environment,
    make_engine,
)
from evaluation.prompt import answer_messages
from evaluation.question import Question

QUESTION = Question("d/test/1", "d", "test", "in_domain", "What is 2 + 2?", "4", "number")
SETTINGS = EngineSettings(
    use_gpu=False,
    max_model_len=512,
    max_num_seqs=8,
    kv_cache_gib=1,
    options={"enforce_eager": True},
)


@pytest.fixture(scope="module")
def event_loop_of_engine() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def engine(model_folder: Path, event_loop_of_engine: asyncio.AbstractEventLoop) -> Iterator[Engine]:
    os.environ.update(engine_environment(SETTINGS))

    async def start() -> Engine:
        return make_engine(str(model_folder), SETTINGS)

    started = event_loop_of_engine.run_until_complete(start())
    yield started
    started.shutdown()


def test_engine_chats_at_once_with_seeds_and_the_prompt_ids_of_training(
    engine: Engine, event_loop_of_engine: asyncio.AbstractEventLoop, model_folder: Path
) -> None:
    messages = answer_messages(QUESTION)
    sampling = SamplingSettings(temperature=1.0, max_tokens=12)

    async def chat_all() -> list[Any]:
        return await asyncio.gather(*(engine.chat(messages, sampling, s) for s in (1, 2, 3)))

    first = event_loop_of_engine.run_until_complete(chat_all())
    again = event_loop_of_engine.run_until_complete(chat_all())
    ids = prompt_ids(load_tokenizer(str(model_folder)), messages, {})
    assert {completion.num_prompt_tokens for completion in first} == {len(ids)}
    assert len({tuple(completion.token_ids) for completion in first}) == 3
    assert [c.token_ids for c in first] == [c.token_ids for c in again]
    assert all(1 <= len(completion.token_ids) <= 12 for completion in first)
    assert {completion.finish_reason for completion in first} <= {"stop", "length"}


def test_engine_prompt_without_room_for_an_answer_is_refused(
    engine: Engine, event_loop_of_engine: asyncio.AbstractEventLoop
) -> None:
    messages = [{"role": "user", "content": "x" * 600}]
    with pytest.raises(PromptTooLongError, match="context 512"):
        event_loop_of_engine.run_until_complete(engine.chat(messages, SamplingSettings(), 0))


def test_engine_answer_never_exceeds_the_context(
    engine: Engine, event_loop_of_engine: asyncio.AbstractEventLoop
) -> None:
    messages = [{"role": "user", "content": "x" * 480}]
    sampling = SamplingSettings(temperature=0.0, max_tokens=2048)
    completion = event_loop_of_engine.run_until_complete(engine.chat(messages, sampling, 0))
    assert completion.num_prompt_tokens + len(completion.token_ids) <= 512


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
