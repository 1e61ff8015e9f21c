"""A model's answer: the text outside its thinking, up to the end of its turn."""

from __future__ import annotations

import pytest

from evaluation.extraction.turns import own_answer
from evaluation.grader import ReadAs, Verdict, grade
from evaluation.question import Question

SEVEN = Question("q", "d", "test", "in_domain", "?", "7", "number")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is 7", "It is 7"),
        ("<think>5</think>7", "7"),
        ("<Thinking>5</Thinking>7", "7"),
        ("<reasoning>5</reasoning>7", "7"),
        ("[THINK]5[/THINK]7", "7"),
        ("◁think▷5◁/think▷7", "7"),
        ("<|begin_of_thought|>5<|end_of_thought|>7", "7"),
        ("<|START_THINKING|>5<|END_THINKING|>7", "7"),
        ("<seed:think>5</seed:think>7", "7"),
        ("<mm:think>5</mm:think>7", "7"),
        ("<ifm|think_fast>5</ifm|think_fast>7", "7"),
        ("<think:tencent>5</think:tencent>7", "7"),
        ("<|plamo:begin_think:plamo|>5<|plamo:end_think:plamo|>7", "7"),
        ("<|channel>thought\n5<channel|>7<turn|>\n<|turn>user\n5", "7"),
        ("<|turn>model\n<|channel>thought\n<channel|>7<turn|>", "7"),
        ("<|channel>thought\nSo 7", None),
        ("<mm:think>7", None),
        ("<|plamo:begin_think:plamo|>7", None),
        ("x <think_big> y", "x <think_big> y"),
        (
            "<|channel|>analysis<|message|>5<|end|><|start|>assistant<|channel|>final<|message|>7",
            "7",
        ),
        ("<|channel|>final<|message|>7 < 8<|return|>", "7 < 8"),
        ("analysisIt is 5assistantfinal7", "7"),
        ("5</think>7", "7"),
        ("<think>a </think> b</think>7", "7"),
        ("7<|im_end|>\n<|im_start|>user\n5", "7"),
        ("7<|eot_id|>", "7"),
        ("7</s>5", "7"),
        ("7<end_of_turn>\n<start_of_turn>user\n5", "7"),
        ("<|im_start|>assistant\n7<|im_end|>", "7"),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n7<|eot_id|>", "7"),
        ("<think>5", None),
        ("[THINK]5", None),
        ("<reasoning>5", None),
        ("<|channel|>analysis<|message|>5", None),
        ("7<think>", None),
        ("a < b and b > c [1]", "a < b and b > c [1]"),
    ],
)
def test_own_answer_is_outside_thinking_and_within_the_turn(text: str, answer: str | None) -> None:
    assert own_answer(text) == answer


@pytest.mark.parametrize(("text", "answer"), [("5</think>7", "7"), ("It is 7", None), ("", None)])
def test_own_answer_of_a_thought_that_the_prompt_opened_begins_behind_it(
    text: str, answer: str | None
) -> None:
    assert own_answer(text, opened=True) == answer


def test_grade_of_a_thought_that_never_ends_is_truncated() -> None:
    text = r"So \boxed{7}."
    opened = grade(text, SEVEN, read_last=True, thinking_opened=True)
    assert (opened.verdict, opened.read_as) == (Verdict.TRUNCATED, ReadAs.NOTHING)
    assert grade(text, SEVEN, read_last=True).verdict == Verdict.CORRECT
    closed = grade(f"Hm.</think>{text}", SEVEN, read_last=True, thinking_opened=True)
    assert closed.verdict == Verdict.CORRECT
