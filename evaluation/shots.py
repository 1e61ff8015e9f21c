"""Few-shot examples: solved questions that a model is shown before the one that it is asked.

An example is a turn of the user and a turn of the assistant, in the form of the evaluation's own
prompt, so that its last sentence says how the answer has to be written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from cluster.settings import Settings
from evaluation.prompt import Message, PromptName, asked_messages
from evaluation.question import ANSWER_TYPES, AnswerType, Question
from evaluation.reading.rows import SourceRow, read_rows, resolve

Text = Annotated[str, Field(min_length=1)]


class Shot(Settings):
    """A solved question."""

    question: Text
    """With its options, where it has any."""
    response: Text
    """What a model should have said, the final answer included."""
    answer_type: AnswerType | None = None
    """Decides the sentence on the form of the answer; null is the type of the question asked."""


def few_shot_messages(
    question: Question, shots: Sequence[Shot], prompt: PromptName = "standard"
) -> list[Message]:
    """The chat that asks a question after the examples; without any it is `asked_messages`."""
    shown = [turn for shot in shots for turn in _turns(shot, question.answer_type, prompt)]
    return [*shown, *asked_messages(question, prompt)]


def _turns(shot: Shot, answer_type: AnswerType, prompt: PromptName) -> list[Message]:
    solved = Question(
        question_id="",
        dataset="",
        split="train",
        domain="in_domain",
        question=shot.question,
        answer="",
        answer_type=shot.answer_type or answer_type,
    )
    return [*asked_messages(solved, prompt), {"role": "assistant", "content": shot.response}]


def read_shots(path: str) -> tuple[Shot, ...]:
    """The examples in a file with the columns `question`, `response` and perhaps `answer_type`.

    The file may have any format that questions may have. Raises `InputError` with the file and the
    row.
    """
    return tuple(_shot(row) for row in read_rows(resolve(path, ".")))


def _shot(row: SourceRow) -> Shot:
    answer_type = row.get("answer_type")
    if answer_type is not None and answer_type not in ANSWER_TYPES:
        raise row.wrong(
            "answer_type", f"is {answer_type!r}; write one of {', '.join(ANSWER_TYPES)}"
        )
    return Shot(
        question=row.text("question"), response=row.text("response"), answer_type=answer_type
    )
