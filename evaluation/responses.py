"""One prompt and n graded responses: the basis of predictions and reasoning paths.

A prediction is the only response to a prompt, a plain chain of thought one of many; a longer chain
asks for a response at each of its stages and is graded by the last one.

What the pool does with a question is a `QuestionHandler`; one that asks a single prompt is a
`PromptHandler`, which needs three methods::

    class AskTwice(PromptHandler):
        n = 2

        def messages(self, question): ...
        def row(self, question, answers): ...
        def failed_row(self, question, reason): ...
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from cluster.inference.engine import Completion, Engine, GenerationError, SamplingSettings
from cluster.inference.job import Slots
from evaluation.grader import grade
from evaluation.prompt import Message
from evaluation.question import Question
from evaluation.readings import Reading

Answer = TypeVar("Answer")
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Response:
    """A model's answer, or the reason why there is none."""

    seed: int
    completion: Completion | None
    """None if the generation failed."""
    error: str | None = None
    readings: Mapping[str, Reading] = field(default_factory=dict)
    """What else was read from it, by name; usually nothing."""


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


class QuestionHandler(ABC, Generic[Answer]):
    """The pool's handler of questions (`cluster.inference.job.Handler`), whatever an answer is."""

    @property
    @abstractmethod
    def width(self) -> int:
        """How many generations of one question run at once."""

    @property
    @abstractmethod
    def generations(self) -> Mapping[int | None, int]:
        """How many generations one question takes, by their token limits; for the time left."""

    @abstractmethod
    async def answers(
        self, engine: Engine, question: Question, slots: Slots, previous: Row | None
    ) -> Sequence[Answer]:
        """Ask the engine; `previous` is the row of the attempt before."""

    @abstractmethod
    def row(self, question: Question, answers: Sequence[Answer]) -> Row:
        """The row of a question with its graded answers."""

    @abstractmethod
    def failed_row(self, question: Question, reason: str) -> Row:
        """The row of a question without an answer, and why."""

    async def __call__(
        self, engine: Engine, question: Row, slots: Slots, previous: Row | None
    ) -> Row:
        """The question's row."""
        asked = Question.from_row(question)
        answers = await self.answers(engine, asked, slots, previous)
        # A grade takes processor time; the event loop has an engine to feed.
        return await asyncio.to_thread(self.row, asked, answers)

    def mark_failed(self, question: Row, reason: str) -> Row:
        """The row of a question that is given up, and why."""
        return self.failed_row(Question.from_row(question), reason)


@dataclass(frozen=True)
class PromptHandler(QuestionHandler[Response]):
    """Asks one prompt for `n` responses, which share a request."""

    sampling: SamplingSettings
    n: ClassVar[int] = 1

    @property
    def width(self) -> int:
        return self.n

    @property
    def generations(self) -> Mapping[int | None, int]:
        return {self.sampling.max_tokens: self.n}

    @abstractmethod
    def messages(self, question: Question) -> list[Message]:
        """The prompt."""

    def seed_of(self, question: Question, attempt: int) -> int:
        """The seed of the first response; attempts are counted from 0."""
        return 0

    async def answers(
        self, engine: Engine, question: Question, slots: Slots, previous: Row | None
    ) -> list[Response]:
        seed = self.seed_of(question, previous["attempt"] + 1 if previous else 0)
        async with slots.take(self.n):
            return await respond(engine, self.messages(question), self.sampling, seed, self.n)
