"""Graders that a question names itself: a user's function, and the scorers of `reasoning_gym`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.own_code import check_function
from evaluation.extraction.answer_extraction import ReadAs, find_answer
from evaluation.extraction.custom_grader import load_grader, read_grader
from evaluation.extraction.reasoning_gym import FAMILY_GRADER, MAX_ANSWER_LENGTH, family_data
from evaluation.extraction.sandbox import Calculator
from evaluation.grader import Grade, Verdict, grade
from evaluation.question import Question

CORRECT, WRONG = Verdict.CORRECT, Verdict.WRONG


def is_even(text: str, question: Question, *, read_last: bool, finished: bool) -> Grade:
    """A user's grader: any even number is right."""
    read_as, answer = find_answer(text, last=read_last, finished=finished)
    if answer is None:
        return Grade(None, Verdict.NO_ANSWER, ReadAs.NOTHING)
    return Grade(answer, WRONG if int(answer) % 2 else CORRECT, read_as)


EVEN = Question("t/0", "t", "test", "in_domain", "Even?", "2", "text", grader=f"{__name__}:is_even")


def test_grade_by_own_grader_sees_the_text_without_its_thinking() -> None:
    text = r"<think>\boxed{3}</think>\boxed{8}"
    assert grade(text, EVEN, read_last=False) == Grade("8", CORRECT, ReadAs.BOXED)
    assert grade("It is\n7", EVEN, read_last=True) == Grade("7", WRONG, ReadAs.LAST)
    assert grade(r"<think>\boxed{8}", EVEN, read_last=True).verdict == Verdict.TRUNCATED


def test_grade_by_own_grader_that_raises_is_a_fault() -> None:
    with pytest.raises(ValueError, match="eight"):
        grade(r"\boxed{eight}", EVEN, read_last=False)


@pytest.mark.parametrize(
    ("text", "read_as", "answer"),
    [
        (r"\boxed{7} and then \boxed{ }", ReadAs.BOXED, "7"),
        (r"It is not \boxed{5}.", ReadAs.LAST, None),
        ("<answer>\n1 2\n3 4\n</answer> Bye.", ReadAs.PHRASE, "1 2\n3 4"),
        ("The answer:\n1 2\n3 4", ReadAs.PHRASE, "1 2\n3 4"),
        ("#### 1 2\n3 4", ReadAs.PHRASE, "1 2\n3 4"),
        ("The answer is 7 hens.\nBye", ReadAs.PHRASE, "7 hens"),
        ("The answer is 7.\nThe answer is below.", ReadAs.PHRASE, "7"),
        ("Answer: 7\nAnswer: we need more.", ReadAs.PHRASE, "7"),
        ("If the answer is 5, we are wrong.", ReadAs.LAST, None),
        ("Answer:\n", ReadAs.LAST, None),
    ],
)
def test_find_answer_keeps_the_lines_of_what_was_clearly_answered(
    text: str, read_as: ReadAs, answer: str | None
) -> None:
    assert find_answer(text, last=False, finished=True) == (read_as, answer)


def takes_too_little(text: str) -> Grade:
    """A function that is no grader."""
    raise NotImplementedError


def says_yes(text: str, question: Question, *, read_last: bool, finished: bool) -> Any:
    """A grader that returns what is no grade."""
    return True


def test_grade_by_own_grader_that_returns_no_grade_is_a_fault() -> None:
    question = replace(EVEN, grader=f"{__name__}:says_yes")
    with pytest.raises(TypeError, match="says_yes returned True, which is not a Grade"):
        grade(r"\boxed{8}", question, read_last=False)


