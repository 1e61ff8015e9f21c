"""The `paths` step: all reasoning paths of every training question, each with its verdict.

What a worker of the pool does with one question is `SynthesizePaths`; the row it returns::

    {"question_id": "gsm8k/train/00042", "question_fingerprint": "9f...", "attempt": 0,
     "dataset": "gsm8k", "num_paths": 25, "num_accepted": 11, "num_failed": 0, ...,
     "question": "A shop sold ...", "answer": "72", ...,
     "round": 0, "strategy": "regenesis", "paths": [{...}, ...]}
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cluster.engine import Engine
from cluster.jobs import Slots
from cluster.ledger import ledger_schema
from evaluation.grader import GRADER_VERSION, Verdict, grade
from evaluation.question import (
    QUESTION_SCHEMA,
    AnswerType,
    Question,
    own_letter,
    shown_letter,
)
from pipelines.chain import PATH_TYPE, Recipe, run_chains
from pipelines.judge import judge_paths

PATHS_SCHEMA = ledger_schema(
    [
        *QUESTION_SCHEMA,
        pa.field("round", pa.int32()),
        pa.field("strategy", pa.string()),
        pa.field("grader_version", pa.string()),
        pa.field("paths", pa.list_(PATH_TYPE)),
    ]
)


@dataclass(frozen=True)
class SynthesizePaths:
    """The pool's handler for the `paths` step."""

    recipe: Recipe
    read_last: tuple[AnswerType, ...]
    """Answer types whose last number or letter counts when nothing clearer was written."""

    @property
    def width(self) -> int:
        """A question's chains run side by side, one generation each."""
        settings = self.recipe.settings
        drawn = self.recipe.guidelines[: settings.guidelines_per_question]
        return settings.samples * (len(drawn) if settings.follows_guidelines else 1)

    async def __call__(
        self,
        engine: Engine,
        question: dict[str, Any],
        slots: Slots,
        previous: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """The question's row, with all its paths."""
        asked = Question.from_row(question)
        graded = await self._pass(0, engine, asked, slots, previous)
        if self._needs_hint(graded, previous):
            graded += await self._pass(1, engine, asked, slots, previous)
        return self._row(asked, graded) | count_paths(graded)

    async def _pass(
        self,
        hint_pass: int,
        engine: Engine,
        asked: Question,
        slots: Slots,
        previous: dict[str, Any] | None,
    ) -> list[dict[str, Any]]:
        """The graded paths without the right answer shown, or with it."""
        paths = await run_chains(engine, self.recipe, asked, slots, previous, hint_pass)
        # A grade takes processor time; the event loop has an engine to feed.
        graded = await asyncio.to_thread(grade_paths, paths, asked, self.read_last)
        return await judge_paths(engine, self.recipe, asked, graded, slots)

    def _needs_hint(self, graded: list[dict[str, Any]], previous: dict[str, Any] | None) -> bool:
        """Whether no path was right; what an earlier attempt made with a hint is kept, too."""
        if not self.recipe.settings.hint_stages:
            return False
        before = (previous["paths"] or ()) if previous else ()
        were_hinted = any(path["pass"] for path in before)
        return were_hinted or not any(path["verdict"] == Verdict.CORRECT for path in graded)

    def set_aside(self, question: dict[str, Any], reason: str) -> dict[str, Any]:
        """The row of a question that has no paths, and why."""
        asked = Question.from_row(question)
        num_failed = len(self.recipe.tasks(asked))
        return self._row(asked, []) | {"error": reason, "num_failed": num_failed}

    def _row(self, question: Question, paths: list[dict[str, Any]]) -> dict[str, Any]:
        return question.to_row() | {
            "question_fingerprint": question.fingerprint,
            "round": self.recipe.round,
            "strategy": self.recipe.settings.strategy,
            "grader_version": GRADER_VERSION,
            "paths": paths,
        }


def count_paths(paths: list[dict[str, Any]]) -> dict[str, int]:
    """The ledger's counts over the graded paths of a question."""
    generations = [generation for path in paths for generation in path["generations"]]
    return {
        "num_paths": len(paths),
        "num_accepted": sum(path["verdict"] == Verdict.CORRECT for path in paths),
        "num_failed": sum(bool(path["error"]) for path in paths),
        "num_truncated": sum(not path["error"] and not path_finished(path) for path in paths),
        "num_tokens": sum(generation["num_tokens"] for generation in generations),
        "num_prompt_tokens": sum(generation["num_prompt_tokens"] for generation in generations),
    }


def grade_paths(
    paths: list[dict[str, Any]], question: Question, read_last: tuple[AnswerType, ...]
) -> list[dict[str, Any]]:
    """The paths with `predicted`, `verdict` and `read_as` by today's grader."""
    return [path | grade_path(path, question, read_last) for path in paths]


def grade_path(
    path: dict[str, Any], question: Question, read_last: tuple[AnswerType, ...]
) -> dict[str, Any]:
    """The three grading columns of one path; one that failed has no answer to read.

    `predicted` is the letter that the option has in the question, not in the order of the path.
    """
    if path["error"]:
        return {"predicted": None, "verdict": Verdict.ERROR.value, "read_as": None}
    result = grade(
        path["reasoning"],
        shown_question(question, path),
        read_last=question.answer_type in read_last,
        finished=path_finished(path),
    )
    predicted = result.predicted
    return {
        "predicted": predicted and own_letter(predicted, path["option_order"]),
        "verdict": result.verdict.value,
        "read_as": result.read_as.value,
    }


def shown_question(question: Question, path: Mapping[str, Any]) -> Question:
    """The question as the path was asked it, its options in the path's own order."""
    return question.with_options(path["option_order"])


def shown_answer(path: Mapping[str, Any]) -> str:
    """What the path answered, by the letters of the options as the path was shown them."""
    return shown_letter(path["predicted"], path["option_order"])


def path_finished(path: Mapping[str, Any]) -> bool:
    """Whether the model ended its solution by itself."""
    return any(g["stage"] == "path" and g["finish_reason"] == "stop" for g in path["generations"])
