"""A process of our own in which text that a model wrote may be computed with.

Symbolic algebra and the scorers of `reasoning_gym` can run for hours on a short text, take all the
memory there is, or evaluate the text as Python. Neither an alarm (main thread only) nor a thread
(cannot be ended) stops that, so it happens in a child process that the kernel ends: each request
may use `CPU_LIMIT_S` seconds of its processor, whatever else the machine is doing, and
`WALL_LIMIT_S` of time in all, should it be held up without using any. A child that was ended is
started anew with the next request.

    Calculator.of_this_process().ask({"truth": "x^2", "found": "x \\cdot x"})  ->  {"same": True}

The child starts on the first request that needs it, which takes about two seconds; one serves all
threads of a process, one at a time, and it ends with the process that started it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

CPU_LIMIT_S = 5
WALL_LIMIT_S = 120.0
PROGRAM = Path(__file__).with_name("calculator_process.py")


class _Child(NamedTuple):
    """A started process, and the two files we talk through."""

    process: subprocess.Popen[bytes]
    requests: BinaryIO
    replies: BinaryIO

    def end(self) -> int:
        """Kill it, which does nothing where it has ended; returns its exit code."""
        self.process.kill()
        self.requests.close()
        self.replies.close()
        return self.process.wait()


class Calculator:
    """The child process and the way to ask it."""

    _of_process: ClassVar[dict[int, Calculator]] = {}

    def __init__(self, cpu_limit_s: int = CPU_LIMIT_S, wall_limit_s: float = WALL_LIMIT_S) -> None:
        self._cpu_limit_s = cpu_limit_s
        self._wall_limit_s = wall_limit_s
        self._lock = threading.Lock()
        self._child: _Child | None = None

    @classmethod
    def of_this_process(cls) -> Calculator:
        """The one that all callers share; a forked process gets its own."""
        return cls._of_process.setdefault(os.getpid(), cls())

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The child's reply; empty if it was ended, so that the request has no result.

        Raises RuntimeError if the child ended by itself, which is a fault of ours.
        """
        with self._lock:
            if self._child is None:
                self._child = self._start()
            reply = self._exchange(self._child, json.dumps(request).encode() + b"\n")
            if reply is not None:
                return reply
            code = self._child.end()
            self._child = None
        if code > 0:
            raise RuntimeError(f"{PROGRAM.name} ended with code {code}; see its message above")
        return {}

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            if self._child is not None:
                self._child.end()
                self._child = None

    def _start(self) -> _Child:
        child_reads, requests = os.pipe()
        replies, child_writes = os.pipe()
        # -P keeps this folder out of the child's path. A session of its own keeps Ctrl-C from it:
        # that is for the driver, and the child ends when nobody can ask it any more.
        process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM), str(self._cpu_limit_s)],
            stdin=child_reads,
            stdout=child_writes,
            start_new_session=True,
        )
        os.close(child_reads)
        os.close(child_writes)
        return _Child(process, os.fdopen(requests, "wb", 0), os.fdopen(replies, "rb", 0))

    def _exchange(self, child: _Child, line: bytes) -> dict[str, Any] | None:
        """One line to the child and one back; None if the child ended or took too long."""
        try:
            child.requests.write(line)
        except BrokenPipeError:
            return None
        deadline = time.monotonic() + self._wall_limit_s
        reply = b""
        while not reply.endswith(b"\n"):
            left = max(deadline - time.monotonic(), 0)
            ready, _, _ = select.select([child.replies], [], [], left)
            part = os.read(child.replies.fileno(), 1 << 16) if ready else b""
            if not part:
                return None
            reply += part
        answer: dict[str, Any] = json.loads(reply)
        return answer
