"""The prompt, which is the same in training and in evaluation.

It contains neither a guideline nor a structure, so the tuned model has to reason without them.
There are two further forms (`Form`) that a question may have in training, and further prompts
(`PROMPTS`) with which a model may be evaluated, so that it can also be asked as it answers best.
"""

from __future__ import annotations

from typing import Literal, get_args

from evaluation.question import AnswerType, Question

Message = dict[str, str]
"""One turn of a chat in the format of chat templates: `role` and `content`."""

Form = Literal["evaluation", "plain", "answer_only"]
"""The form of a prompt: as in evaluation, without a request to think, or without reasoning."""

PromptName = Literal["standard", "answer_only", "bare"]
"""How a model is asked: as in training, for the answer alone, or the question alone."""
PROMPTS: tuple[PromptName, ...] = get_args(PromptName)

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


def asked_messages(question: Question, prompt: PromptName = "standard") -> list[Message]:
    """The chat with which a model is evaluated."""
    if prompt == "bare":
        return [{"role": "user", "content": question.text}]
    return learned_messages(question, "answer_only" if prompt == "answer_only" else "evaluation")
