"""A handler in a few lines: one prompt, several responses, each with its grade."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.inference.engine import Completion, GenerationError, SamplingSettings
from cluster.inference.job import Slots
from evaluation.prompt import Message, answer_messages
from evaluation.question import Question
from evaluation.responses import PromptHandler, Response, grade_columns

QUESTION = Question("d/test/1", "d", "test", "in_domain", "What is 2 + 2?", "4", "number")
SAMPLING = SamplingSettings(temperature=1.0, max_tokens=50)


@dataclass(frozen=True)
class AskThrice(PromptHandler):
    n = 3

    def messages(self, question: Question) -> list[Message]:
        return answer_messages(question)

    def seed_of(self, question: Question, attempt: int) -> int:
        return 100 * attempt

    def row(self, question: Question, answers: Sequence[Response]) -> dict[str, Any]:
        if answers[0].completion is None:
            return self.failed_row(question, answers[0].error or "")
        texts = [each.completion.text for each in answers if each.completion]
        grades = [grade_columns(t, question, read_last=True, finished=True) for t in texts]
        seeds = [each.seed for each in answers]
        return {"seeds": seeds, "verdicts": [grade["verdict"] for grade in grades]}

    def failed_row(self, question: Question, reason: str) -> dict[str, Any]:
        return {"question_id": question.question_id, "error": reason}


class Engine:
    """Gives the texts, or fails."""

    def __init__(self, *texts: str) -> None:
        self._texts = texts

    async def chat(self, *_: Any) -> list[Completion]:
        if not self._texts:
            raise GenerationError("refused")
        return [Completion(text, [1], "stop", 1, 0) for text in self._texts]

    def shutdown(self) -> None: ...


def ask(engine: Engine, previous: dict[str, Any] | None = None) -> dict[str, Any]:
    return asyncio.run(AskThrice(SAMPLING)(engine, QUESTION.to_row(), Slots(3), previous))


def test_handler_grades_each_response_and_a_retry_has_other_seeds() -> None:
    engine = Engine("The answer is 4.", "The answer is 5.", "\\boxed{4}")
    assert ask(engine) == {"seeds": [0, 1, 2], "verdicts": ["correct", "wrong", "correct"]}
    assert ask(engine, {"attempt": 1})["seeds"] == [200, 201, 202]


def test_handler_says_how_many_generations_a_question_takes() -> None:
    assert (AskThrice(SAMPLING).width, AskThrice(SAMPLING).generations) == (3, {50: 3})


def test_handler_makes_the_same_row_of_a_refused_and_of_a_given_up_question() -> None:
    failed = {"question_id": "d/test/1", "error": "refused"}
    assert ask(Engine()) == failed
    assert AskThrice(SAMPLING).mark_failed(QUESTION.to_row(), "refused") == failed
