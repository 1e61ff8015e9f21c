from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.errors import InputError
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
    SAMPLED_SCHEMA,
    EvaluationSettings,
    PredictAnswer,
    Prediction,
    SampleSettings,
)
from evaluation.prompt import answer_messages
from evaluation.question import Question
from evaluation.shots import Shot, read_shots

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


# --- samples and examples ----------------------------------------------------------------------


class Drawn:
    """Answers right when it is asked greedily, and by turns when it draws; may fail to draw."""

    def __init__(self, *, fails: bool = False) -> None:
        self.asked: list[tuple[Sequence[Mapping[str, str]], float, int, int]] = []
        self._fails = fails

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        self.asked.append((list(messages), sampling.temperature, seed, n))
        if n > 1 and self._fails:
            raise GenerationError("the request was refused")
        return [Completion(f"\\boxed{{{4 + place % 2}}}", [1], "stop", 9) for place in range(n)]

    def shutdown(self) -> None: ...


def draw(engine: Drawn, previous: dict[str, Any] | None = None) -> dict[str, Any]:
    wanted = SampleSettings(number=4, temperature=0.7)
    handler = PredictAnswer(EvaluationSettings().sampling, samples=wanted)
    assert (handler.width, handler.generations) == (4, {2048: 5})
    return asyncio.run(handler(engine, asked(), Slots(4), previous))


def test_samples_are_graded_and_stored_with_the_greedy_answer() -> None:
    engine = Drawn()
    stored = pa.Table.from_pylist([draw(engine)], schema=SAMPLED_SCHEMA).to_pylist()[0]
    prediction = Prediction.from_row(stored)
    assert prediction.verdict == "correct"
    verdicts = [sample.verdict for sample in prediction.samples]
    assert verdicts == ["correct", "wrong", "correct", "wrong"]
    assert len({sample.seed for sample in prediction.samples}) == 4
    assert [(temperature, n) for _, temperature, _, n in engine.asked] == [(0.0, 1), (0.7, 4)]
    assert prediction.graded() == prediction


def test_question_that_was_set_aside_is_a_failed_prediction_with_its_reason() -> None:
    handler = PredictAnswer(EvaluationSettings().sampling)
    row = handler.mark_failed(asked(), "its engine died 2 times while answering it")
    prediction = Prediction.from_row(row)
    assert prediction.error == "its engine died 2 times while answering it"
    assert (prediction.response, row["num_failed"]) == (None, 1)


def test_samples_that_failed_are_counted_and_leave_the_greedy_answer() -> None:
    failed = draw(Drawn(fails=True))
    assert (failed["num_failed"], failed["verdict"], failed["error"]) == (4, "correct", None)
    assert [sample["error"] for sample in failed["samples"]] == ["the request was refused"] * 4
    assert draw(Drawn(), previous=failed | {"attempt": 0})["num_failed"] == 0


def test_examples_are_turns_before_the_question_in_its_own_form() -> None:
    shots = (
        Shot(question="What is 1 + 1?", response="It is \\boxed{2}."),
        Shot(question="Is 2 even?", response="\\boxed{yes}", answer_type="boolean"),
    )
    engine = Drawn()
    handler = PredictAnswer(EvaluationSettings().sampling, shots)
    asyncio.run(handler(engine, asked(), Slots(1), None))
    messages = engine.asked[0][0]
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2 + ["user"]
    assert messages[0]["content"].endswith("number in \\boxed{}.")
    assert messages[2]["content"].endswith("yes or no in \\boxed{}.")
    assert messages[4:] == answer_messages(QUESTION)


def test_examples_are_read_from_a_file_and_a_row_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "shots.jsonl"
    file.write_text('{"question": "1 + 1?", "response": "2"}\n')
    assert read_shots(str(file)) == (Shot(question="1 + 1?", response="2"),)
    file.write_text('{"question": "1 + 1?", "response": "2", "answer_type": "sum"}\n')
    with pytest.raises(InputError, match=r"shots.jsonl:1, column 'answer_type' is 'sum'"):
        read_shots(str(file))
