r"""What the grader reads and how it judges: a table of texts, and texts made to break it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.grader import (
    MAX_NUMBER_LENGTH,
    Grade,
    ReadAs,
    Verdict,
    canonical_answer,
    grade,
    same_answer,
)
from evaluation.question import AnswerType, Question
from tests.conftest import SHARED_DATA, boxed_truth
from tests.evaluation.grading_table import (
    BOOLEAN_CASES,
    BOXED,
    CHOICE_CASES,
    CORRECT,
    ERROR,
    FRUITS,
    KNOWN_REJECTS,
    LAST,
    MATH_CASES,
    NO_ANSWER,
    NOTHING,
    NUMBER_BOXES,
    NUMBER_TEXTS,
    PLANTS,
    TEXT_CASES,
    TRUNCATED,
    WRONG,
    Case,
)

TABLE: dict[AnswerType, list[Case]] = {
    "number": NUMBER_BOXES + NUMBER_TEXTS,
    "choice": CHOICE_CASES,
    "boolean": BOOLEAN_CASES,
    "text": TEXT_CASES,
    "math": MATH_CASES,
}


def question_of(
    answer: str, answer_type: AnswerType = "number", choices: tuple[str, ...] = ()
) -> Question:
    return Question("t/test/0", "t", "test", "in_domain", "Which?", answer, answer_type, choices)


def grade_case(case: Case, answer_type: AnswerType) -> Grade:
    question = replace(question_of(case.answer, answer_type, case.choices), aliases=case.aliases)
    return grade(case.text, question, read_last=case.read_last, finished=case.finished)


@pytest.mark.parametrize(
    ("answer_type", "case"),
    [
        pytest.param(kind, case, id=f"{kind}: {case.name[:60]}")
        for kind, cases in TABLE.items()
        for case in cases
    ],
)
def test_grade_text_is_read_and_judged_as_a_person_would(
    answer_type: AnswerType, case: Case
) -> None:
    result = grade_case(case, answer_type)
    expected = WRONG if case.name in KNOWN_REJECTS else case.verdict
    assert (result.verdict, result.read_as) == (expected, case.read_as), result


def real_outputs() -> Iterator[tuple[AnswerType, Case]]:
    """What SmolLM2-135M-Instruct wrote at temperature 0.7, with a person's verdicts."""
    path = Path(__file__).with_name("real_outputs.jsonl")
    for number, line in enumerate(path.read_text(encoding="utf-8").strip().split("\n")):
        row = json.loads(line)
        kind = row.pop("answer_type")
        verdict, read_as = Verdict(row.pop("verdict")), ReadAs(row.pop("read_as"))
        case = Case(f"output {number}", verdict=verdict, read_as=read_as, read_last=True, **row)
        yield kind, case


@pytest.mark.parametrize(("answer_type", "case"), real_outputs())
def test_grade_real_output_is_judged_as_a_person_would(answer_type: AnswerType, case: Case) -> None:
    result = grade_case(case, answer_type)
    assert (result.verdict, result.read_as) == (case.verdict, case.read_as), result


def test_grade_table_is_large_and_its_known_rejects_few() -> None:
    cases = [case for cases in TABLE.values() for case in cases]
    right = [case for case in cases if case.verdict == CORRECT]
    assert len(cases) >= 400
    assert {case.name for case in right} >= set(KNOWN_REJECTS)
    assert len(KNOWN_REJECTS) <= 0.01 * len(right)


@pytest.mark.parametrize(
    ("text", "question", "predicted"),
    [
        (r"\boxed{1{,}000.50}", question_of("1"), "1000.5"),
        (r"\boxed{-.5}", question_of("1"), "-0.5"),
        (r"\boxed{2/6}", question_of("1"), "1/3"),
        (r"\boxed{50\%}", question_of("1"), "50%"),
        (r"\boxed{some apples}", question_of("1"), "some apples"),
        (r"\boxed{(b) banana}", question_of("A", "choice", FRUITS), "B"),
        (r"\boxed{banana}", question_of("A", "choice", FRUITS), "B"),
        (r"\boxed{True}", question_of("no", "boolean"), "yes"),
        (r"\boxed{\text{ June }.}", question_of("May", "text"), "June"),
        ("Hm.", question_of("1"), None),
    ],
)
def test_grade_prediction_is_shown_in_canonical_form(
    text: str, question: Question, predicted: str | None
) -> None:
    assert grade(text, question, read_last=False).predicted == predicted


def test_grade_prediction_without_truth_can_still_be_counted() -> None:
    assert grade(r"\boxed{7}", question_of(""), read_last=False) == Grade(
        "7", Verdict.UNLABELLED, BOXED
    )


