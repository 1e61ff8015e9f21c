"""A proxy before an S3 server that counts the requests, and is away, fails or refuses on command.

Example::

    with CountingProxy("127.0.0.1", 5000) as proxy:
        proxy.mode = "away"            # connections are closed without an answer
        proxy.requests                 # [("GET", "/bucket/a.bin"), ...] that were forwarded
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Mode = Literal["on", "away", "busy", "forbidden", "lost"]
"""`lost` does what is asked, and closes the connection without an answer."""

_ANSWERS = {
    "busy": (503, b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>"),
    "forbidden": (403, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"),
}


class CountingProxy:
    """Forwards what it gets. `before` is called with each request's method and path."""

    def __init__(self, host: str, port: int) -> None:
        self.mode: Mode = "on"
        self.delay_s = 0.0
        self.refuse_next = 0
        self.requests: list[tuple[str, str]] = []
        self.refused: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda method, path: None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, host, port))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    def __enter__(self) -> CountingProxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def uri(self, path: str) -> str:
        """How a config names a path behind the proxy."""
        return f"s3://{path}?scheme=http&endpoint_override=127.0.0.1:{self.port}&region=us-east-1"

    def refuses(self) -> bool:
        """Whether the request that came is one of the next that get no answer."""
        is_refused = self.refuse_next > 0
        self.refuse_next -= is_refused
        return is_refused

    def count(self, method: str, within: str = "") -> int:
        """How many requests of a method were forwarded for paths with this text."""
        return sum(m == method and within in path for m, path in self.requests)


def _handler(proxy: CountingProxy, host: str, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self._body()
            proxy.before(self.command, self.path)
            if proxy.mode == "away" or proxy.refuses():
                proxy.refused.append((self.command, self.path))
                self.close_connection = True
                return
            if proxy.mode in _ANSWERS:
                proxy.refused.append((self.command, self.path))
                status, text = _ANSWERS[proxy.mode]
                self._answer(status, [("Content-Type", "application/xml")], text)
                return
            time.sleep(proxy.delay_s)
            proxy.requests.append((self.command, self.path))
            server = http.client.HTTPConnection(host, port)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _OWN}
            server.request(self.command, self.path, body, headers)
            reply = server.getresponse()
            data = reply.read()
            if proxy.mode == "lost":
                self.close_connection = True
                return
            answered = [(k, v) for k, v in reply.getheaders() if k.lower() not in _OWN]
            if self.command == "HEAD":
                answered.append(("Content-Length", reply.getheader("Content-Length") or "0"))
            self._answer(reply.status, answered, data)
            server.close()

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(chunks)

        def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


_OWN = ("content-length", "transfer-encoding", "connection", "date", "server")
