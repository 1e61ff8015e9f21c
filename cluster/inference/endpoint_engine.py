"""An engine that sends requests to an OpenAI-compatible server (`engine.implementation: endpoint`).

It lets a model that runs elsewhere, for example a larger one, write or judge paths, as
`synthesis.engine`. Nothing proves which weights are behind a URL, and a server cannot be given the
model that a run trains. It is therefore refused as the run's `engine`, which evaluates that model,
unless the run ends before the evaluation.

A request is repeated, with waits that double, when the server is throttled or overloaded, when the
connection is lost, or when the reply is not JSON; a Retry-After is respected. When a server cannot
be reached or keeps throttling after all retries, the worker ends. When its restarts are used up,
the run ends with exit code 4, and the finished rows are kept. A request to which the server replies
with an error is one failed generation.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import InputError
from cluster.inference.engine import (
    Completion,
    EndpointSettings,
    EngineDiedError,
    EngineSettings,
    GenerationError,
    PromptTooLongError,
    SamplingSettings,
)
from cluster.models.chat_template import CLOCK, ChatModel, Prompt

THROTTLED = (429,)
AWAY = (502, 503, 504)
FOR_NOW = (408, 500, *THROTTLED, *AWAY)
"""HTTP statuses after which the same request may succeed later."""
SHOWN_CHARACTERS = 300
"""The maximum number of characters of a server's error text that are shown."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """A request that may succeed later."""

    reason: str
    server_is_away: bool
    """Whether other requests would fail as well."""
    wait_s: float | None = None
    """Seconds that the server asked to wait."""


