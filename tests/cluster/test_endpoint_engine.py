"""The engine that uses a server: a scripted server with every kind of failure, and vLLM's."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import GenerationStoppedError, InputError
from cluster.inference.cpu_binding import bind_cpu
from cluster.inference.endpoint_engine import EndpointEngine, retry_after_s, retry_wait_s
from cluster.inference.engine import (
    Completion,
    EndpointSettings,
    EngineDiedError,
    EngineSettings,
    GenerationError,
    PromptTooLongError,
    SamplingSettings,
    check_engine_options,
    check_engine_server,
    make_engine,
)
from cluster.inference.pool import run_jobs
from cluster.models.chat_template import load_tokenizer, prompt_ids
from cluster.models.model import Model
from cluster.session import StopRequest
from cluster.settings import content_of
from cluster.store.folder import Folder
from tests.cluster.test_pool import paths_job, rows
from tests.conftest import REPOSITORY
from tests.scripted_server import KEY, MODEL, ScriptedServer

GREEDY = SamplingSettings(temperature=0.0, max_tokens=5)
SAMPLED = SamplingSettings(temperature=0.7, max_tokens=5)
ASKED = [{"role": "user", "content": "What is 2 + 3?"}]


def settings(server: ScriptedServer | str, **changes: Any) -> EngineSettings:
    """With retries that take hundredths of a second."""
    endpoint = {
        "url": server if isinstance(server, str) else server.url,
        "model": MODEL,
        "request_timeout_s": 5.0,
        "max_retries": 3,
        "first_wait_s": 0.01,
        "max_wait_s": 0.02,
    } | changes.pop("endpoint", {})
    tree = {"implementation": "endpoint", "max_num_seqs": 4, "endpoint": endpoint} | changes
    return EngineSettings.model_validate(tree)


def ask(
    asked: EngineSettings,
    sampling: SamplingSettings = GREEDY,
    n: int = 1,
    model: str = "no model is here",
) -> list[Completion]:
    """The answers to one request, on a separate engine."""

    async def answers(engine: EndpointEngine) -> list[Completion]:
        return await engine.chat(ASKED, sampling, 40, n)

    return with_engine(asked, answers, model)


def with_engine(
    asked: EngineSettings,
    do: Callable[[EndpointEngine], Awaitable[list[Completion]]],
    model: str = "no model is here",
) -> list[Completion]:
    async def run() -> list[Completion]:
        engine = make_engine(model, asked)
        assert isinstance(engine, EndpointEngine)
        try:
            return await do(engine)
        finally:
            engine.shutdown()
            await asyncio.sleep(0)

    return asyncio.run(run())


def test_endpoint_chat_is_one_request_with_seed_and_number_and_counts_its_tokens() -> None:
    with ScriptedServer() as server:
        sampling = SAMPLED.model_copy(
            update={"template_args": {"enable_thinking": False}, "options": {"stop": ["x"]}}
        )
        answers = ask(settings(server), sampling, n=3)
    assert [answer.text for answer in answers] == ["I work it out: 5. \\boxed{5}"] * 3
    assert [(a.token_ids, a.num_tokens, a.num_prompt_tokens) for a in answers] == [([], 7, 11)] * 3
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["key"] is None
    assert request["body"] == {
        "model": MODEL,
        "messages": ASKED,
        "temperature": 0.7,
        "top_p": 1.0,
        "max_tokens": 5,
        "stop": ["x"],
        "chat_template_kwargs": {"enable_thinking": False},
        "seed": 40,
        "n": 3,
    }


def test_endpoint_greedy_answers_are_asked_for_once() -> None:
    with ScriptedServer() as server:
        first, *others = ask(settings(server), n=3)
    assert others == [first, first]
    assert len(server.requests) == 1
    assert not {"seed", "n", "top_k", "min_p"} & server.requests[0]["body"].keys()


def test_endpoint_token_ids_are_those_of_the_runs_own_model_and_stay_in_its_context(
    model_folder: Path,
) -> None:
    ids = prompt_ids(load_tokenizer(str(model_folder)), ASKED, {})
    by_ids = {"endpoint": {"prompts": "token_ids"}}
    unlimited = SAMPLED.model_copy(update={"max_tokens": None})
    with ScriptedServer() as server:
        context = len(ids) + 20
        answers = ask(
            settings(server, max_model_len=context, **by_ids), unlimited, 2, str(model_folder)
        )
        with pytest.raises(PromptTooLongError, match=r"engine\.max_model_len is 9"):
            ask(settings(server, max_model_len=9, **by_ids), model=str(model_folder))
        with pytest.raises(InputError, match=r"needs engine\.max_model_len"):
            ask(settings(server, **by_ids), unlimited, model=str(model_folder))
    assert [(a.text, a.token_ids, a.num_tokens) for a in answers] == [
        ("id 0", [0, 5], 2),
        ("id 1", [1, 5], 2),
    ]
    assert {a.finish_reason for a in answers} == {"length"}
    (request,) = server.requests
    assert request["path"] == "/v1/completions"
    assert request["body"]["prompt"] == ids
    assert request["body"]["max_tokens"] == 20
    assert request["body"]["return_token_ids"]


@pytest.mark.parametrize(
    "script",
    [["500"], ["503", "502"], ["drop"], ["cut", "drop"], ["garbage"], ["empty"], ["429"], ["408"]],
    ids=" ".join,
)
def test_endpoint_asks_again_after_what_may_pass(script: list[str]) -> None:
    with ScriptedServer(*script) as server:
        (answer,) = ask(settings(server))
    assert answer.text.endswith("\\boxed{5}")
    assert len(server.requests) == len(script) + 1


def test_endpoint_that_stalls_is_asked_again_after_the_time_out() -> None:
    with ScriptedServer("stall") as server:
        ask(settings(server, endpoint={"request_timeout_s": 0.3}))
    assert len(server.requests) == 2


def test_endpoint_waits_as_long_as_a_throttling_server_asks() -> None:
    with ScriptedServer("429:0.3") as server:
        ask(settings(server))
    first, again = (request["at"] for request in server.requests)
    assert again - first >= 0.3


@pytest.mark.parametrize(
    ("step", "error", "reason"),
    [
        ("429", EngineDiedError, "HTTP 429: scripted 429 .*4 times in a row"),
        ("503", EngineDiedError, "HTTP 503"),
        ("drop", EngineDiedError, "ServerDisconnectedError"),
        ("500", GenerationError, "HTTP 500"),
        ("garbage", GenerationError, "the reply is not a completion"),
        ("empty", GenerationError, "1 answers were requested, but 0 came"),
    ],
)
def test_endpoint_that_goes_on_so_ends_the_worker_only_where_all_would_fail(
    step: str, error: type[Exception], reason: str
) -> None:
    with ScriptedServer(*[step] * 4) as server, pytest.raises(error, match=reason):
        ask(settings(server))
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("302", GenerationError),
        ("400", GenerationError),
        ("422", GenerationError),
        ("401", EngineDiedError),
        ("404", EngineDiedError),
    ],
)
def test_endpoint_does_not_repeat_what_will_fail_again(status: str, error: type[Exception]) -> None:
    with ScriptedServer(status) as server, pytest.raises(error, match=f"HTTP {status}"):
        ask(settings(server))
    assert len(server.requests) == 1


def test_endpoint_takes_no_more_requests_at_once_than_max_num_seqs() -> None:
    async def many(engine: EndpointEngine) -> list[Completion]:
        answers = await asyncio.gather(*(engine.chat(ASKED, GREEDY, n) for n in range(12)))
        return [answer for (answer,) in answers]

    with ScriptedServer(*["slow"] * 12) as server:
        assert len(with_engine(settings(server, max_num_seqs=3), many)) == 12
    assert server.most_open == 3


def test_endpoint_key_comes_from_the_variable_that_is_named_and_is_never_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    with ScriptedServer("400", key=KEY) as server:
        asked = settings(server, endpoint={"key_variable": "TEACHER_KEY"})
        with pytest.raises(GenerationError, match=r"scripted 400 for Bearer \.\.\.") as caught:
            ask(asked)
        assert KEY not in f"{caught.value} {asked.model_dump_json()} {content_of(asked)}"
        assert server.requests[0]["key"] == f"Bearer {KEY}"
        monkeypatch.setenv("TEACHER_KEY", "wrong")
        with pytest.raises(InputError, match=r"refuses the key .*variable TEACHER_KEY"):
            ask(asked)
        monkeypatch.delenv("TEACHER_KEY")
        for act in (
            ask,
            check_engine_server,
            lambda each: check_engine_options(each, needs_weight_proof=False),
        ):
            with pytest.raises(InputError, match="variable TEACHER_KEY is not set"):
                act(asked)


def test_endpoint_without_the_model_is_refused_at_its_start() -> None:
    with ScriptedServer(models=["other"]) as server:
        for act in (ask, check_engine_server):
            with pytest.raises(InputError, match=r"'teacher': .* does not serve it; it has other"):
                act(settings(server))
        server.models = None
        ask(settings(server))
        check_engine_server(settings(server))
    with pytest.raises(InputError, match=r"does not answer: .*refused.*; start the server"):
        check_engine_server(settings(server))
    with pytest.raises(EngineDiedError, match=r"does not answer: .*refused"):
        ask(settings(server))  # it is closed


@pytest.mark.parametrize("reply", [b"<html>welcome</html>", b'{"models": []}', b'{"data": [7]}'])
def test_endpoint_whose_list_of_models_has_another_form_is_taken(reply: bytes) -> None:
    with ScriptedServer(models=reply) as server:
        check_engine_server(settings(server))
        assert server.listed == ["/v1/models"]


def test_endpoint_list_of_models_is_not_followed_to_another_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A redirect would take the key with it."""
    monkeypatch.setenv("TEACHER_KEY", KEY)
    with ScriptedServer() as other, ScriptedServer(models=f"{other.url}/models") as server:
        check_engine_server(settings(server, endpoint={"key_variable": "TEACHER_KEY"}))
    assert (server.listed, other.listed) == (["/v1/models"], [])


