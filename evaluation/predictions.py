"""The `predictions` step: a model's answers to the held-out questions, graded.

A row, for example::

    {"question_id": "gsm8k/test/00007", "question_fingerprint": "5c...", "attempt": 0,
     "dataset": "gsm8k", "domain": "in_domain", "split": "test", "question": "...",
     "answer": "12", ..., "response": "She has ...",
     "num_tokens": 117, "finish_reason": "stop", "predicted": "12", "verdict": "correct",
     "read_as": "boxed", "grader_version": "1", "error": None}

The answer is greedy. Where samples are asked for, too, the row also has `samples`, a list of them.
With further readings (`evaluation.readings`) it has `response_ids` and a column for each of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from cluster.inference.engine import Completion, Engine, SamplingSettings
from cluster.inference.job import Slots
from cluster.settings import Neutral, Settings
from cluster.store.ledger import ledger_schema
from evaluation.grader import GRADER_VERSION, Verdict
from evaluation.prompt import Message, PromptName
from evaluation.question import QUESTION_SCHEMA, Question
from evaluation.readings import (
    CUES,
    MAX_TOKENS,
    READING_FIELDS,
    Reading,
    ask_readings,
    no_readings,
)
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
_SAMPLES = pa.field("samples", pa.list_(_SAMPLE))
SAMPLED_SCHEMA = PREDICTIONS_SCHEMA.append(_SAMPLES)
"""Of predictions that also have samples."""
FAILED = "the generation failed"


def predictions_schema(*, samples: bool, readings: bool) -> pa.Schema:
    """The schema of predictions, with the columns that are asked for."""
    further = [*([_SAMPLES] if samples else []), *(READING_FIELDS if readings else ())]
    return pa.schema([*PREDICTIONS_SCHEMA, *further])


class EvaluationSettings(Settings):
    """How a model is evaluated: zero-shot and greedy, as in the paper."""

    max_tokens: Annotated[int, Field(gt=0)] = 2048
    """Token limit of one answer, including its thinking."""
    template_args: dict[str, Any] = {}
    """Arguments of the chat template; training prompts use the same."""
    prompt: Annotated[PromptName, Neutral("standard")] = "standard"
    """How the question is asked: `standard` as in training, `answer_only` for the answer without
    reasoning, `bare` without any request. Training always uses the standard prompt."""
    readings: Annotated[bool, Neutral(value=False)] = False
    """Whether each answer is also continued behind two fixed cues, and one of them without the
    answer (`evaluation.readings`): that tells what a model knows from how it writes it. Needs an
    engine that runs the model."""

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
    response_ids: tuple[int, ...] = ()
    """The ids of the whole turn, thinking and end token included; only with readings."""
    readings: Mapping[str, Reading] = field(default_factory=dict)
    """By name (`evaluation.readings.CUES`); all of them or none."""

    def graded(self) -> Prediction:
        """The prediction with the verdict of the current grader; a stored row itself never changes.

        A changed grader thus judges predictions and training paths in the same way. The last number
        or letter counts too, and `read_as` says so, so that one grade gives both the strict and the
        tolerant accuracy.
        """
        samples = tuple(sample.graded(self.question) for sample in self.samples)
        readings = {name: each.graded(self.question) for name, each in self.readings.items()}
        columns = _grade_of(self.response, self.finish_reason, self.error, self.question)
        return replace(self, samples=samples, readings=readings, **columns)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Prediction:
        """A stored prediction; columns that were added after it was stored may be missing."""
        own: dict[str, Any] = {field.name: row.get(field.name) for field in fields(cls)}
        parsed = {
            "question": Question.from_row(row),
            "samples": tuple(Sample(**sample) for sample in own["samples"] or ()),
            "response_ids": tuple(own["response_ids"] or ()),
            "readings": {name: Reading.from_row(row[name]) for name in CUES if row.get(name)},
        }
        return cls(**own | parsed)

    def to_row(self) -> dict[str, Any]:
        """A row of `predictions_schema`, without the number of its attempt; its samples and its
        readings are there if it has them."""
        is_cut = None if self.finish_reason is None else int(self.finish_reason != "stop")
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        del own["question"], own["samples"], own["response_ids"], own["readings"]
        if self.samples:
            own["samples"] = [asdict(sample) for sample in self.samples]
        if self.readings:
            own["response_ids"] = list(self.response_ids)
            own |= {name: reading.to_row() for name, reading in self.readings.items()}
        errors = [self.error, *(sample.error for sample in self.samples)]
        errors += [reading.error for reading in self.readings.values()]
        return (
            self.question.to_row()
            | own
            | {
                "question_fingerprint": self.question.fingerprint,
                "grader_version": GRADER_VERSION,
                "num_failed": sum(map(bool, errors)),
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
    prompt: PromptName = "standard"
    """How the question is asked."""
    readings: bool = False
    """Whether the greedy answer is read in further ways."""

    @property
    def width(self) -> int:
        return max(self.n, self.samples.number if self.samples else 0, self._num_readings)

    @property
    def generations(self) -> Mapping[int | None, int]:
        counts = {self.sampling.max_tokens: self.n + (self.samples.number if self.samples else 0)}
        if self.readings:
            counts[MAX_TOKENS] = counts.get(MAX_TOKENS, 0) + self._num_readings
        return counts

    @property
    def _num_readings(self) -> int:
        return len(CUES) if self.readings else 0

    def messages(self, question: Question) -> list[Message]:
        """The prompt, after the examples if there are any."""
        return few_shot_messages(question, self.shots, self.prompt)

    async def answers(
        self, engine: Engine, question: Question, slots: Slots, previous: Row | None
    ) -> list[Response]:
        """The greedy answer with its readings, then the samples."""
        greedy = await super().answers(engine, question, slots, previous)
        if self.readings:
            greedy = [await self._read(engine, question, slots, each) for each in greedy]
        if self.samples is None:
            return greedy
        number, seed = self.samples.number, first_seed(question.question_id)
        drawn = {"temperature": self.samples.temperature, "top_p": self.samples.top_p}
        sampling = self.sampling.model_copy(update=drawn)
        async with slots.take(number):
            sampled = await respond(engine, self.messages(question), sampling, seed, number)
        return [*greedy, *sampled]

    async def _read(
        self, engine: Engine, question: Question, slots: Slots, answer: Response
    ) -> Response:
        """The answer with its readings, which are asked for while its prefix is cached."""
        if answer.completion is None:
            return replace(answer, readings=no_readings(answer.error or FAILED))
        messages = self.messages(question)
        async with slots.take(self._num_readings):
            readings = await ask_readings(
                engine, messages, question, answer.completion, self.sampling
            )
        return replace(answer, readings=readings)

    def row(self, question: Question, answers: Sequence[Response]) -> Row:
        """The row of the greedy answer, with the samples."""
        greedy, *sampled = answers
        prediction = _prediction(question, greedy)
        return replace(prediction, samples=tuple(map(_sample, sampled))).graded().to_row()

    def failed_row(self, question: Question, reason: str) -> Row:
        """The row of a question without an answer, and why."""
        readings = no_readings(reason) if self.readings else {}
        return Prediction(question, error=reason, readings=readings).graded().to_row()


def first_seed(question_id: str) -> int:
    """The seed of a question's first sample, so that no two questions share their seeds."""
    return int.from_bytes(hashlib.sha256(question_id.encode()).digest()[:6], "big")


def _prediction(asked: Question, response: Response) -> Prediction:
    completion = response.completion
    if completion is None:
        return Prediction(asked, error=response.error or FAILED, readings=response.readings)
    return Prediction(
        asked,
        response=_visible(completion),
        thinking=completion.own_turn.thinking,
        finish_reason=completion.end_reason,
        num_tokens=completion.num_tokens,
        num_prompt_tokens=completion.num_prompt_tokens,
        response_ids=tuple(completion.token_ids),
        readings=response.readings,
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
