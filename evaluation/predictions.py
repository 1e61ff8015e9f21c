"""The `predictions` step: a model's greedy answers to the held-out questions, graded.

A row, for example::

    {"question_id": "gsm8k/test/00007", "question_fingerprint": "5c...", "attempt": 0,
     "dataset": "gsm8k", "domain": "in_domain", "split": "test", "question": "...",
     "answer": "12", ..., "response": "She has ...",
     "num_tokens": 117, "finish_reason": "stop", "predicted": "12", "verdict": "correct",
     "read_as": "boxed", "grader_version": "1", "error": None}
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from cluster.engine import (
    Completion,
    Engine,
    SamplingSettings,
)
from cluster.jobs import Slots
from cluster.ledger import ledger_schema
from cluster.settings import Settings
from evaluation.grader import GRADER_VERSION, Verdict
from evaluation.prompt import answer_messages
from evaluation.question import QUESTION_SCHEMA, Question
from evaluation.responses import grade_columns, respond

PREDICTIONS_SCHEMA = ledger_schema(
    [
        *QUESTION_SCHEMA,
        pa.field("response", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("predicted", pa.string()),
        pa.field("verdict", pa.string()),
        pa.field("read_as", pa.string()),
        pa.field("grader_version", pa.string()),
    ]
)


class EvaluationSettings(Settings):
    """How a model is examined: zero-shot and greedy, as in the paper."""

    max_tokens: Annotated[int, Field(gt=0)] = 2048
    """Most tokens of one answer, a thinking part included."""
    template_args: dict[str, Any] = {}
    """Passed to the chat template; training prompts are made with the same."""

    @property
    def sampling(self) -> SamplingSettings:
        return SamplingSettings(
            temperature=0.0, max_tokens=self.max_tokens, template_args=self.template_args
        )


@dataclass(frozen=True)
class PredictAnswer:
    """The pool's handler for the `predictions` step."""

    settings: EvaluationSettings

    @property
    def width(self) -> int:
        return 1

    async def __call__(
        self,
        engine: Engine,
        question: dict[str, Any],
        slots: Slots,
        previous: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """The row of the one answer."""
        asked = Question.from_row(question)
        async with slots:
            [response] = await respond(
                engine, answer_messages(asked), self.settings.sampling, seed=0
            )
        completion = response.completion
        if completion is None:
            return self.set_aside(question, response.error or "")
        row = self._row(asked) | _response_columns(completion)
        return await asyncio.to_thread(regrade, row)

    def set_aside(self, question: dict[str, Any], reason: str) -> dict[str, Any]:
        """The row of a question without an answer, and why."""
        failed = {"error": reason, "num_failed": 1, "verdict": Verdict.ERROR.value}
        return self._row(Question.from_row(question)) | failed

    def _row(self, question: Question) -> dict[str, Any]:
        return question.to_row() | {
            "question_fingerprint": question.fingerprint,
            "grader_version": GRADER_VERSION,
            "error": None,
            "num_failed": 0,
        }


def _response_columns(completion: Completion) -> dict[str, Any]:
    return {
        "response": completion.text,
        "finish_reason": completion.finish_reason,
        "num_truncated": int(completion.finish_reason != "stop"),
        "num_tokens": len(completion.token_ids),
        "num_prompt_tokens": completion.num_prompt_tokens,
    }


def regrade(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the verdict of today's grader; a written row itself never changes.

    So a grader that changed judges predictions as it judges training paths. The last number or
    letter counts too, and `read_as` says so, so that both the strict and the tolerant accuracy can
    be taken from one row.
    """
    if row["error"]:
        return row
    finished = row["finish_reason"] == "stop"
    question = Question.from_row(row)
    return row | grade_columns(row["response"], question, read_last=True, finished=finished)
