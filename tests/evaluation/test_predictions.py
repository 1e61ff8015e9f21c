from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest

from cluster.inference.engine import (
    Completion,
    EngineDiedError,
    GenerationError,
    PromptTooLongError,
    SamplingSettings,
)
from cluster.inference.job import Slots
from evaluation.predictions import (
    PREDICTIONS_SCHEMA,
    EvaluationSettings,
    PredictAnswer,
    Prediction,
)
from evaluation.prompt import answer_messages
from evaluation.question import Question

QUESTION = Question("d/test/1", "d", "test", "in_domain", "What is 2 + 2?", "4", "number")


class Answer:
    """Gives one answer, or fails, and remembers what it was asked."""

    def __init__(self, answer: Completion | Exception) -> None:
        self.asked: list[tuple[list[Mapping[str, str]], SamplingSettings, int, int]] = []
        self._answer = answer

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        self.asked.append((list(messages), sampling, seed, n))
        if isinstance(self._answer, Exception):
            raise self._answer
        return [self._answer]

    def shutdown(self) -> None: ...


def predict(answer: Completion | Exception, **settings: Any) -> dict[str, Any]:
    handler = PredictAnswer(EvaluationSettings(**settings).sampling)
    return asyncio.run(handler(Answer(answer), asked(), Slots(1), None))


def asked() -> dict[str, Any]:
    """A question as a worker reads it from its chunk."""
    further = {"question_fingerprint": QUESTION.fingerprint, "attempt": 0, "previous": None}
    return QUESTION.to_row() | further


def row(text: str, finish_reason: str = "stop") -> dict[str, Any]:
    return predict(Completion(text, [1, 2], finish_reason, 9))


def regrade(row: dict[str, Any]) -> dict[str, Any]:
    """The row as it would be written with the verdict of today's grader."""
    return Prediction.from_row(row).graded().to_row()


def test_prediction_row_fits_the_ledger_with_the_question_and_its_grade() -> None:
    stored = pa.Table.from_pylist([row("It is \\boxed{4}")], schema=PREDICTIONS_SCHEMA)
    read = stored.to_pylist()[0]
    assert {*row("4")} <= {*PREDICTIONS_SCHEMA.names}
    assert Question.from_row(read) == QUESTION
    assert (read["verdict"], read["read_as"], read["predicted"]) == ("correct", "boxed", "4")
    assert (read["num_tokens"], read["num_prompt_tokens"], read["num_failed"]) == (2, 9, 0)
    assert regrade(read) == row("It is \\boxed{4}")


def test_prediction_is_greedy_with_the_templates_arguments() -> None:
    engine = Answer(Completion("4", [1], "stop", 9))
    settings = EvaluationSettings(max_tokens=77, template_args={"enable_thinking": False})
    asyncio.run(PredictAnswer(settings.sampling)(engine, asked(), Slots(1), None))
    [(messages, sampling, seed, n)] = engine.asked
    assert messages == answer_messages(QUESTION)
    assert (sampling.temperature, sampling.max_tokens, seed, n) == (0.0, 77, 0, 1)
    assert sampling.template_args == {"enable_thinking": False}


@pytest.mark.parametrize("error", [GenerationError("refused"), PromptTooLongError("too long")])
def test_prediction_failed_request_is_one_failed_answer(error: GenerationError) -> None:
    failed = predict(error)
    assert (failed["error"], failed["num_failed"]) == (str(error), 1)
    assert failed["verdict"] == "error"
    assert pa.Table.from_pylist([failed], schema=PREDICTIONS_SCHEMA).num_rows == 1


@pytest.mark.parametrize("error", [GenerationError("refused"), EngineDiedError("CUDA error")])
def test_prediction_that_failed_gives_its_slot_back(error: Exception) -> None:
    async def scenario() -> None:
        slots = Slots(1)
        handler = PredictAnswer(EvaluationSettings().sampling)
        for _ in range(3):
            with contextlib.suppress(EngineDiedError):
                await handler(Answer(error), asked(), slots, None)
        async with slots:
            pass

    asyncio.run(scenario())


def test_regrade_of_an_older_graders_row_gives_todays_verdict() -> None:
    old = row("It is \\boxed{4}") | {"verdict": "wrong", "read_as": "last", "predicted": "7"}
    assert regrade(old) == row("It is \\boxed{4}")


def test_regrade_cut_off_answer_stays_cut_off() -> None:
    cut = row("2 and 2", "length")
    assert cut["verdict"] == "truncated"
    assert cut["num_truncated"] == 1
    assert regrade(cut) == cut


def test_regrade_prompt_too_long_has_no_answer_to_grade() -> None:
    failed = predict(PromptTooLongError("too long")) | {"response": None}
    assert regrade(failed) == failed
