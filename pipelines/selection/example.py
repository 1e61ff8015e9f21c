"""The training example: a prompt, the target that is learned, and where it came from.

A row of the `examples` step, for example::

    {"example_id": "0/regenesis/gsm8k/train/00042/decompose/0/0", "question_id": ...,
     "dataset": "gsm8k", "guideline_id": "decompose", "pass": 0, "answer_added": False,
     "vote_share": 0.64, "lucky_share": 0.0, "form": "evaluation",
     "messages": [{"role": "user", ...}, {"role": "assistant", ...}],
     "prompt_token_ids": [1, 4093, ...], "target_token_ids": [788, ..., 2]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from evaluation.prompt import Message

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_TOKEN_IDS = pa.list_(pa.int32())

EXAMPLES_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("question_id", pa.string()),
        ("dataset", pa.string()),
        ("guideline_id", pa.string()),
        ("pass", pa.int32()),  # that of its path; 1: it was shown the answer
        ("answer_added", pa.bool_()),
        ("vote_share", pa.float32()),  # share of its question's paths with this answer
        ("lucky_share", pa.float32()),  # expected share of right paths that guessed
        ("form", pa.string()),  # of the prompt, or `original`: the given solution
        ("messages", MESSAGES),
        ("prompt_token_ids", _TOKEN_IDS),
        ("target_token_ids", _TOKEN_IDS),
    ]
)

PAIRS_SCHEMA = pa.schema(
    [
        ("chosen_id", pa.string()),
        ("rejected_id", pa.string()),
        ("question_id", pa.string()),
        ("dataset", pa.string()),
        ("prompt", MESSAGES),
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("prompt_token_ids", _TOKEN_IDS),
        ("chosen_token_ids", _TOKEN_IDS),
        ("rejected_token_ids", _TOKEN_IDS),
    ]
)
"""Preferences in the format of TRL's DPO: a conversational prompt and two answers."""

UNPAIRED_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("question_id", pa.string()),
        ("dataset", pa.string()),
        ("label", pa.bool_()),  # true for kept paths only
        ("prompt", MESSAGES),
        ("completion", MESSAGES),
        ("prompt_token_ids", _TOKEN_IDS),
        ("completion_token_ids", _TOKEN_IDS),
    ]
)
"""Preferences in the format of TRL's KTO: a conversational prompt, an answer, and its label."""


@dataclass(frozen=True, slots=True)
class Target:
    """The text that is learned as the answer to a prompt."""

    text: str
    token_ids: Sequence[int]
    answer_added: bool
    """Whether the answer was appended in the format that the prompt asks for."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example, for supervised training or for preferences."""

    example_id: str
    question_id: str
    dataset: str
    form: str
    """The form of the prompt, or `original` for the solution that the question came with."""
    prompt: Sequence[Message]
    prompt_token_ids: Sequence[int]
    target: Target
    guideline_id: str | None = None
    pass_number: int = 0
    """That of its path; see `pipelines.synthesis.reasoning_path.HINTED`."""
    vote_share: float = 1.0
    """The share of its question's paths with the same answer."""
    guessed_share: float | None = 0.0
    """The expected share of its question's right paths that guessed; None if unknown."""

    @property
    def answer(self) -> Message:
        """The turn that is learned."""
        return {"role": "assistant", "content": self.target.text}

    def to_row(self) -> dict[str, Any]:
        """A row of `EXAMPLES_SCHEMA`."""
        return {
            "example_id": self.example_id,
            "question_id": self.question_id,
            "dataset": self.dataset,
            "guideline_id": self.guideline_id,
            "pass": self.pass_number,
            "answer_added": self.target.answer_added,
            "vote_share": self.vote_share,
            "lucky_share": self.guessed_share,
            "form": self.form,
            "messages": [*self.prompt, self.answer],
            "prompt_token_ids": self.prompt_token_ids,
            "target_token_ids": self.target.token_ids,
        }

    def preferred_to(self, rejected: Example) -> dict[str, Any]:
        """A row of `PAIRS_SCHEMA`; the other example answers the same prompt."""
        return {
            "chosen_id": self.example_id,
            "rejected_id": rejected.example_id,
            "question_id": self.question_id,
            "dataset": self.dataset,
            "prompt": self.prompt,
            "chosen": [self.answer],
            "rejected": [rejected.answer],
            "prompt_token_ids": self.prompt_token_ids,
            "chosen_token_ids": self.target.token_ids,
            "rejected_token_ids": rejected.target.token_ids,
        }

    def labelled(self, *, is_right: bool) -> dict[str, Any]:
        """A row of `UNPAIRED_SCHEMA`."""
        return {
            "example_id": self.example_id,
            "question_id": self.question_id,
            "dataset": self.dataset,
            "label": is_right,
            "prompt": self.prompt,
            "completion": [self.answer],
            "prompt_token_ids": self.prompt_token_ids,
            "completion_token_ids": self.target.token_ids,
        }
