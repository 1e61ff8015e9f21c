"""The `paths` step: all reasoning paths of every training question, each with its verdict.

`SynthesizePaths` is what a worker of the pool does with one question; the row that it returns is::

    {"question_id": "gsm8k/train/00042", "question_fingerprint": "9f...", "attempt": 0,
     "dataset": "gsm8k", "num_paths": 25, "num_accepted": 11, "num_failed": 0, ...,
     "question": "A shop sold ...", "answer": "72", ...,
     "round": 0, "strategy": "regenesis", "paths": [{...}, ...]}
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cluster.inference.engine import Engine
from cluster.inference.job import Slots
from cluster.store.ledger import ledger_schema
from evaluation.grader import GRADER_VERSION, Verdict
from evaluation.question import QUESTION_SCHEMA, AnswerType, Question
from evaluation.responses import QuestionHandler
from pipelines.synthesis.chain import Previous, Recipe, run_chains
from pipelines.synthesis.judge import judge_paths
from pipelines.synthesis.reasoning_path import HINTED, PATH_TYPE, ReasoningPath
from pipelines.synthesis.swapped_adaptations import OtherQuestions

MOST_RETRIES = 4
"""Limit on the passes without a hint beside one with it, should that write far more."""
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
class SynthesizePaths(QuestionHandler[ReasoningPath]):
    """The pool's handler for the `paths` step."""

    recipe: Recipe
    read_last: tuple[AnswerType, ...]
    """Answer types for which the last number or letter counts if nothing clearer was written."""
    others: OtherQuestions | None = None
    """Finds the question whose adaptations another one gets, if they are swapped."""

    @property
    def width(self) -> int:
        """A question's chains run in parallel, with one generation each."""
        settings = self.recipe.settings
        drawn = self.recipe.guidelines[: settings.guidelines_per_question]
        return settings.samples * (len(drawn) if settings.follows_guidelines else 1)

    @property
    def generations(self) -> Mapping[int | None, int]:
        """Each chain has one generation per stage; judged and hinted paths are not known yet."""
        settings = self.recipe.settings
        counts: Counter[int | None] = Counter()
        for stage in (*settings.chain, *(["judge"] if settings.judge == "all" else [])):
            counts[getattr(settings.stages, stage).max_tokens] += self.width
        return counts

    async def answers(
        self, engine: Engine, question: Question, slots: Slots, previous: dict[str, Any] | None
    ) -> list[ReasoningPath]:
        """All paths of the question, graded and judged."""
        before = Previous.from_row(previous)
        paths = await self._pass(engine, question, slots, before)
        if self._needs_hint(paths, before):
            hinted = await self._pass(engine, question, slots, before, HINTED)
            retries = await self._retries(engine, question, slots, before, num_written(hinted))
            paths += hinted + retries
        return paths

    async def _retries(
        self,
        engine: Engine,
        question: Question,
        slots: Slots,
        previous: Previous | None,
        wanted: int,
    ) -> list[ReasoningPath]:
        """Passes without a hint until they have generated as many tokens as are wanted; those of an
        earlier attempt are also kept."""
        if not self.recipe.settings.unhinted_retries:
            return []
        there = max((path.pass_number for path in previous.paths), default=0) if previous else 0
        paths: list[ReasoningPath] = []
        for number in range(HINTED + 1, HINTED + 1 + MOST_RETRIES):
            if number > there and num_written(paths) >= wanted:
                break
            paths += await self._pass(engine, question, slots, previous, number)
        return paths

    async def _pass(
        self,
        engine: Engine,
        asked: Question,
        slots: Slots,
        previous: Previous | None,
        pass_number: int = 0,
    ) -> list[ReasoningPath]:
        """The graded paths of one pass."""
        other = await asyncio.to_thread(self.others.of, asked) if self.others else None
        paths = await run_chains(engine, self.recipe, asked, slots, previous, pass_number, other)
        # Grading takes processor time, while the event loop has to feed the engine.
        graded = await asyncio.to_thread(grade_paths, paths, asked, self.read_last)
        return await judge_paths(engine, self.recipe, asked, graded, slots)

    def _needs_hint(self, graded: Sequence[ReasoningPath], previous: Previous | None) -> bool:
        """Whether no path was right; hinted paths of an earlier attempt are also kept."""
        if not self.recipe.settings.hint_stages:
            return False
        if previous is None or previous.attempt < 0:  # no attempt was made with these settings
            were_hinted = False
        else:
            were_hinted = any(path.is_hinted for path in previous.paths)
        return were_hinted or not any(path.verdict == Verdict.CORRECT for path in graded)

    def row(self, question: Question, answers: Sequence[ReasoningPath]) -> dict[str, Any]:
        """The question's row, with all its paths."""
        return self._row(question, answers) | count_paths(answers)

    def failed_row(self, question: Question, reason: str) -> dict[str, Any]:
        """The row of a question that has no paths, and why."""
        num_failed = len(self.recipe.specs(question))
        return self._row(question, []) | {"error": reason, "num_failed": num_failed}

    def _row(self, question: Question, paths: Sequence[ReasoningPath]) -> dict[str, Any]:
        return question.to_row() | {
            "question_fingerprint": question.fingerprint,
            "round": self.recipe.round,
            "strategy": self.recipe.settings.strategy_name,
            "grader_version": GRADER_VERSION,
            "paths": [path.to_row() for path in paths],
        }


def num_written(paths: Sequence[ReasoningPath]) -> int:
    """Tokens that the stages of some paths generated."""
    return sum(path.num_written_tokens for path in paths)


def count_paths(paths: Sequence[ReasoningPath]) -> dict[str, int]:
    """The ledger's counts over the graded paths of a question."""
    generations = [generation for path in paths for generation in path.generations]
    return {
        "num_paths": len(paths),
        "num_accepted": sum(path.verdict == Verdict.CORRECT for path in paths),
        "num_failed": sum(bool(path.error) for path in paths),
        "num_truncated": sum(not path.error and not path.is_finished for path in paths),
        "num_tokens": sum(generation.num_tokens for generation in generations),
        "num_prompt_tokens": sum(generation.num_prompt_tokens for generation in generations),
    }


def grade_paths(
    paths: Sequence[ReasoningPath], question: Question, read_last: tuple[AnswerType, ...]
) -> list[ReasoningPath]:
    """The paths with the verdicts of the current grader."""
    return [path.graded(question, read_last) for path in paths]


def stored_paths(
    row: dict[str, Any], question: Question, read_last: tuple[AnswerType, ...]
) -> list[ReasoningPath]:
    """The paths of a ledger row, graded again."""
    return grade_paths(
        [ReasoningPath.from_row(path) for path in row["paths"] or ()], question, read_last
    )