@pytest.mark.parametrize(
    ("answer", "answer_type", "choices", "canonical"),
    [
        ("72", "number", (), "72"),
        (" 1,000.50 ", "number", (), "1000.5"),
        ("$-3", "number", (), "-3"),
        (r"\frac{1}{4}", "number", (), "0.25"),
        ("50%", "number", (), "50"),
        ("2/6", "number", (), "1/3"),
        (r" \frac{1}{2} ", "math", (), r"\frac{1}{2}"),
        ("b", "choice", FRUITS, "B"),
        ("(b)", "choice", FRUITS, "B"),
        ("banana", "choice", FRUITS, "B"),
        ("D", "choice", ("D", "C", "B", "A"), "D"),
        ("TRUE", "boolean", (), "yes"),
        ("No.", "boolean", (), "no"),
        ("  June 5 ", "text", (), "June 5"),
    ],
)
def test_canonical_answer_of_its_type_has_one_form(
    answer: str, answer_type: AnswerType, choices: tuple[str, ...], canonical: str
) -> None:
    assert canonical_answer(answer, answer_type, choices) == canonical
    assert canonical_answer(canonical, answer_type, choices) == canonical


@pytest.mark.parametrize(
    ("answer", "answer_type", "choices", "remedy"),
    [
        ("twelve apples", "number", (), "write digits only"),
        ("3 to 4", "number", (), "write digits only"),
        ("1/0", "number", (), "write digits only"),
        ("9" * (MAX_NUMBER_LENGTH + 1), "number", (), "write digits only"),
        ("E", "choice", FRUITS, "write its letter"),
        ("sky", "choice", PLANTS, "write its letter"),
        ("A", "choice", (), "write its letter"),
        ("maybe", "boolean", (), "write yes, no"),
        ("", "text", (), "every question"),
        ("  ", "number", (), "every question"),
    ],
)
def test_canonical_answer_of_another_type_is_refused_with_what_to_do(
    answer: str, answer_type: AnswerType, choices: tuple[str, ...], remedy: str
) -> None:
    with pytest.raises(ValueError, match=remedy):
        canonical_answer(answer, answer_type, choices)


@pytest.mark.parametrize(
    ("question", "box"),
    [
        (question_of("72"), r"\boxed{72}"),
        (question_of("B", "choice", FRUITS), r"\boxed{B}"),
        (question_of("yes", "boolean"), r"\boxed{yes}"),
        (question_of("June", "text"), r"\boxed{June}"),
        (question_of(r"\frac{\pi}{2}", "text"), r"\boxed{\frac{\pi}{2}}"),
        (question_of("} ]", "text"), r"\boxed{\} ]}"),
    ],
)
def test_boxed_answer_of_a_question_is_graded_correct(question: Question, box: str) -> None:
    assert boxed_truth(question) == box
    assert grade(box, question, read_last=False).verdict == CORRECT


QUESTIONS = [
    question_of("5"),
    question_of("B", "choice", FRUITS),
    question_of("yes", "boolean"),
    question_of("} ] June", "text"),
    question_of(r"\frac{\pi}{2}", "math"),
    question_of("", "text"),
]
NASTY = {
    "digits": "9" * 5_000,
    "boxed digits": rf"\boxed{{{'9' * 5_000}}}",
    "grouped digits": rf"\boxed{{1{',111' * 400}0}}",
    "many groups": "1" + ",111" * 25_000,
    "zero groups": "The answer is " + "1 000" * 20_000,
    "tower": r"\boxed{10^10^10^10}",
    "huge exponent": r"\boxed{1e999999999}",
    "huge power": r"The answer is 3 \times 10^{99999999999}",
    "long exponent": rf"\boxed{{1e{'9' * 900}}}",
    "tiny": r"\boxed{1e-400}",
    "long decimals": rf"\boxed{{0.{'3' * 900}e-400}}",
    "nested braces": r"\boxed{" * 500 + "5" + "}" * 500,
    "open braces": "{" * 100_000,
    "open boxes": r"\boxed{" * 20_000,
    "empty boxes": r"\boxed{}" * 20_000,
    "closing braces": r"\boxed{5" + "}" * 100_000,
    "backslashes": r"\boxed{" + "\\" * 99_999,
    "open thoughts": "<think>" * 20_000 + "</think>",
    "closed thoughts": "</think>" * 20_000,
    "phrases": "the answer is " * 10_000,
    "phrases with to": "answer to " * 10_000,
    "stars": "The answer is " + "*" * 100_000,
    "spaces": "Answer:" + " " * 100_000,
    "line breaks": "Answer:" + "\n" * 100_000,
    "fractions": r"\boxed{" + r"\frac{" * 300 + "}" * 300 + "}",
    "texts": r"\boxed{" + r"\text{" * 300 + "}" * 300 + "}",
    "equals": rf"\boxed{{{'=' * 1_900}}}",
    "slashes": rf"\boxed{{{'1/' * 900}}}",
    "minus signs": rf"\boxed{{{'-' * 1_900}5}}",
    "letters": "(A) " * 25_000,
    "options": "apple " * 20_000,
    "words": "no yes " * 20_000,
    "surrogates": "\ud800\\boxed{\udfff}",
    "nul": "\0\\boxed{\0}",
    "other digits": "\\boxed{٣²½Ⅷ}",
    "box at the end": "\\boxed",
    "bare brace at the end": "\\boxed{",
}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY.keys())
def test_grade_nasty_text_never_raises_or_matches(text: str) -> None:
    for question in QUESTIONS:
        for read_last in (False, True):
            result = grade(text, question, read_last=read_last)
            assert isinstance(result.verdict, Verdict)
            assert result.verdict != ERROR or not question.answer


