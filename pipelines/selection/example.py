"""The training example: a prompt, what is learned to answer it, and where that came from.

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
        ("pass", pa.int32()),  # 1: the path was shown the answer
        ("answer_added", pa.bool_()),
        ("vote_share", pa.float32()),  # of its question's paths with the same answer
        ("lucky_share", pa.float32()),  # of its question's right paths that guessed, expected
        ("form", pa.string()),  # of the prompt, or `original`: the solution it came with
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
"""Preferences as TRL's DPO reads them: a conversational prompt and two answers."""

UNPAIRED_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("question_id", pa.string()),
        ("dataset", pa.string()),
        ("label", pa.bool_()),  # right; the kept paths and no others
        ("prompt", MESSAGES),
        ("completion", MESSAGES),
        ("prompt_token_ids", _TOKEN_IDS),
        ("completion_token_ids", _TOKEN_IDS),
    ]
)
"""Preferences as TRL's KTO reads them: a conversational prompt, an answer, and what it is worth."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is learned to answer a prompt."""

    text: str
    token_ids: Sequence[int]
    answer_added: bool
    """Whether the answer was written anew, in the format that the prompt asks for."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example, whether it is learned alone or preferred to others."""

    example_id: str
    question_id: str
    dataset: str
    form: str
    """Of the prompt, or `original`: the solution that the question came with."""
    prompt: Sequence[Message]
    prompt_token_ids: Sequence[int]
    target: Target
    guideline_id: str | None = None
    is_hinted: bool = False
    vote_share: float = 1.0
    """Of its question's paths, those with the same answer."""
    guessed_share: float | None = 0.0
    """Of its question's right paths, those that are expected to have guessed; None: unknown."""

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
            "pass": int(self.is_hinted),
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