def test_load_grader_whose_module_is_broken_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_a_grader.py").write_text("def grade(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"half_a_grader\.py, line 1"):
        load_grader("half_a_grader:grade")


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("no_colon", "names no function"),
        ("", "names no function"),
        (":function", "names no function"),
        (".module:function", "names no function"),
        ("package.module:", "names no function"),
        ("my module:function", "names no function"),
        (f"{__name__}:takes_too_little", "has other parameters"),
        ("no_such_package.module:function", "cannot be imported"),
        (f"{__name__}:missing", "has no function 'missing'"),
        (f"{__name__}:EVEN", "is not a function"),
    ],
)
def test_load_grader_of_a_wrong_path_says_what_is_wrong(path: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        load_grader(path)


def test_read_grader_of_a_file_that_is_not_there_names_the_grader(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^the grader '.*gone\.py:grade': .*gone\.py"):
        read_grader(f"{tmp_path}/gone.py:grade")


def family_question(family: str, **settings: Any) -> Question:
    """The first question of a family's stream."""
    from reasoning_gym.factory import create_dataset

    entry = create_dataset(family, **settings, seed=5, size=3)[0]
    return replace(
        EVEN,
        question=entry["question"],
        answer=entry["answer"],
        grader=FAMILY_GRADER,
        grader_data=family_data(family, settings, entry),
    )


def judged(question: Question, answer: str) -> Verdict:
    return grade(rf"So \boxed{{{answer}}}.", question, read_last=False).verdict


# Boards of several lines, several right answers, numbers as keys, settings, arithmetic.
FAMILIES = [
    "countdown",
    "mini_sudoku",
    "word_ladder",
    "shortest_path",
    "advanced_geometry",
    "knights_knaves",
    "polynomial_multiplication",
    "simple_integration",
    "spiral_matrix",
    "basic_arithmetic",
    "zebra_puzzles",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_grade_by_family_takes_the_answer_and_no_other(family: str) -> None:
    question = family_question(family)
    assert judged(question, question.answer) == CORRECT
    assert judged(question, "elephants") == WRONG


def test_grade_by_family_of_no_answer_and_of_an_endless_one_needs_no_scorer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Calculator, "ask", lambda *_: pytest.fail("the scorer was asked"))
    question = replace(EVEN, grader=FAMILY_GRADER, grader_data="{}")
    for finished, verdict in ((True, Verdict.NO_ANSWER), (False, Verdict.TRUNCATED)):
        said = grade("Hm.", question, read_last=False, finished=finished)
        assert (said.predicted, said.verdict) == (None, verdict)
    assert judged(question, "9\n" * MAX_ANSWER_LENGTH) == WRONG


def test_grade_by_family_takes_another_right_answer() -> None:
    question = family_question("simple_integration")
    assert judged(question, f"7 + {question.answer}") == CORRECT
    assert judged(question, f"X + {question.answer}") == WRONG


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        ("countdown", "9**9**9**9**9"),
        ("countdown", "(" * 5000),
        ("countdown", "().__class__.__base__.__subclasses__()"),
        ("polynomial_multiplication", "(x+1)**99999999"),
        ("simple_integration", "__import__('os').abort()"),
        ("spiral_matrix", "[__import__('os').abort()]"),
        ("n_queens", "[[9**9**9**9]]"),
        ("shortest_path", "(" * 3000),
        ("mini_sudoku", "\ud800\0"),
    ],
)
def test_grade_by_family_of_a_hostile_answer_is_not_right(family: str, answer: str) -> None:
    assert judged(family_question(family), answer) != CORRECT


@pytest.mark.parametrize(
    ("family", "right", "wrong"),
    [
        ("coin_flip", r"\frac{7}{128}", "0.0"),
        ("countdown", "7 + 8", "15"),
        ("game_of_life", "[[0, 1], [1, 0]]", "[[0, 1], [1, 0], [1, 1]]"),
        ("number_sorting", "['1.5', '2']", "['1.5', '2.5']"),
        ("puzzle24", r"(9 - 5) \times (7 - 1)", "6 * 4 * 1 * 1"),
        ("puzzle24", "(9 - 5) * (7 - 1)", "9 + 5 + 7 + 1**9 + 2"),
    ],
)
def test_grade_by_family_is_stricter_than_a_scorer_that_takes_wrong_answers(
    family: str, right: str, wrong: str
) -> None:
    metadata = {
        "coin_flip": {"rational": {"numerator": 7, "denominator": 128}},
        "countdown": {"numbers": [7, 8], "target": 15},
        "number_sorting": {"direction": "ascending"},
        "puzzle24": {"numbers": [1, 5, 7, 9]},
    }.get(family, {})
    truth = {"coin_flip": "0.0546875"}.get(family, right)
    entry = {"question": "?", "answer": truth, "metadata": metadata}
    question = replace(EVEN, grader=FAMILY_GRADER, grader_data=family_data(family, {}, entry))
    assert judged(question, right) == CORRECT
    assert judged(question, wrong) == WRONG


def test_family_data_of_what_no_literal_holds_is_refused() -> None:
    entry = {"question": "?", "answer": "1", "metadata": {"value": object()}}
    with pytest.raises(ValueError, match="leave its scorer out"):
        family_data("countdown", {}, entry)


def test_function_that_shows_no_parameters_is_taken_as_it_is() -> None:
    """Some that are written in C show none."""
    assert check_function(dict, "the grader 'builtins:dict'", "f(text)", "text") is dict
    with pytest.raises(InputError, match="has other parameters"):
        check_function(len, "the grader 'builtins:len'", "f(text, truth)", "text", "truth")
