"""The `predictions` step: a model's greedy answers to the held-out questions, graded.

A row, for example::

    {"question_id": "gsm8k/test/00007", "question_fingerprint": "5c...", "attempt": 0,
     "dataset": "gsm8k", "domain": "in_domain", "split": "test", "response": "She has ...",
     "num_tokens": 117, "finish_reason": "stop", "predicted": "12", "verdict": "correct",
     "read_as": "boxed", "grader_version": "1", "error": None}
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from cluster.engine import Completion, Engine, EngineSettings, PromptTooLongError, SamplingSettings
from cluster.ledger import LEDGER_FIELDS
from cluster.settings import Settings, content_of
from evaluation.grader import GRADER_VERSION, Verdict, grade
from evaluation.prompt import answer_messages
from evaluation.question import Question

PREDICTIONS_SCHEMA = pa.schema(
    [
        *LEDGER_FIELDS,
        ("dataset", pa.string()),
        ("domain", pa.string()),
        ("split", pa.string()),
        ("prompt_token_count", pa.int32()),
        ("response", pa.string()),
        ("num_tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("predicted", pa.string()),
        ("verdict", pa.string()),
        ("read_as", pa.string()),
        ("grader_version", pa.string()),
        ("error", pa.string()),
    ]
)


class EvaluationSettings(Settings):
    """How a model is examined: zero-shot and greedy, as in the paper."""

    max_tokens: Annotated[int, Field(gt=0)] = 2048
    template_args: dict[str, Any] = {}
    """Passed to the chat template; training prompts are made with the same."""

    @property
    def sampling(self) -> SamplingSettings:
        return SamplingSettings(
            temperature=0.0, max_tokens=self.max_tokens, template_args=self.template_args
        )


def predictions_content(
    settings: EvaluationSettings, engine: EngineSettings, model_identity: str
) -> dict[str, Any]:
    """All that decides a model's answer to a question."""
    return {
        "model": model_identity,
        "engine": content_of(engine),
        "evaluation": content_of(settings),
    }


@dataclass(frozen=True)
class PredictAnswer:
    """The pool's handler for the `predictions` step."""

    settings: EvaluationSettings

    async def __call__(
        self, engine: Engine, question: dict[str, Any], slots: asyncio.Semaphore
    ) -> dict[str, Any]:
        asked = Question.from_row(question)
        completion, error = None, None
        async with slots:
            try:
                messages = answer_messages(asked)
                completion = await engine.chat(messages, self.settings.sampling, seed=0)
            except PromptTooLongError as too_long:
                error = str(too_long)
        graded = await asyncio.to_thread(grade_response, completion, asked)
        return {
            "question_id": asked.question_id,
            "question_fingerprint": asked.fingerprint,
            "attempt": 0,
            "dataset": asked.dataset,
            "domain": asked.domain,
            "split": asked.split,
            "grader_version": GRADER_VERSION,
            "error": error,
            **graded,
        }

    def accepted(self, row: dict[str, Any]) -> int:
        """Predictions are examined, not accepted: the progress line counts training paths."""
        return 0


def grade_response(completion: Completion | None, question: Question) -> Mapping[str, Any]:
    """The response with its grade; the last number or letter counts too, and `read_as` says so,
    so that both the strict and the tolerant accuracy can be taken from one row."""
    if completion is None:
        return {"verdict": Verdict.ERROR.value}
    return {
        "prompt_token_count": completion.num_prompt_tokens,
        "response": completion.text,
        "num_tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
        **_grade_columns(completion.text, completion.finish_reason, question),
    }


def regrade(row: dict[str, Any], question: Question) -> dict[str, Any]:
    """A stored row with the verdict of today's grader; a written row itself never changes.

    So a grader that changed judges predictions as it judges training paths.
    """
    if row["error"]:
        return row
    return row | _grade_columns(row["response"], row["finish_reason"], question)


def _grade_columns(text: str, finish_reason: str, question: Question) -> dict[str, Any]:
    result = grade(text, question, read_last=True, finished=finish_reason == "stop")
    return {
        "predicted": result.predicted,
        "verdict": result.verdict.value,
        "read_as": result.read_as.value,
    }
