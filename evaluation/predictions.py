"""The `predictions` step: a model's greedy answers to the held-out questions, graded.

A row, for example::

    {"question_id": "gsm8k/test/00007", "question_fingerprint": "5c...", "attempt": 0,
     "dataset": "gsm8k", "domain": "in_domain", "split": "test", "question": "...",
     "answer": "12", ..., "response": "She has ...",
     "num_tokens": 117, "finish_reason": "stop", "predicted": "12", "verdict": "correct",
     "read_as": "boxed", "grader_version": "1", "error": None}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from cluster.inference.engine import SamplingSettings
from cluster.settings import Settings
from cluster.store.ledger import ledger_schema
from evaluation.grader import GRADER_VERSION, Verdict
from evaluation.prompt import Message, answer_messages
from evaluation.question import QUESTION_SCHEMA, Question
from evaluation.responses import PromptHandler, Response, grade_columns

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

    def graded(self) -> Prediction:
        """The prediction with the verdict of the current grader; a stored row itself never changes.

        A changed grader thus judges predictions and training paths in the same way. The last number
        or letter counts too, and `read_as` says so, so that one grade gives both the strict and the
        tolerant accuracy.
        """
        if self.response is None or self.error:
            return replace(self, verdict=Verdict.ERROR.value)
        finished = self.finish_reason == "stop"
        columns = grade_columns(self.response, self.question, read_last=True, finished=finished)
        return replace(self, **columns)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Prediction:
        """A stored prediction; columns that were added after it was stored may be missing."""
        own = (field.name for field in fields(cls) if field.name != "question")
        return cls(Question.from_row(row), **{name: row.get(name) for name in own})

    def to_row(self) -> dict[str, Any]:
        """A row of `PREDICTIONS_SCHEMA`, without the number of the attempt."""
        is_cut = None if self.finish_reason is None else int(self.finish_reason != "stop")
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        del own["question"]
        return (
            self.question.to_row()
            | own
            | {
                "question_fingerprint": self.question.fingerprint,
                "grader_version": GRADER_VERSION,
                "num_failed": int(bool(self.error)),
                "num_truncated": is_cut,
            }
        )


class PredictAnswer(PromptHandler):
    """The pool's handler for the `predictions` step."""

    def messages(self, question: Question) -> list[Message]:
        """The prompt of every evaluation."""
        return answer_messages(question)

    def row(self, question: Question, answers: Sequence[Response]) -> dict[str, Any]:
        """The row of the one answer."""
        [response] = answers
        completion = response.completion
        if completion is None:
            return self.failed_row(question, response.error or "")
        turn = completion.own_turn
        prediction = Prediction(
            question,
            response=completion.text if turn.thinking is None else turn.answer or "",
            thinking=turn.thinking,
            finish_reason=completion.end_reason,
            num_tokens=completion.num_tokens,
            num_prompt_tokens=completion.num_prompt_tokens,
        )
        return prediction.graded().to_row()

    def failed_row(self, question: Question, reason: str) -> dict[str, Any]:
        """The row of a question without an answer, and why."""
        return Prediction(question, error=reason).graded().to_row()
