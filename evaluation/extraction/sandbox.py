"""Subprocesses in which text that a model wrote may be computed with.

Symbolic algebra and the scorers of `reasoning_gym` can run for hours on a short text, use all
memory, or evaluate the text as Python. Neither an alarm (main thread only) nor a thread (cannot be
ended) stops that, so it happens in a child process that the kernel ends: each request may use
`CPU_LIMIT_S` seconds of processor time, whatever else the machine is doing, and `WALL_LIMIT_S` in
all, in case it waits without using the processor.

    Calculator.of_this_process().ask({"truth": "x^2", "found": "x \\cdot x"})  ->  {"same": True}

The first request starts a process that imports what is needed, which takes about two seconds. After
that, this process only forks workers, one for each concurrent request. So a slow request does not
delay others, and a worker that was ended is replaced within milliseconds. All of them end with the
process that started them.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

CPU_LIMIT_S = 0.7
WALL_LIMIT_S = 120.0
MAX_WORKERS = 16
PROGRAM = Path(__file__).with_name("sandbox_process.py")


class Calculator:
    """The processes and their interface; any number of threads may use it."""

    _of_process: ClassVar[dict[int, Calculator]] = {}

    def __init__(
        self, cpu_limit_s: float = CPU_LIMIT_S, wall_limit_s: float = WALL_LIMIT_S
    ) -> None:
        self._cpu_limit_s = cpu_limit_s
        self._wall_limit_s = wall_limit_s
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(MAX_WORKERS)
        self._starter: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._idle: list[socket.socket] = []

    @classmethod
    def of_this_process(cls) -> Calculator:
        """The instance that all callers share; a forked process gets its own."""
        return cls._of_process.setdefault(os.getpid(), cls())

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply; empty if the worker was ended, so that the request has no result.

        Raises RuntimeError if a worker failed by itself, which is a bug in this program.
        """
        with self._free:
            worker = self._take(request)
            reply = self._exchange(worker, json.dumps(request).encode() + b"\n")
            if reply is None:
                worker.close()
                self._check_starter()
                return {}
            with self._lock:
                self._idle.append(worker)
        if "fault" in reply:
            raise RuntimeError(f"{PROGRAM.name} failed on {request}: {reply['fault']}")
        return reply

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            for worker in self._idle:
                worker.close()
            self._idle.clear()
            if self._control is not None:
                self._control.close()
            if self._starter is not None:
                self._starter.kill()
                self._starter.wait()
            self._starter = self._control = None

    def _take(self, request: dict[str, Any]) -> socket.socket:
        """An idle worker, or a new one that has imported what the request needs."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
            if self._starter is None or self._control is None:
                self._starter, self._control = self._start()
            ours, theirs = socket.socketpair()
            needs = {name: request[name] for name in ("family", "settings") if name in request}
            # A starter that is gone is noticed in the exchange.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(self._control, [json.dumps(needs).encode()], [theirs.fileno()])
            theirs.close()
            return ours

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # -P keeps this folder out of the child's path. A separate session shields it from Ctrl-C,
        # which is for the driver; the child ends when no process can reach it any more.
        process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM), str(self._cpu_limit_s)],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        return process, ours

    def _exchange(self, worker: socket.socket, line: bytes) -> dict[str, Any] | None:
        """Send one line to the worker and read one; None if it ended or took too long."""
        deadline = time.monotonic() + self._wall_limit_s
        reply = b""
        try:
            worker.sendall(line)
            while not reply.endswith(b"\n"):
                left = max(deadline - time.monotonic(), 0)
                ready, _, _ = select.select([worker], [], [], left)
                part = worker.recv(1 << 16) if ready else b""
                if not part:
                    return None
                reply += part
        except (BrokenPipeError, ConnectionResetError):
            return None
        answer: dict[str, Any] = json.loads(reply)
        return answer

    def _check_starter(self) -> None:
        with self._lock:
            code = self._starter.poll() if self._starter is not None else None
        if code is not None:
            raise RuntimeError(f"{PROGRAM.name} ended with code {code}; see its message above")
