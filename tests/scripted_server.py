"""An OpenAI-compatible server that follows a script, request by request.

A step of the script is a status with an optional Retry-After (`"500"`, `"429:0.05"`), `drop` (the
connection is closed without a reply), `cut` (closed within the reply), `stall` (no reply until the
server is closed), `garbage` (no JSON), `empty` (JSON without choices), or `ok`. After the last step
everything is `ok`. An answer to a chat is what `tests.scripted` would say, so that whole steps can
run on it.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.scripted import solve

MODEL = "teacher"
KEY = "sk-very-secret"


class ScriptedServer:
    """Serves on a free port of this machine until the block ends."""

    def __init__(self, *script: str, key: str | None = None, models: Any = (MODEL,)) -> None:
        self.script = list(script)
        self.key = key
        self.models = models
        self.requests: list[dict[str, Any]] = []
        """Path, body, Authorization header and time of each POST."""
        self.listed: list[str] = []
        """Path of each GET."""
        self.open = self.most_open = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


def _handler(owner: ScriptedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            owner.listed.append(self.path)
            if not self._has_key():
                return self._reply(401, {"error": {"message": "no such key"}})
            if owner.models is None:
                return self._reply(404, {})
            if isinstance(owner.models, str):  # the list is somewhere else
                return self._reply(302, {}, {"Location": owner.models})
            if isinstance(owner.models, bytes):
                return self._send(200, owner.models)
            return self._reply(200, {"data": [{"id": name} for name in owner.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            authorization = self.headers.get("Authorization")
            with owner.lock:
                owner.requests.append(
                    {"path": self.path, "body": body, "key": authorization, "at": time.monotonic()}
                )
                step = owner.script.pop(0) if owner.script else "ok"
                owner.open += 1
                owner.most_open = max(owner.most_open, owner.open)
            try:
                self._play(step, body)
            finally:
                with owner.lock:
                    owner.open -= 1

        def _play(self, step: str, body: dict[str, Any]) -> None:
            status, _, retry_after = step.partition(":")
            if status.isdecimal():
                message = f"scripted {status} for {self.headers.get('Authorization')}"
                headers = {"Retry-After": retry_after} if retry_after else {}
                self._reply(int(status), {"error": {"message": message}}, headers)
            elif step == "drop":
                self.connection.close()
            elif step == "cut":
                self._send(200, b'{"choices": [', length=1000)
                self.connection.close()
            elif step == "stall":
                owner.closing.wait(30)
            elif step == "proxy":
                self._send(400, b"<html>no such upstream</html>")
            elif step == "garbage":
                self._send(200, b"<html>busy</html>")
            elif step == "empty":
                self._reply(200, {"choices": []})
            elif step == "slow":
                time.sleep(0.05)
                self._reply(200, _completion(body))
            else:
                self._reply(200, _completion(body))

        def _has_key(self) -> bool:
            return owner.key is None or self.headers.get("Authorization") == f"Bearer {owner.key}"

        def _reply(self, status: int, tree: Any, headers: dict[str, str] | None = None) -> None:
            self._send(status, json.dumps(tree).encode(), headers)

        def _send(
            self,
            status: int,
            data: bytes,
            headers: dict[str, str] | None = None,
            length: int | None = None,
        ) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(length or len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing goes to the terminal."""

    return Handler


def _completion(body: dict[str, Any]) -> dict[str, Any]:
    n = body.get("n", 1)
    usage = {"prompt_tokens": 11, "completion_tokens": 7 * n}
    if "prompt" in body:
        choices = [
            {"index": i, "text": f"id {i}", "token_ids": [i, 5], "finish_reason": "length"}
            for i in range(n)
        ]
        return {"choices": choices[::-1], "usage": usage}
    text = _answer(body["messages"][-1]["content"])
    message = {"role": "assistant", "content": text}
    choices = [{"index": i, "message": message, "finish_reason": "stop"} for i in range(n)]
    return {"choices": choices, "usage": usage}


def _answer(prompt: str) -> str:
    if "\nGuideline: " in prompt:
        return "Look at the signs first."
    if "\nAdvice: " in prompt:
        return "1. Read it. 2. Work it out."
    return f"I work it out: {solve(prompt)}. \\boxed{{{solve(prompt)}}}"