PIECES = [
    r"\boxed{", "}", "{", "\\", r"\frac", "12", "1,000", ".", "-", "%", " ", "\n", "=", "/", "^",
    "the answer is ", "Answer:", "####", "**", "$", "yes", "no", "(B)", "B", "apple", "<think>",
    "</think>", r"\text{", "10^", "e9", "½", "\u2212", "٣", "\ud83d", "because", "million", "~",
]  # fmt: skip


def random_texts(count: int) -> Iterator[str]:
    draw = random.Random(7)
    for _ in range(count):
        pieces = draw.choices(PIECES, k=draw.randrange(1, 25))
        noise = [chr(draw.randrange(0x110000)) for _ in range(draw.randrange(5))]
        yield "".join(draw.sample(pieces + noise, len(pieces) + len(noise)))


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.answer_type)
def test_grade_random_text_never_raises_and_keeps_its_invariants(question: Question) -> None:
    # Formulas that differ are compared in a child process, thirty times more slowly.
    for text in random_texts(300 if question.answer_type == "math" else 3_000):
        for finished in (True, False):
            result = grade(text, question, read_last=True, finished=finished)
            assert (result.read_as == NOTHING) == (result.predicted is None)
            assert (result.read_as == NOTHING) == (result.verdict in (NO_ANSWER, TRUNCATED))
            assert finished or result.read_as != LAST


RIGHT = [(kind, case) for kind, cases in TABLE.items() for case in cases if case.verdict == CORRECT]
SURROUNDINGS = {
    "spaces": lambda box: f"  \n\n {box} \t\n",
    "line feeds of Windows": lambda box: f"Well.\r\n\r\n{box}\r\n",
    "bold": lambda box: f"So **{box}**.",
    "italics": lambda box: f"So *{box}*.",
    "underscores": lambda box: f"So __{box}__.",
    "dollars": lambda box: f"So ${box}$.",
    "display": lambda box: f"\\[\n{box}\n\\]",
    "heading": lambda box: f"### Answer\n\n{box}",
    "bullet": lambda box: f"- {box}",
    "quote": lambda box: f"> {box}",
    "code": lambda box: f"`{box}`",
    "after thinking": lambda box: f"<think>\\boxed{{0}} no</think>{box}",
}
INSIDE = {
    "spaces": lambda answer: f"  {answer} ",
    "bold": lambda answer: f"**{answer}**",
    "text": lambda answer: answer if set("{}\\") & set(answer) else f"\\text{{{answer}}}",
    "full stop": lambda answer: f"{answer}.",
}


@pytest.mark.parametrize("around", SURROUNDINGS.values(), ids=SURROUNDINGS.keys())
@pytest.mark.parametrize("inside", INSIDE.values(), ids=INSIDE.keys())
def test_canonical_answer_in_any_dress_is_graded_correct(
    around: Callable[[str], str], inside: Callable[[str], str]
) -> None:
    for kind, case in RIGHT:
        if set(case.answer) & set("[]():;") or "\\text" in case.answer:
            continue  # their own ends could not be told from the dress
        question = question_of(case.answer, kind, case.choices)
        canonical = canonical_answer(case.answer, kind, case.choices)
        text = around(rf"\boxed{{{inside(canonical)}}}")
        assert grade(text, question, read_last=False).verdict == CORRECT, (kind, text)


def test_same_answer_of_equal_forms_is_one_vote() -> None:
    number, formula = question_of("5"), question_of("5", "math")
    assert same_answer("1/2", "0.5", number)
    assert same_answer(r"2\pi + 1", r"1 + 2\pi", formula)
    assert same_answer("B", "b", question_of("A", "choice", FRUITS))
    assert same_answer("some text", "some text", number)
    assert not same_answer("0.5", "0.6", number)
    assert not same_answer("some text", "other text", number)
    assert not same_answer(r"2\pi", r"\pi", formula)


def test_boxed_answer_of_random_text_is_graded_correct() -> None:
    for text in random_texts(2_000):
        # Escaping a loose brace unmakes a LaTeX command, and a box is no answer within a box.
        if "think>" in text or "box" in text or r"\text" in text or not re.search(r"\w\w", text):
            continue
        question = question_of(text, "text")
        result = grade(boxed_truth(question), question, read_last=False)
        assert result.verdict == CORRECT, text


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the benchmark files are not here")
@pytest.mark.parametrize("path", sorted(SHARED_DATA.glob("*.jsonl")), ids=lambda path: path.stem)
def test_boxed_answer_of_every_benchmark_row_is_graded_correct(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").strip().split("\n"):
        row = json.loads(line)
        choices = tuple(row["choices"] or ())
        question = question_of(row["answer"], row["answer_type"], choices)
        assert canonical_answer(row["answer"], row["answer_type"], choices) == row["answer"].strip()
        result = grade(boxed_truth(question), question, read_last=False)
        assert (result.verdict, result.read_as) == (CORRECT, BOXED), row["id"]
