"""The reasoning path, which the method generates, filters and trains on.

It is stored as a struct of `PATH_TYPE` in the rows of the `paths` step, for example::

    {"path_id": "0/regenesis/gsm8k/train/00042/decompose/0/0", "guideline_id": "decompose",
     "adapted_guideline": "Work out May from April first ...", "structure": "1. Find ...",
     "thinking": "", "reasoning": "In May she sold ... \\boxed{72}", "token_ids": [504, ...],
     "generations": [{"stage": "adapt", "seed": ..., "finish_reason": "stop", ...}, ...],
     "predicted": "72", "verdict": "correct", "read_as": "boxed", ...}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from cluster.inference.engine import Completion
from evaluation.grader import Verdict
from evaluation.question import AnswerType, Question, own_letter, shown_letter
from evaluation.responses import grade_columns
from pipelines.synthesis.stages import PATH, STAGES

GENERATION_TYPE = pa.struct(
    [
        ("stage", pa.string()),
        ("seed", pa.int64()),
        ("finish_reason", pa.string()),
        ("num_prompt_tokens", pa.int32()),
        ("num_cached_tokens", pa.int32()),  # prompt tokens in the engine's prefix cache
        ("num_tokens", pa.int32()),
    ]
)
PATH_TYPE = pa.struct(
    [
        ("path_id", pa.string()),
        ("guideline_id", pa.string()),
        ("pass", pa.int32()),  # 1: shown the right answer; from 2: again without it
        ("sample", pa.int32()),
        ("option_order", pa.list_(pa.int32())),  # empty: the question's order
        *((stage.column, pa.string()) for stage in STAGES.values() if stage != PATH),
        ("thinking", pa.string()),
        (PATH.column, pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("judged", pa.string()),  # whether the model found the path sound: yes, no or null
        ("generations", pa.list_(GENERATION_TYPE)),
        ("predicted", pa.string()),
        ("verdict", pa.string()),
        ("read_as", pa.string()),
        ("error", pa.string()),
    ]
)
HINTED = 1
"""The pass whose paths were shown the right answer. Pass 0 is the first one, and all later ones
are tries without a hint beside it (`synthesis.unhinted_retries`)."""
_COLUMNS = tuple(stage.column for stage in STAGES.values())


@dataclass(frozen=True, slots=True)
class Generation:
    """The facts that are kept about a generation in addition to its text."""

    stage: str
    seed: int = 0
    finish_reason: str = "stop"
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_tokens: int = 0

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Generation:
        """A stored generation; a fact that is missing or null has its default."""
        return cls(**{name: value for name, value in row.items() if value is not None})

    @classmethod
    def of(cls, stage: str, seed: int, completion: Completion) -> Generation:
        """The facts about a stage's completion."""
        return cls(
            stage,
            seed,
            completion.end_reason,
            completion.num_prompt_tokens,
            completion.num_cached_tokens,
            completion.num_tokens,
        )


@dataclass(frozen=True, slots=True)
class ReasoningPath:
    """One attempt at an answer, as far as it was generated. `predicted` is the letter of an option
    in the question, not in the order in which the path was shown the options."""

    path_id: str
    guideline_id: str | None = None
    """None for a plain chain of thought."""
    pass_number: int = 0
    """0, `HINTED`, or the number of a further try without a hint."""
    sample: int = 0
    option_order: tuple[int, ...] = ()
    """The options as this path was shown them, as indices in the question; empty: unchanged."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """The output of each stage, by the stage's column; stages that did not run are missing."""
    thinking: str = ""
    token_ids: Sequence[int] = ()
    """The ids of the last stage's complete answer, as sampled."""
    judged: str | None = None
    generations: tuple[Generation, ...] = ()
    predicted: str | None = None
    verdict: str | None = None
    """None until the path is graded."""
    read_as: str | None = None
    error: str | None = None
    num_learned_tokens: int | None = None
    """Tokens of the target that it would give; not stored. None if no target was made."""

    @property
    def is_hinted(self) -> bool:
        """Whether it was shown the right answer in some stages."""
        return self.pass_number == HINTED

    @property
    def structure(self) -> str:
        """The plan."""
        return self.texts.get("structure", "")

    @property
    def reasoning(self) -> str:
        """The solution."""
        return self.texts.get(PATH.column, "")

    @property
    def num_target_tokens(self) -> int:
        """Tokens of the target, if known; otherwise those of the answer, as counted by a server
        that returned no ids."""
        if self.num_learned_tokens is not None:
            return self.num_learned_tokens
        if self.token_ids:
            return len(self.token_ids)
        return sum(made.num_tokens for made in self.generations if made.stage == PATH.name)

    @property
    def num_written_tokens(self) -> int:
        """Tokens that its stages generated, without the judge's."""
        return sum(made.num_tokens for made in self.generations if made.stage in STAGES)

    @property
    def is_finished(self) -> bool:
        """Whether the model ended its solution by itself."""
        return any(g.stage == PATH.name and g.finish_reason == "stop" for g in self.generations)

    @property
    def shown_answer(self) -> str:
        """Its answer, with the letters of the options as the path was shown them."""
        return shown_letter(self.predicted or "", self.option_order)

    def shown_question(self, question: Question) -> Question:
        """The question as the path was shown it, with the options in the path's order."""
        return question.with_options(self.option_order)

    def graded(self, question: Question, read_last: tuple[AnswerType, ...]) -> ReasoningPath:
        """The path with the verdict of the current grader; a failed one has no answer to read.

        `read_last` has the answer types for which the last number or letter counts if nothing
        clearer was written.
        """
        if self.error:
            return replace(self, predicted=None, verdict=Verdict.ERROR.value, read_as=None)
        columns = grade_columns(
            self.reasoning,
            self.shown_question(question),
            read_last=question.answer_type in read_last,
            finished=self.is_finished,
        )
        predicted = columns["predicted"]
        own = predicted and own_letter(predicted, self.option_order)
        return replace(self, **columns | {"predicted": own})

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> ReasoningPath:
        """A stored path; columns that were added after it was stored may be missing."""
        generations = row.get("generations") or ()
        return cls(
            path_id=row["path_id"],
            guideline_id=row.get("guideline_id"),
            pass_number=row.get("pass") or 0,
            sample=row.get("sample") or 0,
            option_order=tuple(row.get("option_order") or ()),
            texts={name: row[name] for name in _COLUMNS if row.get(name)},
            thinking=row.get("thinking") or "",
            token_ids=row.get("token_ids") or (),
            judged=row.get("judged"),
            generations=tuple(map(Generation.from_row, generations)),
            predicted=row.get("predicted"),
            verdict=row.get("verdict"),
            read_as=row.get("read_as"),
            error=row.get("error"),
        )

    def to_row(self) -> dict[str, Any]:
        """A row of `PATH_TYPE`."""
        return {
            "path_id": self.path_id,
            "guideline_id": self.guideline_id,
            "pass": self.pass_number,
            "sample": self.sample,
            "option_order": list(self.option_order),
            **{name: self.texts.get(name, "") for name in _COLUMNS},
            "thinking": self.thinking,
            "token_ids": list(self.token_ids),
            "judged": self.judged,
            "generations": [asdict(generation) for generation in self.generations],
            "predicted": self.predicted,
            "verdict": self.verdict,
            "read_as": self.read_as,
            "error": self.error,
        }