def test_endpoint_refusal_that_is_no_json_is_shown_as_it_came() -> None:
    with (
        ScriptedServer("proxy") as server,
        pytest.raises(GenerationError, match="HTTP 400: <html>no such upstream</html>"),
    ):
        ask(settings(server))


def test_endpoint_engine_that_is_named_by_its_class_needs_the_settings_of_the_endpoint() -> None:
    by_class = "cluster.inference.endpoint_engine.EndpointEngine"
    asked = EngineSettings(implementation=by_class, use_gpu=False)
    with pytest.raises(InputError, match=r"engine\.endpoint is missing: give its url and model"):
        check_engine_options(asked, needs_weight_proof=False)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 60.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("soon", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(header: str | None, expected: float | None) -> None:
    assert retry_after_s(header, now=1792567620.0) == expected


def test_retry_waits_double_up_to_the_longest() -> None:
    endpoint = EndpointSettings(url="http://a/v1", model="m", first_wait_s=1.0, max_wait_s=10.0)
    for attempt, longest in enumerate([1.0, 2.0, 4.0, 8.0, 10.0, 10.0]):
        waits = [retry_wait_s(endpoint, attempt, None) for _ in range(20)]
        assert all(longest / 2 <= wait <= longest for wait in waits)
    assert retry_wait_s(endpoint, 0, 90.0) == 90.0


@pytest.mark.parametrize(
    ("tree", "refused"),
    [
        ({"implementation": "endpoint"}, "belong together"),
        ({"endpoint": {"url": "http://a/v1", "model": "m"}}, "belong together"),
        ({"use_gpu": True}, "leave use_gpu out"),
        ({"endpoint": {"url": "a/v1", "model": "m"}}, "endpoint.url"),
        ({"endpoint": {"url": "http://me:key@a/v1", "model": "m"}}, "endpoint.url"),
        ({"endpoint": {"url": "http://a/v1?key=3", "model": "m"}}, "endpoint.url"),
        ({"endpoint": {"url": "http://a/v1", "model": "m", "key_variable": "a b"}}, "key_variable"),
    ],
)
def test_endpoint_settings_that_do_not_fit_are_refused(tree: dict[str, Any], refused: str) -> None:
    whole = {"implementation": "endpoint", "endpoint": {"url": "http://a/v1", "model": "m"}}
    if refused != "belong together":
        tree = whole | tree
    with pytest.raises(ValueError, match=refused):
        EngineSettings.model_validate(tree)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"options": {"quantization": "fp8"}}, "quantization: they are vLLM's arguments"),
        ({"adapter": "/adapter"}, "engine.adapter is for an engine that runs here"),
        ({}, "cannot serve the model that this run trains.*--until examples"),
    ],
)
def test_endpoint_is_refused_where_it_cannot_do_what_is_asked(
    changes: dict[str, Any], refused: str
) -> None:
    asked = settings("http://a/v1", **changes)
    with pytest.raises(InputError, match=refused):
        check_engine_options(asked, needs_weight_proof=True)


