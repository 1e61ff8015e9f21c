"""An engine whose every answer follows from the prompt and the seed, for `tests.test_golden`.

It writes whatever a model might: right and wrong answers, boxed, as a phrase or as a last number,
repeated solutions, cut ones, thinking, hints that are cited, verdicts of a judge. It says nothing
of the quality of a model.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.inference.engine import Completion, EngineSettings, GenerationError, SamplingSettings

_SUM = re.compile(r"-?\d+(?: [+*-] -?\d+)+")
_OPTION = re.compile(r"^([A-Z])\) (-?\d+)$", re.MULTILINE)


class GoldenEngine:
    """Answers sums, choices and yes-or-no questions about sums."""

    def __init__(self, model: str, settings: EngineSettings) -> None:
        self._share_right = 60 if Path(model).name.startswith("model-") else 40

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        prompt = messages[-1]["content"]
        return [self._complete(prompt, sampling, seed + offset) for offset in range(n)]

    def _complete(self, prompt: str, sampling: SamplingSettings, seed: int) -> Completion:
        digest = hashlib.sha256(f"{prompt}\x1f{seed}\x1f{sampling.temperature}".encode()).digest()
        if digest[0] < 8:
            raise GenerationError("the request was refused")
        text = self._answer(prompt, digest)
        reason = "length" if digest[1] < 16 else "stop"
        return Completion(text, list(text.encode()), reason, len(prompt), len(prompt) // 2)

    def _answer(self, prompt: str, digest: bytes) -> str:
        if "\nGuideline: " in prompt:
            return f"Look at the signs first, says thought {digest[2] % 4}."
        if "A solution that was handed in:" in prompt:
            return "Every step is sound. \\boxed{yes}" if digest[2] % 4 else "No: \\boxed{no}"
        if "Write a plan" in prompt:
            leak = f" It is {_value_of(prompt)}." if digest[2] % 8 == 0 else ""
            return f"1. Read it. 2. Work it out.{leak}"
        return self._solve(prompt, digest)

    def _solve(self, prompt: str, digest: bytes) -> str:
        is_right = digest[2] % 100 < self._share_right
        answer = _answer_of(prompt, is_right=is_right)
        begun = ("I add them.", "Following the advice, I add.", "The given answer helps.")
        steps = (
            f"{begun[digest[3] % 16 % 3 if digest[3] % 4 == 0 else 0]} {_SUM.findall(prompt)[0]}"
        )
        steps = f"{steps} = {_value_of(prompt)}, by way {digest[4] % 5}."
        thinking = "<think>Hm.</think>" if digest[5] % 8 == 0 else ""
        endings = (f"\\boxed{{{answer}}}", f"The answer is {answer}.", f"So {answer}")
        return f"{thinking}{steps} {endings[digest[6] % 3]}"

    def shutdown(self) -> None:
        """Nothing to end."""


def _answer_of(prompt: str, *, is_right: bool) -> str:
    value = _value_of(prompt)
    if options := dict(_OPTION.findall(prompt)):
        right = next(letter for letter, number in options.items() if int(number) == value)
        return str(right if is_right else next(letter for letter in options if letter != right))
    if "yes or no" in prompt:
        says = int(prompt.partition("equal to ")[2].partition("?")[0]) == value
        return "yes" if says == is_right else "no"
    return str(value if is_right else value + 1)


def _value_of(text: str) -> int:
    return _evaluate(ast.parse(_SUM.findall(text)[0], mode="eval").body)


def _evaluate(node: Any) -> int:
    if not isinstance(node, ast.BinOp):
        return int(ast.literal_eval(node))
    left, right = _evaluate(node.left), _evaluate(node.right)
    if isinstance(node.op, ast.Add):
        return left + right
    return left - right if isinstance(node.op, ast.Sub) else left * right
