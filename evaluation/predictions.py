"""The `predictions` step: a model's answers to the held-out questions, graded.

A row, for example::

    {"question_id": "gsm8k/test/00007", "question_fingerprint": "5c...", "attempt": 0,
     "dataset": "gsm8k", "domain": "in_domain", "split": "test", "question": "...",
     "answer": "12", ..., "response": "She has ...",
     "num_tokens": 117, "finish_reason": "stop", "predicted": "12", "verdict": "correct",
     "read_as": "boxed", "grader_version": "1", "error": None}

The answer is greedy. Where samples are asked for, too, the row also has `samples`, a list of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from cluster.inference.engine import Completion, Engine, SamplingSettings
from cluster.inference.job import Slots
from cluster.settings import Settings
from cluster.store.ledger import ledger_schema
from evaluation.grader import GRADER_VERSION, Verdict
from evaluation.prompt import Message
from evaluation.question import QUESTION_SCHEMA, Question
from evaluation.responses import PromptHandler, Response, Row, grade_columns, respond
from evaluation.shots import Shot, few_shot_messages

PREDICTIONS_SCHEMA = ledger_schema(
    [
        *QUESTION_SCHEMA,
        pa.field("response", pa.string()),
        pa.field("thinking", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("predicted", pa.string()),
        pa.field("verdict", pa.string()),
        pa.field("read_as", pa.string()),
        pa.field("grader_version", pa.string()),
    ]
)
_SAMPLE = pa.struct(
    [
        pa.field("seed", pa.int64()),
        pa.field("response", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("num_tokens", pa.int64()),
        pa.field("predicted", pa.string()),
        pa.field("verdict", pa.string()),
        pa.field("read_as", pa.string()),
        pa.field("error", pa.string()),
    ]
)
SAMPLED_SCHEMA = PREDICTIONS_SCHEMA.append(pa.field("samples", pa.list_(_SAMPLE)))
"""Of predictions that also have samples."""
FAILED = "the generation failed"


class EvaluationSettings(Settings):
    """How a model is evaluated: zero-shot and greedy, as in the paper."""

    max_tokens: Annotated[int, Field(gt=0)] = 2048
    """Token limit of one answer, including its thinking."""
    template_args: dict[str, Any] = {}
    """Arguments of the chat template; training prompts use the same."""

    @property
    def sampling(self) -> SamplingSettings:
        return SamplingSettings(
            temperature=0.0, max_tokens=self.max_tokens, template_args=self.template_args
        )


class SampleSettings(Settings):
    """Samples of each question besides the greedy answer, for pass@k and maj@k."""

    number: Annotated[int, Field(gt=0)]
    """How many."""
    temperature: Annotated[float, Field(gt=0)] = 0.8
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One of several answers that were drawn for a question, and its grade.

    The fields that a `Prediction` has too mean the same here."""

    seed: int
    response: str | None = None
    finish_reason: str | None = None
    num_tokens: int | None = None
    predicted: str | None = None
    verdict: str | None = None
    read_as: str | None = None
    error: str | None = None

    def graded(self, question: Question) -> Sample:
        """The sample with the verdict of today's grader."""
        return replace(self, **_grade_of(self.response, self.finish_reason, self.error, question))


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer to one question, and its grade."""

    question: Question
    response: str | None = None
    """Without the thinking, if there was any; None if there is no response and `error` says why."""
    thinking: str | None = None
    finish_reason: str | None = None
    num_tokens: int | None = None
    num_prompt_tokens: int | None = None
    predicted: str | None = None
    verdict: str | None = None
    """None until the prediction is graded."""
    read_as: str | None = None
    error: str | None = None
    samples: tuple[Sample, ...] = ()

    def graded(self) -> Prediction:
        """The prediction with the verdict of the current grader; a stored row itself never changes.

        A changed grader thus judges predictions and training paths in the same way. The last number
        or letter counts too, and `read_as` says so, so that one grade gives both the strict and the
        tolerant accuracy.
        """
        samples = tuple(sample.graded(self.question) for sample in self.samples)
        columns = _grade_of(self.response, self.finish_reason, self.error, self.question)
        return replace(self, samples=samples, **columns)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Prediction:
        """A stored prediction; columns that were added after it was stored may be missing."""
        own: dict[str, Any] = {field.name: row.get(field.name) for field in fields(cls)}
        samples = tuple(Sample(**sample) for sample in own["samples"] or ())
        return cls(**own | {"question": Question.from_row(row), "samples": samples})

    def to_row(self) -> dict[str, Any]:
        """A row of `PREDICTIONS_SCHEMA`, or with samples one of `SAMPLED_SCHEMA`, without the
        number of its attempt."""
        is_cut = None if self.finish_reason is None else int(self.finish_reason != "stop")
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        del own["question"], own["samples"]
        if self.samples:
            own["samples"] = [asdict(sample) for sample in self.samples]
        return (
            self.question.to_row()
            | own
            | {
                "question_fingerprint": self.question.fingerprint,
                "grader_version": GRADER_VERSION,
                "num_failed": sum(map(bool, [self.error, *(s.error for s in self.samples)])),
                "num_truncated": is_cut,
            }
        )


def _grade_of(
    response: str | None, finish_reason: str | None, error: str | None, question: Question
) -> dict[str, Any]:
    """The columns of a grade; without a response the verdict alone."""
    if response is None or error:
        return {"verdict": Verdict.ERROR.value}
    return grade_columns(response, question, read_last=True, finished=finish_reason == "stop")


@dataclass(frozen=True)
class PredictAnswer(PromptHandler):
    """The pool's handler for the `predictions` step."""

    shots: tuple[Shot, ...] = ()
    """Shown before the question."""
    samples: SampleSettings | None = None
    """Drawn in addition to the greedy answer."""

    @property
    def width(self) -> int:
        return self.samples.number if self.samples else self.n

    @property
    def generations(self) -> Mapping[int | None, int]:
        return {self.sampling.max_tokens: self.n + (self.samples.number if self.samples else 0)}

    def messages(self, question: Question) -> list[Message]:
        """The prompt of every evaluation, after the examples if there are any."""
        return few_shot_messages(question, self.shots)

    async def answers(
        self, engine: Engine, question: Question, slots: Slots, previous: Row | None
    ) -> list[Response]:
        """The greedy answer, then the samples."""
        greedy = await super().answers(engine, question, slots, previous)
        if self.samples is None:
            return greedy
        number, seed = self.samples.number, first_seed(question.question_id)
        drawn = {"temperature": self.samples.temperature, "top_p": self.samples.top_p}
        sampling = self.sampling.model_copy(update=drawn)
        async with slots.take(number):
            sampled = await respond(engine, self.messages(question), sampling, seed, number)
        return [*greedy, *sampled]

    def row(self, question: Question, answers: Sequence[Response]) -> Row:
        """The row of the greedy answer, with the samples."""
        greedy, *sampled = answers
        prediction = _prediction(question, greedy)
        return replace(prediction, samples=tuple(map(_sample, sampled))).graded().to_row()

    def failed_row(self, question: Question, reason: str) -> Row:
        """The row of a question without an answer, and why."""
        return Prediction(question, error=reason).graded().to_row()


def first_seed(question_id: str) -> int:
    """The seed of a question's first sample, so that no two questions share their seeds."""
    return int.from_bytes(hashlib.sha256(question_id.encode()).digest()[:6], "big")


def _prediction(asked: Question, response: Response) -> Prediction:
    completion = response.completion
    if completion is None:
        return Prediction(asked, error=response.error or FAILED)
    return Prediction(
        asked,
        response=_visible(completion),
        thinking=completion.own_turn.thinking,
        finish_reason=completion.end_reason,
        num_tokens=completion.num_tokens,
        num_prompt_tokens=completion.num_prompt_tokens,
    )


def _sample(response: Response) -> Sample:
    completion = response.completion
    if completion is None:
        return Sample(response.seed, error=response.error or FAILED)
    return Sample(
        response.seed,
        response=_visible(completion),
        finish_reason=completion.end_reason,
        num_tokens=completion.num_tokens,
    )


def _visible(completion: Completion) -> str:
    """The answer without the thinking."""
    turn = completion.own_turn
    return completion.text if turn.thinking is None else turn.answer or ""
