r"""Further readings of an answer: the model is made to state its result, whatever it wrote before.

After each greedy answer, while its prefix is cached, the engine continues it behind a fixed cue::

    prompt + answer + "\n\nMy answer, in short:"    -> `forced`
    prompt + answer + "\n\nThe final answer is \boxed{" -> `boxed`
    prompt + "My answer, in short:"                 -> `no_reasoning`

The first cue is in no training target, and the second is how targets end, so a model that only
learned to box its answers gains under the second more than under the first. The continuation is
greedy, has at most 16 tokens, and is graded as an answer by the one grader. For a question with
options, `forced` and `no_reasoning` also have the log-probability of each option's letter as the
next token; the likeliest letter is one more reading, which no format can spoil.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import pyarrow as pa

from cluster.inference.engine import (
    Beginning,
    Completion,
    ContinuesAnswers,
    Engine,
    GenerationError,
    SamplingSettings,
)
from evaluation.grader import (
    Grade,
    ReadAs,
    Verdict,
    grade,
    lone_answer,
    no_answer,
    same_answer,
)
from evaluation.prompt import Message
from evaluation.question import LETTERS, Question

_PIECE = re.compile(r"\n+|(?<!\b[A-Za-z])(?<!^[0-9])[.;…]+\s+")
MAX_TOKENS = 16
"""Token limit of a continuation."""


@dataclass(frozen=True, slots=True)
class Cue:
    """What a model is made to go on from."""

    text: str
    after_answer: bool
    """Whether the answer comes before it, or only the prompt."""
    weighs_options: bool
    """Whether the likelihoods of a question's options are asked for."""


UNTRAINED = "\n\nMy answer, in short:"
TRAINED = "\n\nThe final answer is \\boxed{"
CUES: Mapping[str, Cue] = {
    "forced": Cue(UNTRAINED, after_answer=True, weighs_options=True),
    "boxed": Cue(TRAINED, after_answer=True, weighs_options=False),
    "no_reasoning": Cue(UNTRAINED, after_answer=False, weighs_options=True),
}
"""By the column that has the reading. Predictions with readings are named after them."""

_READING = pa.struct(
    [
        pa.field("cue", pa.string()),
        pa.field("text", pa.string()),
        pa.field("option_log_likelihoods", pa.list_(pa.float64())),
        pa.field("predicted", pa.string()),
        pa.field("verdict", pa.string()),
        pa.field("read_as", pa.string()),
        pa.field("error", pa.string()),
    ]
)
READING_FIELDS = (
    pa.field("response_ids", pa.list_(pa.int32())),
    *(pa.field(name, _READING) for name in CUES),
)
"""The columns of predictions with readings."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model said behind a cue, and its grade."""

    cue: str
    text: str | None = None
    """The continuation alone; None if there is none and `error` says why."""
    option_log_likelihoods: tuple[float, ...] = ()
    """Natural logarithms in the order of the options; empty where they were not asked for, or the
    tokenizer has no single token for each letter."""
    predicted: str | None = None
    verdict: str | None = None
    """None until the reading is graded."""
    read_as: str | None = None
    error: str | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Reading:
        """The inverse of `to_row`."""
        likelihoods = tuple(row["option_log_likelihoods"] or ())
        return cls(**{**row, "option_log_likelihoods": likelihoods})

    def to_row(self) -> dict[str, Any]:
        """A value of its column."""
        return asdict(self) | {"option_log_likelihoods": list(self.option_log_likelihoods)}

    def graded(self, question: Question) -> Reading:
        """The reading with the verdict of today's grader."""
        if self.text is None:
            return replace(self, predicted=None, verdict=Verdict.ERROR.value, read_as=None)
        result = grade_continuation(self.cue, self.text, question)
        return replace(
            self,
            predicted=result.predicted,
            verdict=result.verdict.value,
            read_as=result.read_as.value,
        )

    @property
    def likeliest(self) -> str | None:
        """The letter of the likeliest option, the first of several; None without likelihoods."""
        if not self.option_log_likelihoods:
            return None
        best = max(self.option_log_likelihoods)
        return LETTERS[self.option_log_likelihoods.index(best)]


def grade_continuation(cue: str, text: str, question: Question) -> Grade:
    r"""Judge a continuation as an answer: the content of a box that it closes, else its first line.

    A line counts although the token limit cut it: an answer is at its beginning. None counts if it
    is the first of a list of answers.
    """
    if cue.endswith("{"):
        boxed = grade(f"\\boxed{{{text}", question, read_last=False)
        if boxed.read_as == ReadAs.BOXED:
            return boxed
    if lists_answers(text, question):
        return no_answer(finished=True)
    lines = text.strip().splitlines()
    stated = f"The answer is: {lines[0] if lines else ''}\n"
    return grade(stated, question, read_last=False)


def lists_answers(text: str, question: Question) -> bool:
    """Whether a continuation begins with two answers that differ, line by line or sentence by
    sentence: it repeats the options, or it goes on with another question."""
    pieces = [piece.strip() for piece in _PIECE.split(text) if piece.strip()]
    if len(pieces) < 2:
        return False
    first, second = (lone_answer(piece, question) for piece in pieces[:2])
    if first is None or second is None:
        return False
    return not same_answer(first, second, question)


async def ask_readings(
    engine: Engine,
    messages: Sequence[Message],
    question: Question,
    answered: Completion,
    sampling: SamplingSettings,
) -> dict[str, Reading]:
    """All readings of an answer, by their names; one that fails has an error.

    `sampling` is that of the answer. Raises `EngineDiedError`.
    """
    forced = sampling.model_copy(update={"temperature": 0.0, "max_tokens": MAX_TOKENS})

    async def ask(cue: Cue) -> Reading:
        options = LETTERS[: len(question.choices)] if cue.weighs_options else ""
        beginning = Beginning(
            answered if cue.after_answer else None, cue.text, tuple(f" {each}" for each in options)
        )
        try:
            said = await cast(ContinuesAnswers, engine).go_on(messages, beginning, forced)
        except GenerationError as error:
            return Reading(cue.text, error=str(error))
        return Reading(cue.text, said.text, said.option_log_likelihoods)

    found = await asyncio.gather(*map(ask, CUES.values()))
    return dict(zip(CUES, found, strict=True))


def no_readings(reason: str) -> dict[str, Reading]:
    """The readings of a question without an answer, and why."""
    return {name: Reading(cue.text, error=reason) for name, cue in CUES.items()}
