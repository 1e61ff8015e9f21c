"""An engine that answers from a table: for tests of orchestration, never of quality.

`engine.options` sets what it does: `latency_s`, `crash_file` (the first worker that sees the file
removes it and dies), and `wrong_share` in percent of seeds.
"""

from __future__ import annotations

import ast
import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.engine import Completion, EngineSettings, SamplingSettings

_SUM = re.compile(r"-?\d+(?: [+*-] -?\d+)+")


def solve(text: str) -> str:
    """The value of the first sum or product of integers in a text, or 0."""
    found = _SUM.search(text)
    return str(_value(ast.parse(found.group(), mode="eval").body)) if found else "0"


def _value(node: ast.expr) -> int:
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Add):
            return left + right
        return left - right if isinstance(node.op, ast.Sub) else left * right
    return int(ast.literal_eval(node))


class ScriptedEngine:
    """Adapts, structures and solves sums; right or wrong by its seed."""

    def __init__(self, model: str, settings: EngineSettings) -> None:
        self._latency_s = float(settings.options.get("latency_s", 0.0))
        self._wrong_share = int(settings.options.get("wrong_share", 50))
        self._crash_file = settings.options.get("crash_file")
        self._num_answers = 0

    async def chat(
        self, messages: Sequence[Mapping[str, str]], sampling: SamplingSettings, seed: int
    ) -> Completion:
        await asyncio.sleep(self._latency_s)
        self._num_answers += 1
        self._maybe_crash()
        text = self._answer(messages[-1]["content"], seed)
        ids = list(text.encode())
        return Completion(text, ids, "stop", num_prompt_tokens=len(messages[-1]["content"]))

    def _answer(self, prompt: str, seed: int) -> str:
        if "\nGuideline: " in prompt:
            return "Look at the signs first."
        if "\nAdvice: " in prompt:
            return "1. Read it. 2. Work it out."
        wrong = seed % 100 < self._wrong_share
        return f"I work it out: {solve(prompt)}. \\boxed{{{'-1' if wrong else solve(prompt)}}}"

    def _maybe_crash(self) -> None:
        if self._crash_file and self._num_answers > 40:
            try:
                Path(self._crash_file).unlink()
            except FileNotFoundError:
                return
            os._exit(1)

    def shutdown(self) -> None:
        """Nothing to end."""
