"""The one prompt: what a model is trained to answer is what it is asked in evaluation.

Neither guideline nor structure is in it. The tuned model has to reason well by itself. Beside it
stand two other forms (`Form`) in which a question may be learned, and is never evaluated.
"""

from __future__ import annotations

from typing import Literal

from evaluation.question import AnswerType, Question

Message = dict[str, str]
"""One turn of a chat, as chat templates take it: `role` and `content`."""

Form = Literal["evaluation", "plain", "answer_only"]
"""How a question is put: as in evaluation, without being told to think, or asked not to reason."""

_REQUESTS: dict[Form, str] = {
    "evaluation": "Think it through step by step. ",
    "plain": "",
    "answer_only": "Say only the answer, without any reasoning. ",
}
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
    return learned_messages(question, "evaluation")


def learned_messages(question: Question, form: Form) -> list[Message]:
    """The chat of a training example in one of its forms."""
    text = f"{question.text}\n\n{_REQUESTS[form]}{answer_format(question)}"
    return [{"role": "user", "content": text}]