class EndpointEngine:
    """Sends requests to one server. The first request opens the session, in its event loop.

    The constructor waits until the server lists its models. Raises `InputError` when the key's
    variable is not set, the key is refused, or the server does not have the model, and
    `EngineDiedError` when the server does not answer.
    """

    def __init__(self, model: str, settings: EngineSettings) -> None:
        self._endpoint = _endpoint_of(settings)
        self._context = settings.max_model_len
        self._headers = _headers(self._endpoint)
        self._in_flight = asyncio.Semaphore(settings.max_num_seqs)
        self._session: Any = None
        self._chat: ChatModel | None = None
        if self._endpoint.prompts == "token_ids":
            self._chat = ChatModel.load(model)
        _check_server(self._endpoint, self._endpoint.max_retries + 1)
        self.facts = {"served_by": f"endpoint {self._endpoint.model}", "weights": "not compared"}

    @staticmethod
    def check_server(settings: EngineSettings) -> None:
        """Check once or twice that the server accepts the key and has the model.

        Raises `InputError` when it does not, or when it does not answer.
        """
        try:
            _check_server(_endpoint_of(settings), num_attempts=2)
        except EngineDiedError as error:
            raise InputError(f"{error}; start the server, or correct the URL") from error

    @staticmethod
    def check_settings(settings: EngineSettings, needs_weight_proof: bool) -> None:
        """Raise `InputError` for settings of a local engine, for a key that is not set, and when
        the engine would have to serve a model that the run trains."""
        endpoint = _endpoint_of(settings)
        _headers(endpoint)
        if settings.options:
            raise InputError(
                f"engine.options {', '.join(settings.options)}: they are vLLM's arguments, and "
                "engine.implementation: endpoint starts no vLLM; set them on the server"
            )
        if settings.adapter is not None:
            raise InputError(
                "engine.adapter is for an engine that runs here; give the name that the server "
                "serves the adapter under as engine.endpoint.model"
            )
        if needs_weight_proof:
            raise InputError(
                "engine.implementation: endpoint cannot serve the model that this run trains, so "
                "it could not be evaluated; set the endpoint as synthesis.engine and use a local "
                "engine as engine, or run with --until examples"
            )

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        """`n` answers to one chat. vLLM's server draws the i-th with `seed + i`; other servers
        may treat seeds differently.

        Greedy answers are all the same, so only one is requested. Raises `GenerationError`, and
        `EngineDiedError` when the server stays unreachable or keeps throttling.
        """
        asked = n if sampling.temperature > 0 else 1
        prompt = self._chat.prompt(messages, sampling.template_args) if self._chat else None
        path, body = self._request(messages, prompt.token_ids if prompt else None, sampling)
        body |= {"seed": seed, "n": asked} if sampling.temperature > 0 else {}
        async with self._in_flight:
            reply = await self._ask(path, body, asked)
        completions = [self._read(each, prompt) for each in reply]
        return completions if len(completions) == n else completions * n

    def _read(self, completion: Completion, prompt: Prompt | None) -> Completion:
        """Add the turn to a completion, if the prompt was rendered here."""
        if self._chat is None or prompt is None:
            return completion
        return self._chat.read(completion, prompt)

    def _request(
        self,
        messages: Sequence[Mapping[str, str]],
        ids: list[int] | None,
        sampling: SamplingSettings,
    ) -> tuple[str, dict[str, Any]]:
        """The path below the URL, and the body without the seed and the number of answers."""
        body: dict[str, Any] = {"model": self._endpoint.model, "temperature": sampling.temperature}
        body["top_p"] = sampling.top_p  # vLLM's server would use the model folder's value
        for name in ("top_k", "min_p"):
            # Other servers refuse unknown fields, so these are sent only when they are set.
            if ids is not None or getattr(sampling, name):
                body[name] = getattr(sampling, name)
        body |= (self._chat.with_stops(sampling) if self._chat else sampling).options
        limit = self._limit(sampling, ids)
        body |= {} if limit is None else {"max_tokens": limit}
        if ids is not None:
            return "completions", body | {"prompt": ids, "return_token_ids": True}
        # A fixed date for our template is not sent, because the server uses its own template.
        if args := {name: arg for name, arg in sampling.template_args.items() if name != CLOCK}:
            body["chat_template_kwargs"] = args
        return "chat/completions", body | {"messages": [dict(message) for message in messages]}

    def _limit(self, sampling: SamplingSettings, ids: list[int] | None) -> int | None:
        """The token limit of the answer; None leaves it to the server, which knows its context."""
        if ids is None or self._context is None:
            if ids is not None and sampling.max_tokens is None:
                raise InputError(
                    "max_tokens: null needs engine.max_model_len with endpoint.prompts: token_ids; "
                    "a server would end every answer after 16 tokens"
                )
            return sampling.max_tokens
        room = self._context - len(ids)
        if room < 1:
            raise PromptTooLongError(
                f"the prompt has {len(ids)} tokens, engine.max_model_len is {self._context}"
            )
        return min(sampling.max_tokens or room, room)

    async def _ask(self, path: str, body: Mapping[str, Any], n: int) -> list[Completion]:
        """Send a request until it is answered, with at most `max_retries` retries."""
        attempt = 0
        while isinstance(reply := await self._ask_once(path, body, n), _Failure):
            if attempt == self._endpoint.max_retries:
                reason = f"{self._endpoint.url}: {reply.reason}, {attempt + 1} times in a row"
                raise EngineDiedError(reason) if reply.server_is_away else GenerationError(reason)
            await asyncio.sleep(retry_wait_s(self._endpoint, attempt, reply.wait_s))
            attempt += 1
        return reply

    async def _ask_once(
        self, path: str, body: Mapping[str, Any], n: int
    ) -> list[Completion] | _Failure:
        import aiohttp

        url = f"{self._endpoint.url.rstrip('/')}/{path}"
        try:
            # A redirect could carry the key to another host.
            async with self._opened().post(url, json=body, allow_redirects=False) as response:
                data = await response.read()
                status, headers = response.status, response.headers
        except TimeoutError:
            return _Failure(f"no answer within {self._endpoint.request_timeout_s:g} s", False)
        except aiohttp.ClientError as error:
            return _Failure(self._shown(f"{type(error).__name__}: {error}"), True)
        if status == 200:
            return _completions(data, n)
        reason = self._shown(f"HTTP {status}: {_error_text(data)}")
        if status in FOR_NOW:
            away = status in (*THROTTLED, *AWAY)
            return _Failure(reason, away, retry_after_s(headers.get("Retry-After"), time.time()))
        if status in (401, 403, 404):  # a wrong key, model or URL fails every request
            raise EngineDiedError(f"{url}: {reason}")
        is_too_long = status == 400 and "context length" in reason
        raise (PromptTooLongError if is_too_long else GenerationError)(reason)

    def _opened(self) -> Any:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=self._endpoint.request_timeout_s),
                connector=aiohttp.TCPConnector(limit=0),  # `max_num_seqs` limits the requests
                trust_env=True,
            )
        return self._session

    def _shown(self, text: str) -> str:
        """Shorten an error text to one line and remove the key, which a server may repeat."""
        key = self._headers.get("Authorization", "").removeprefix("Bearer ")
        text = " ".join(text.split())
        return (text.replace(key, "...") if key else text)[:SHOWN_CHARACTERS]

    def shutdown(self) -> None:
        """Close the connections, in the event loop in which they were opened."""
        if self._session is not None:
            with contextlib.suppress(RuntimeError):  # its event loop has ended
                asyncio.get_running_loop().create_task(self._session.close())


def _check_server(endpoint: EndpointSettings, num_attempts: int) -> None:
    """Request the list of models, so that no question is blamed for a wrong key or name.

    A server without such a list is accepted. Raises as `EndpointEngine` does.
    """
    for attempt in range(num_attempts):
        status, data = _get_models(endpoint)
        if status in (401, 403):
            raise InputError(
                f"engine.endpoint: {endpoint.url} refuses the key (HTTP {status}); set the "
                f"variable {endpoint.key_variable or 'that key_variable names'} to a key that "
                "it accepts"
            )
        if status == 200:
            _check_model_name(endpoint, data)
        if status and status not in FOR_NOW:
            return
        if attempt < num_attempts - 1:
            time.sleep(retry_wait_s(endpoint, attempt, None))
    reason = data.decode(errors="replace") if data else f"HTTP {status}"
    raise EngineDiedError(f"engine.endpoint.url {endpoint.url} does not answer: {reason}")


