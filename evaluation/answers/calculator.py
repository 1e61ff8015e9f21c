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
from typing import Any, ClassVar

CPU_LIMIT_S = 5
WALL_LIMIT_S = 120.0
PROGRAM = Path(__file__).with_name("calculator_process.py")


class Calculator:
    """The child process and the pipes to it."""

    _of_process: ClassVar[dict[int, Calculator]] = {}

    def __init__(self, cpu_limit_s: int = CPU_LIMIT_S, wall_limit_s: float = WALL_LIMIT_S) -> None:
        self._limits = cpu_limit_s, wall_limit_s
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    @classmethod
    def of_this_process(cls) -> Calculator:
        """The one that all callers share; a forked process gets its own."""
        return cls._of_process.setdefault(os.getpid(), cls())

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The child's reply; empty if it was ended, so that the request has no result.

        Raises RuntimeError if the child ended by itself, which is a fault of ours.
        """
        with self._lock:
            child = self._running_child()
            reply = self._exchange(child, json.dumps(request).encode() + b"\n")
            if reply is None:
                self._bury(child)
            return reply or {}

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            if self._child is not None:
                self._child.kill()
                self._child.wait()
                self._child = None

    def _running_child(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            # -P keeps this folder out of the child's path, where `number` would not be ours.
            command = [sys.executable, "-P", str(PROGRAM), str(self._limits[0])]
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for the driver; the child ends by itself
            )
        return self._child

    def _exchange(self, child: subprocess.Popen[bytes], line: bytes) -> dict[str, Any] | None:
        """One line to the child and one back; None if the child ended or took too long."""
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(line)
        except BrokenPipeError:
            return None
        deadline = time.monotonic() + self._limits[1]
        reply = b""
        while not reply.endswith(b"\n"):
            ready, _, _ = select.select([child.stdout], [], [], max(deadline - time.monotonic(), 0))
            part = os.read(child.stdout.fileno(), 1 << 16) if ready else b""
            if not part:
                return None
            reply += part
        answer: dict[str, Any] = json.loads(reply)
        return answer

    def _bury(self, child: subprocess.Popen[bytes]) -> None:
        # Where it is still running its time is over; where it ended, killing it does nothing.
        child.kill()
        code = child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        self._child = None
        if code > 0:
            raise RuntimeError(f"{PROGRAM.name} ended with code {code}; see its message above")