def test_endpoint_is_no_part_of_a_folders_name_unless_it_is_used_and_its_address_never() -> None:
    assert "endpoint" not in content_of(EngineSettings())
    content = content_of(settings("http://a/v1"))
    assert content["endpoint"] == {"model": MODEL, "prompts": "chat"}
    assert content == content_of(settings("http://b/v1", endpoint={"max_retries": 1}))


def test_pool_on_an_endpoint_makes_paths_without_the_models_files_and_says_that_nothing_is_proved(
    ray_cluster: str, tmp_path: Path
) -> None:
    model = Model("base", str(tmp_path / "nowhere"), str(tmp_path / "cache"))
    with ScriptedServer("429:0.05", "500", "drop", "garbage") as server:
        asked = settings(server, chunk_size=2, chunks_in_flight=2, cpus_per_worker=0.5)
        job = paths_job(Folder.open(str(tmp_path / "paths")))
        summary = run_jobs(model, [job], asked, stop=StopRequest(), progress_every_s=1)
    made = rows(job)
    assert len(made) == 12
    assert {path["verdict"] for row in made for path in row["paths"]} == {"correct"}
    facts = summary.facts()
    assert facts["served_by"] == f"endpoint {MODEL}"
    assert facts["weights"] == "not compared"
    # Two guidelines a question and three stages each, of 7 tokens.
    assert facts["num_tokens"] == 12 * 2 * 3 * 7


