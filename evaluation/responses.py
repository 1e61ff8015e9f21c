"""One prompt and n graded responses: the basis of predictions and reasoning paths.

A prediction is the only response to its prompt, and a plain chain of thought is one of many. A
longer chain has a response at each of its stages and is graded by the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.inference.engine import Completion, Engine, GenerationError, SamplingSettings
from evaluation.grader import grade
from evaluation.prompt import Message
from evaluation.question import Question


@dataclass(frozen=True, slots=True)
class Response:
    """A model's answer, or the reason why there is none."""

    seed: int
    completion: Completion | None
    """None if the generation failed."""
    error: str | None = None


async def respond(
    engine: Engine,
    messages: Sequence[Message],
    sampling: SamplingSettings,
    seed: int,
    n: int = 1,
) -> list[Response]:
    """`n` responses to one prompt, with consecutive seeds that start at `seed`.

    A generation that fails (the prompt is too long, the time is up, the engine refuses it) is a
    response with an error. An engine that died raises `EngineDiedError`.
    """
    try:
        completions = await engine.chat(messages, sampling, seed, n)
    except GenerationError as error:
        return [Response(seed + offset, None, str(error)) for offset in range(n)]
    return [Response(seed + offset, each) for offset, each in enumerate(completions)]


def grade_columns(
    text: str, question: Question, *, read_last: bool, finished: bool
) -> dict[str, Any]:
    """The grade of a text as the columns of a row: `predicted`, `verdict` and `read_as`."""
    result = grade(text, question, read_last=read_last, finished=finished)
    return {
        "predicted": result.predicted,
        "verdict": result.verdict.value,
        "read_as": result.read_as.value,
    }