def _get_models(endpoint: EndpointSettings) -> tuple[int, bytes]:
    """The status and text of the server's list of models; status 0 if there was no reply."""
    request = urllib.request.Request(  # noqa: S310, the settings take http only
        f"{endpoint.url.rstrip('/')}/models", headers=_headers(endpoint)
    )
    try:
        with _opener.open(request, timeout=endpoint.request_timeout_s) as response:
            return int(response.status), response.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error).encode()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, because a redirect could carry the key to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)


def _check_model_name(endpoint: EndpointSettings, data: bytes) -> None:
    """Raise `InputError` when the server's list of models lacks the requested one; a reply that is
    not such a list is ignored."""
    try:
        names = [str(model["id"]) for model in json.loads(data)["data"]]
    except (ValueError, KeyError, TypeError):
        return
    if endpoint.model not in names:
        raise InputError(
            f"engine.endpoint.model {endpoint.model!r}: {endpoint.url} does not serve it; it has "
            f"{', '.join(names[:20]) or 'none'}"
        )


def _endpoint_of(settings: EngineSettings) -> EndpointSettings:
    if settings.endpoint is None:
        raise InputError("engine.endpoint is missing: give its url and model")
    return settings.endpoint


def _headers(endpoint: EndpointSettings) -> dict[str, str]:
    """The headers of a request, with the key. Raises `InputError` when its variable is not set."""
    if endpoint.key_variable is None:
        return {}
    key = os.environ.get(endpoint.key_variable, "").strip()
    if not key:
        raise InputError(
            f"engine.endpoint.key_variable: the environment variable {endpoint.key_variable} is "
            "not set; set it to the server's key where the run and its workers start"
        )
    return {"Authorization": f"Bearer {key}"}


def retry_wait_s(endpoint: EndpointSettings, attempt: int, asked_s: float | None) -> float:
    """Seconds to wait after a failed attempt (0 is the first): the time that the server requested,
    otherwise an exponential back-off, of which up to half is random so that not all clients retry
    at once."""
    if asked_s is not None:
        return asked_s
    longest: float = min(endpoint.max_wait_s, endpoint.first_wait_s * 2**attempt)
    return longest * random.uniform(0.5, 1.0)


def retry_after_s(header: str | None, now: float) -> float | None:
    """The seconds in a Retry-After header, which is a number or a date; None if it is neither.

    `now` is the time in seconds since 1970.
    """
    if header is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(header))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now)
    return None


def _completions(data: bytes, n: int) -> list[Completion] | _Failure:
    """The answers in a reply, in the order of their seeds; a failure if the reply is malformed."""
    try:
        reply = json.loads(data)
        choices = sorted(reply["choices"], key=lambda choice: choice["index"])
        usage = reply.get("usage") or {}
        completions = [_completion(choice, usage, len(choices)) for choice in choices]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return _Failure(f"the reply is not a completion ({type(error).__name__}: {error})", False)
    if len(completions) != n:
        return _Failure(f"{n} answers were requested, but {len(completions)} came", False)
    return completions


def _completion(
    choice: Mapping[str, Any], usage: Mapping[str, Any], num_choices: int
) -> Completion:
    """One answer. A server counts the tokens of all answers together: each gets an equal share."""
    message = choice.get("message")
    text = choice["text"] if message is None else _message_text(message)
    ids = choice.get("token_ids") if message is None else None
    counted = round(int(usage.get("completion_tokens") or 0) / num_choices)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Completion(
        text=text,
        token_ids=[int(token) for token in ids or ()],
        finish_reason="stop" if choice["finish_reason"] == "stop" else "length",
        num_prompt_tokens=int(usage.get("prompt_tokens") or 0),
        num_cached_tokens=int(cached),
        num_counted_tokens=None if ids else counted,
    )


def _message_text(message: Mapping[str, Any]) -> str:
    """A message as one text; thinking that the server returns separately goes into `<think>`."""
    thinking = message.get("reasoning_content") or message.get("reasoning")
    content = str(message["content"] or "")
    return f"<think>{thinking}</think>\n\n{content}" if thinking else content


def _error_text(data: bytes) -> str:
    """The message in an error reply, which is JSON in one of two forms, or any text."""
    text = data.decode("utf-8", errors="replace")
    try:
        reply = json.loads(text)
    except ValueError:
        return text
    error = reply.get("error", reply) if isinstance(reply, dict) else reply
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