def test_pool_whose_endpoint_has_gone_ends_with_its_address(
    ray_cluster: str, tmp_path: Path
) -> None:
    with ScriptedServer() as server:
        asked = settings(server, max_restarts=0, endpoint={"max_retries": 0})
    job = paths_job(Folder.open(str(tmp_path / "paths")))
    model = Model("base", "unused", "unused")
    with pytest.raises(GenerationStoppedError, match=rf"{re.escape(server.url)} does not answer"):
        run_jobs(model, [job], asked, stop=StopRequest(), progress_every_s=1)


# --- vLLM's own server -------------------------------------------------------------------------


@pytest.mark.slow
def test_endpoint_and_vllms_own_server_agree_with_the_engine_that_runs_here(
    model_folder: Path, tmp_path: Path
) -> None:
    log = tmp_path / "server.log"
    port = 18_431
    arguments = [str(model_folder), "--served-model-name", MODEL, "--port", str(port)]
    arguments += ["--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8"]
    arguments += ["--dtype", "float32", "--no-enable-chunked-prefill", "--api-key", KEY]
    program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", *arguments]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "TEACHER_KEY": KEY}
    with log.open("wb") as stream:
        server = subprocess.Popen(
            program, cwd=REPOSITORY, env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
    os.environ["TEACHER_KEY"] = KEY
    patient = {"key_variable": "TEACHER_KEY", "max_retries": 200, "max_wait_s": 1.0}
    url = f"http://127.0.0.1:{port}/v1"
    by_ids = settings(
        url, max_model_len=512, endpoint={**patient, "prompts": "token_ids", "first_wait_s": 1.0}
    )
    by_chat = settings(url, endpoint=patient)
    sampling = SamplingSettings(temperature=1.0, max_tokens=12)
    try:
        answers = ask(by_ids, sampling, 3, str(model_folder))
        chats = ask(by_chat, sampling, 3)
    finally:
        del os.environ["TEACHER_KEY"]
        server.terminate()
        server.wait(60)
    ids = prompt_ids(load_tokenizer(str(model_folder)), ASKED, {})
    assert {answer.num_prompt_tokens for answer in (*answers, *chats)} == {len(ids)}
    assert all(len(answer.token_ids) == answer.num_tokens for answer in answers)
    # vLLM draws the i-th answer with seed + i, on a server as in a program.
    assert [answer.text for answer in chats] == [answer.text for answer in answers]
    assert len({answer.text for answer in answers}) == 3
    assert [answer.token_ids for answer in answers] == local_token_ids(model_folder, sampling)


def local_token_ids(model_folder: Path, sampling: SamplingSettings) -> list[list[int]]:
    """What vLLM gives as an engine of ours."""
    bind_cpu("0-1", 1)
    here = EngineSettings(
        use_gpu=False,
        dtype="float32",
        max_model_len=512,
        max_num_seqs=8,
        options={"enforce_eager": True},
    )

    async def answers() -> list[list[int]]:
        engine = make_engine(str(model_folder), here)
        try:
            return [each.token_ids for each in await engine.chat(ASKED, sampling, 40, 3)]
        finally:
            engine.shutdown()

    return asyncio.run(answers())
