"""The one prompt: what a model is trained to answer is what it is asked in evaluation.

Neither guideline nor structure is in it. The tuned model has to reason well by itself.
"""

from __future__ import annotations

from evaluation.question import AnswerType, Question

Message = dict[str, str]
"""One turn of a chat, as chat templates take it: `role` and `content`."""

_ANSWER_FORMATS: dict[AnswerType, str] = {
    "number": "End with the final answer as a number in \\boxed{}.",
    "choice": "End with the letter of the right option in \\boxed{}.",
    "boolean": "End with yes or no in \\boxed{}.",
    "text": "End with the final answer in \\boxed{}.",
    "math": "End with the final answer in LaTeX in \\boxed{}.",
}


def answer_format(question: Question) -> str:
    """The sentence that says how the final answer has to be written."""
    return _ANSWER_FORMATS[question.answer_type]


def answer_messages(question: Question) -> list[Message]:
    """The chat that training examples and evaluation share."""
    text = f"{question.text}\n\nThink it through step by step. {answer_format(question)}"
    return [{"role": "user", "content": text}]
