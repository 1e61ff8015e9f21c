"""An answer of any model to any question, wherever it was made, and whether it is right.

The common form in which predictions of a run, logs of lm-evaluation-harness and JSONL files are
compared (`evaluation.comparison`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from evaluation.forced_scores import FURTHER, right_under
from evaluation.predictions import Prediction
from evaluation.question import Question
from evaluation.scores import is_correct


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer to one question."""

    place: str
    """For people: where it was read, such as `samples_gsm8k.jsonl:12`."""
    question_id: str
    """Empty where the file has no ids."""
    text: str
    """The question without its options; empty where the file does not have it."""
    task: str = ""
    group: str = ""
    """What its task belongs to, such as `in_domain`; empty where that is not known."""
    split: str = ""
    """Empty where that is not known."""
    question: Question | None = None
    """With its truth; None where the file does not have what the grader needs."""
    response: str | None = None
    finished: bool = True
    """False where a token limit cut the response off."""
    strict: bool | None = None
    """Whether it is right under the strict reading of `evaluation.scores`; None: not judged yet."""
    tolerant: bool | None = None
    graded_here: bool = False
    """Whether our grader judged it, or the tool that made the file."""
    further: Mapping[str, bool] = field(default_factory=dict)
    """Whether it is right under the other readings that it has (`evaluation.forced_scores`)."""

    @classmethod
    def from_prediction(cls, prediction: Prediction, place: str) -> Answer:
        """An answer of a run, judged by today's grader."""
        question, graded = prediction.question, prediction.graded()
        return cls(
            place,
            question.question_id,
            question.question,
            question.dataset,
            question.domain,
            question.split,
            question,
            prediction.response,
            prediction.finish_reason == "stop",
            is_correct(graded, tolerant=False),
            is_correct(graded, tolerant=True),
            graded_here=True,
            further={
                reading: right
                for reading in FURTHER
                if (right := right_under(graded, reading)) is not None
            },
        )

    def right(self, reading: str) -> bool | None:
        """Whether it is right under a reading; None where it does not have this one."""
        judged = {"strict": self.strict, "tolerant": self.tolerant}
        return {**judged, **self.further}.get(reading)

    @property
    def text_key(self) -> str:
        """What is the same for the same text: no case, no runs of white space."""
        return " ".join(self.text.casefold().split())

    def graded_by(self, question: Question) -> Answer:
        """The same answer, judged by our grader as one to this question."""
        asked = replace(self, question=question, graded_here=True)
        if self.response is None:
            return replace(asked, strict=False, tolerant=False)
        prediction = Prediction(
            question, self.response, finish_reason="stop" if self.finished else "length"
        ).graded()
        return replace(
            asked,
            strict=is_correct(prediction, tolerant=False),
            tolerant=is_correct(prediction, tolerant=True),
        )


@dataclass(frozen=True, slots=True)
class AnswerSet:
    """The answers of one model."""

    name: str
    answers: Sequence[Answer]
