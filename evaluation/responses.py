"""One prompt, n responses, each with its grade: what predictions and reasoning paths are made of.

A prediction is the only response to a prompt, a plain chain of thought one of many; a longer chain
asks for a response at each of its stages and is graded by the last one.
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
    """What a model answered, or the reason why it did not."""

    seed: int
    completion: Completion | None
    """None where the generation failed."""
    error: str | None = None


async def respond(
    engine: Engine,
    messages: Sequence[Message],
    sampling: SamplingSettings,
    seed: int,
    n: int = 1,
) -> list[Response]:
    """`n` responses to one prompt, with the seeds that follow on `seed`.

    A generation that fails (its prompt is too long, its time is up, the engine refuses it) is a
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
