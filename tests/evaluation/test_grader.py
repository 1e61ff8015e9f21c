r"""What the grader reads and how it judges: a table of texts, and texts made to break it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from evaluation.grader import (
    MAX_NUMBER_LENGTH,
    Grade,
    ReadAs,
    Verdict,
    boxed_answer,
    canonical_answer,
    grade,
)
from evaluation.question import AnswerType, Question

CORRECT, WRONG = Verdict.CORRECT, Verdict.WRONG
NO_ANSWER, TRUNCATED, ERROR = Verdict.NO_ANSWER, Verdict.TRUNCATED, Verdict.ERROR
BOXED, PHRASE, LAST, NOTHING = ReadAs.BOXED, ReadAs.PHRASE, ReadAs.LAST, ReadAs.NOTHING

FRUITS = ("apple", "banana", "a dog", "cherry pie")
PEOPLE = ("Grant", "B. Franklin", "A. Lincoln", "None of these")
PRICES = ("$61", "65 m", "67.40", "1,200 Rs", "None of these")
GENES = ("CC or Cc", "Cc or cc", "CC only", "Cc only")
PLANTS = ("sky", "roots", "sky", "leaves")
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


class Case(NamedTuple):
    """One row of the table; the name says what the row is there for."""

    name: str
    text: str
    answer: str
    verdict: Verdict
    read_as: ReadAs
    choices: tuple[str, ...] = ()
    read_last: bool = False
    finished: bool = True


def question_of(
    answer: str, answer_type: AnswerType = "number", choices: tuple[str, ...] = ()
) -> Question:
    return Question("t/test/0", "t", "test", "in_domain", "Which?", answer, answer_type, choices)


def check(case: Case, answer_type: AnswerType) -> None:
    question = question_of(case.answer, answer_type, case.choices)
    result = grade(case.text, question, read_last=case.read_last, finished=case.finished)
    assert (result.verdict, result.read_as) == (case.verdict, case.read_as), result


def named(cases: list[Case]) -> list[Any]:
    return [pytest.param(case, id=case.name) for case in cases]


def boxed(answer: str, content: str, verdict: Verdict, choices: tuple[str, ...] = ()) -> Case:
    name = f"{content} for {answer}"
    return Case(name, rf"So it is \boxed{{{content}}}.", answer, verdict, BOXED, choices)


NUMBER_BOXES = [
    # What the released code got wrong.
    boxed("5", "-5", WRONG),
    boxed("-3", "-35", WRONG),
    boxed("1", r"\frac{1}{2}", WRONG),
    boxed("3", "3 + 4 = 7", WRONG),
    boxed("7", "3 + 4 = 7", CORRECT),
    boxed("205", "20.05", WRONG),
    boxed("0.5", r"\frac{1}{2}", CORRECT),
    boxed("0.5", r"50\%", CORRECT),
    boxed("1000", "1{,}000", CORRECT),
    # Signs.
    boxed("-5", "-5", CORRECT),
    boxed("-5", "\N{MINUS SIGN}5", CORRECT),
    boxed("-5", "- 5", CORRECT),
    boxed("-5", r"-\$5", CORRECT),
    boxed("5", "+5", CORRECT),
    boxed("-0.5", r"-\frac{1}{2}", CORRECT),
    boxed("0", "-0", CORRECT),
    # Thousands.
    boxed("1000", "1,000", CORRECT),
    boxed("1000", r"1\,000", CORRECT),
    boxed("1000", "1 000", CORRECT),
    boxed("1000", r"1,\!000", CORRECT),
    boxed("1234567", "1,234,567", CORRECT),
    boxed("12", "1,2", WRONG),
    boxed("10000", "1,0000", WRONG),
    boxed("1234567", "1234,567", WRONG),
    # Decimals and fractions, without any tolerance.
    boxed("0.5", ".5", CORRECT),
    boxed("5", "5.00", CORRECT),
    boxed("5", "5.", CORRECT),
    boxed("3.14159", "3.14", WRONG),
    boxed("0.3333", r"\frac{1}{3}", WRONG),
    boxed("0.5", r"\dfrac{1}{2}", CORRECT),
    boxed("0.5", r"\tfrac12", CORRECT),
    boxed("0.5", "1/2", CORRECT),
    boxed("-0.5", r"\frac{-1}{2}", CORRECT),
    boxed("1.5", "1 1/2", CORRECT),
    boxed("1.5", r"1\frac{1}{2}", CORRECT),
    boxed("1.5", "1½", CORRECT),
    boxed("5", "10/2", CORRECT),
    boxed("5", "5/0", WRONG),
    boxed("1", r"\frac{\sqrt{1}}{2}", WRONG),
    # Percent.
    boxed("50", r"50\%", CORRECT),
    boxed("50", "50 percent", CORRECT),
    boxed("50", "0.5", WRONG),
    boxed("5", r"50\%", WRONG),
    # Powers of ten.
    boxed("1500", "1.5e3", CORRECT),
    boxed("1500", r"1.5 \times 10^3", CORRECT),
    boxed("0.0015", r"1.5 \times 10^{-3}", CORRECT),
    boxed("100000", "10^5", CORRECT),
    boxed("5000000", "5 million", CORRECT),
    boxed("5", "5 million", WRONG),
    # Units, money, markup.
    boxed("72", r"\$72", CORRECT),
    boxed("72", "72 dollars", CORRECT),
    boxed("72", r"72 \text{ apples}", CORRECT),
    boxed("72", r"\textbf{\text{72}}", CORRECT),
    boxed("72", "72km", CORRECT),
    boxed("72", r"72 \text{ km/h}", CORRECT),
    boxed("72", r"72 \text{ cm}^2", CORRECT),
    boxed("72", "Rs. 72", CORRECT),
    boxed("72", "€72", CORRECT),
    boxed("72", "**72**", CORRECT),
    boxed("72", "{72}", CORRECT),
    boxed("72", r"72^\circ", CORRECT),
    boxed("72", "72 clips in 2 months", CORRECT),
    boxed("72", r"\text{Natalia sold } 72 \text{ clips}", CORRECT),
    # Results of equations.
    boxed("5", "x = 5", CORRECT),
    boxed("5", r"x \approx 5", CORRECT),
    boxed("3", "x = 5, y = 3", WRONG),
    boxed("1000", "10 * 100 = 1,000", CORRECT),
    # More than one number, or one that something else changes.
    boxed("3", "3 + 4", WRONG),
    boxed("5", "5 to 10", WRONG),
    boxed("10", "5-10", WRONG),
    boxed("5", "5:30", WRONG),
    boxed("3", "(3, 4)", WRONG),
    boxed("5", "5x", WRONG),
    boxed("5", "5x.", WRONG),
    boxed("2", r"2\sqrt{3}", WRONG),
    boxed("8", r"8\pi", WRONG),
    boxed("5", "x > 5", WRONG),
    boxed("8", "2^8", WRONG),
    boxed("23", "2**3", WRONG),
    boxed("12", "12 apples and 3 pears", WRONG),
    boxed("10", "10^10^10^10", WRONG),
    boxed("72", "apples", WRONG),
    boxed("5", "five", WRONG),
]

NUMBER_TEXTS = [
    Case("last box", r"\boxed{3} and then \boxed{72}", "72", CORRECT, BOXED),
    Case("first box right", r"\boxed{72} and then \boxed{3}", "72", WRONG, BOXED),
    Case("same box thrice", r"\boxed{72} \boxed{72} \boxed{72}", "72", CORRECT, BOXED),
    Case("empty last box", r"\boxed{72} so \boxed{}", "72", CORRECT, BOXED),
    Case("blank last box", r"\boxed{72} so \boxed{\text{ }}", "72", CORRECT, BOXED),
    Case("only empty box", r"\boxed{}", "72", NO_ANSWER, NOTHING),
    Case("box in box", r"\boxed{\boxed{72}}", "72", CORRECT, BOXED),
    Case("bare box", r"We get \boxed 72.", "72", CORRECT, BOXED),
    Case("bare box in dollars", r"We get $\boxed 72$.", "72", CORRECT, BOXED),
    Case("fbox", r"\fbox{72}", "72", CORRECT, BOXED),
    Case("space before brace", r"\boxed {72}", "72", CORRECT, BOXED),
    Case("box without backslash", "So boxed{72}", "72", CORRECT, BOXED),
    Case("boxed in prose", "She boxed 5 apples.", "5", NO_ANSWER, NOTHING),
    Case("box mentioned", r"I put it in \boxed form later.", "5", NO_ANSWER, NOTHING),
    Case("box over phrase", r"\boxed{72}. The answer is 3.", "72", CORRECT, BOXED),
    Case("box cut off", r"The final answer is \boxed{7", "7", TRUNCATED, NOTHING, finished=False),
    Case("box never closed", r"The final answer is $\boxed{72$.", "72", CORRECT, PHRASE),
    Case("box before the cut", r"\boxed{72} Now", "72", CORRECT, BOXED, finished=False),
    Case("phrase before the cut", "The answer is 72. Now", "72", CORRECT, PHRASE, finished=False),
    Case("wrong before the cut", r"\boxed{71} Now", "72", WRONG, BOXED, finished=False),
    Case("the answer is", "The answer is 72.", "72", CORRECT, PHRASE),
    Case("the final answer is", "So, the final answer is 12 apples.", "12", CORRECT, PHRASE),
    Case("the correct answer is:", "The correct answer is: 72", "72", CORRECT, PHRASE),
    Case("Answer:", "Answer: 72", "72", CORRECT, PHRASE),
    Case("answer =", "answer = 72", "72", CORRECT, PHRASE),
    Case("should be", "Therefore the answer should be 72", "72", CORRECT, PHRASE),
    Case("four hashes", "48 + 24 = 72\n#### 72", "72", CORRECT, PHRASE),
    Case("hashes, money", "#### $1,072", "1072", CORRECT, PHRASE),
    Case("hashes, heading", "#### 1. Set up the sum\nThen add.", "1", NO_ANSWER, NOTHING),
    Case("hashes, step", "#### Step 1\nThe answer is 72\n#### Step 2", "72", CORRECT, PHRASE),
    Case("bold phrase", "**Answer:** 72", "72", CORRECT, PHRASE),
    Case("bold word", "**Answer**: **72**", "72", CORRECT, PHRASE),
    Case("bold value", "The answer is **72**.", "72", CORRECT, PHRASE),
    Case("star value", "The answer is *72*.", "72", CORRECT, PHRASE),
    Case("dollar signs", "The answer is $72$.", "72", CORRECT, PHRASE),
    Case("display", "The answer is:\n\n\\[\n72\n\\]", "72", NO_ANSWER, NOTHING),
    Case("display, one line", "The answer is:\n\n\\[ 72 \\]", "72", CORRECT, PHRASE),
    Case("next line", "The final answer is:\n\n**72**", "72", CORRECT, PHRASE),
    Case("heading", "### Final Answer\n\n72 clips", "72", CORRECT, PHRASE),
    Case("sum after phrase", "The answer is 48 + 24 = 72.", "72", CORRECT, PHRASE),
    Case("no sum value", "The answer is 48 + 24", "48", WRONG, PHRASE),
    Case("last phrase", "The answer is 3. Wait, the answer is 72.", "72", CORRECT, PHRASE),
    Case("no value", "The answer is 72.\nThe answer is as follows", "72", CORRECT, PHRASE),
    Case("only no value", "The answer is as follows.", "72", NO_ANSWER, NOTHING),
    Case("is not", "The answer is 72. The answer is not 3.", "72", CORRECT, PHRASE),
    Case("because", "The answer is 72 because 24 * 3 is 72.", "72", CORRECT, PHRASE),
    Case("bracket", "The answer is 72 (48 in April and 24 in May).", "72", CORRECT, PHRASE),
    Case("next sentence", "The answer is 72. She sold 48 in April.", "72", CORRECT, PHRASE),
    Case("to the question", "The answer to the question is 72.", "72", CORRECT, PHRASE),
    Case("adverb", "The answer, therefore, is 72 clips over 2 months.", "72", CORRECT, PHRASE),
    Case("minus", "The answer is minus 5.", "5", WRONG, PHRASE),
    Case("upper case", "FINAL ANSWER: 72", "72", CORRECT, PHRASE),
    Case("derivation", "Answer: Let's add 3 and 4.\nIt is 7", "7", CORRECT, LAST, (), True),
    Case("steps below", "Answer:\nFirst we add 3 to 4.\nIt is 7", "7", CORRECT, LAST, (), True),
    Case("last number", "3 and 4 make 7 apples.", "7", CORRECT, LAST, (), True),
    Case("last, wrong", "7 is what 3 and 4 make, I did it in 2 steps", "7", WRONG, LAST, (), True),
    Case("last, not asked", "3 and 4 make 7.", "7", NO_ANSWER, NOTHING),
    Case("last, cut", "3 and 4 make 7", "7", TRUNCATED, NOTHING, (), True, False),
    Case("last, bullet", "So:\n- 72 clips", "72", CORRECT, LAST, (), True),
    Case("last, negative", "We get\n-72", "-72", CORRECT, LAST, (), True),
    Case("last, range", "from 10-5", "5", CORRECT, LAST, (), True),
    Case("last, fraction", r"It is $\frac{3}{4}$ of a cup!", "0.75", CORRECT, LAST, (), True),
    Case("last, sentence after", "It is 72.\n\nI hope this helps!", "72", CORRECT, LAST, (), True),
    Case("last, nothing", "I do not know.", "72", NO_ANSWER, NOTHING, (), True),
    Case("nothing at all", "", "72", NO_ANSWER, NOTHING, (), True),
    Case("nothing, cut", "", "72", TRUNCATED, NOTHING, finished=False),
    Case("thinking", r"<think>\boxed{3}</think>\boxed{72}", "72", CORRECT, BOXED),
    Case("only thinking", r"<think>\boxed{72}</think>", "72", NO_ANSWER, NOTHING, (), True),
    Case("still thinking", r"<think>\boxed{72}", "72", TRUNCATED, NOTHING),
    Case("thinks again", r"\boxed{72}<think>no</think>\boxed{3}<think>", "72", TRUNCATED, NOTHING),
    Case("opened in prompt", r"\boxed{3}</think>\boxed{72}", "72", CORRECT, BOXED),
    Case(
        "two thoughts", r"<think>a</think>\boxed{72}<think>\boxed{3}</think>", "72", CORRECT, BOXED
    ),
    Case("empty truth", r"\boxed{72}", "", ERROR, BOXED),
    Case("no truth of its type", r"\boxed{72}", "twelve apples", ERROR, BOXED),
    Case(
        "rambling",
        "Let's see. She has 3 bags with 4 apples. 3*4=12. So the answer is 12 apples. "
        "Is it? 3 bags, yes.\n\n**Final answer:** She has **12 apples** in 3 bags.",
        "12",
        CORRECT,
        PHRASE,
    ),
    Case(
        "steps and box",
        "### Step 1: Count\n$3 \\times 4 = 12$\n\n### Step 2: Answer\n\\[\n\\boxed{12}\n\\]",
        "12",
        CORRECT,
        BOXED,
    ),
    Case(
        "program",
        "```python\nanswer = 3 * 4\nprint(answer)\n```\nThe answer is `12`.",
        "12",
        CORRECT,
        PHRASE,
    ),
]

CHOICE_CASES = [
    boxed("A", "A", CORRECT, FRUITS),
    boxed("A", "a", CORRECT, FRUITS),
    boxed("A", "(A)", CORRECT, FRUITS),
    boxed("A", "(a)", CORRECT, FRUITS),
    boxed("A", "A.", CORRECT, FRUITS),
    boxed("A", r"\text{A}", CORRECT, FRUITS),
    boxed("A", r"\textbf{(A)}", CORRECT, FRUITS),
    boxed("A", "A) apple", CORRECT, FRUITS),
    boxed("A", "(A) apple", CORRECT, FRUITS),
    boxed("A", "A: apple", CORRECT, FRUITS),
    boxed("A", "A. apple", CORRECT, FRUITS),
    boxed("A", "A apple", CORRECT, FRUITS),
    boxed("A", "Option A", CORRECT, FRUITS),
    boxed("A", "option a", CORRECT, FRUITS),
    boxed("A", "apple", CORRECT, FRUITS),
    boxed("A", "The Apple.", CORRECT, FRUITS),
    boxed("A", r"\text{apple}", CORRECT, FRUITS),
    boxed("A", '"A"', CORRECT, FRUITS),
    boxed("A", "**A**", CORRECT, FRUITS),
    boxed("A", "A) banana", CORRECT, FRUITS),
    boxed("A", "B) apple", WRONG, FRUITS),
    boxed("A", "B", WRONG, FRUITS),
    boxed("A", "banana", WRONG, FRUITS),
    boxed("A", "A or B", WRONG, FRUITS),
    boxed("A", "A, B", WRONG, FRUITS),
    boxed("A", "A and C", WRONG, FRUITS),
    boxed("A", "a dog", WRONG, FRUITS),
    boxed("A", "A cat", WRONG, FRUITS),
    boxed("A", "E", WRONG, FRUITS),
    boxed("A", "1", WRONG, FRUITS),
    boxed("A", "apple pie", WRONG, FRUITS),
    boxed("A", "?", WRONG, FRUITS),
    boxed("B", "B", CORRECT, FRUITS),
    boxed("C", "dog", CORRECT, FRUITS),
    boxed("C", "A dog", CORRECT, FRUITS),
    boxed("C", "A. Lincoln", CORRECT, PEOPLE),
    boxed("B", "65", CORRECT, PRICES),
    boxed("A", "61", CORRECT, PRICES),
    boxed("D", "1200", CORRECT, PRICES),
    boxed("B", "65 km", WRONG, PRICES),
    boxed("B", "Cc or cc", CORRECT, GENES),
    boxed("B", "CC or Cc", WRONG, GENES),
    boxed("B", "cc or cc", WRONG, GENES),
    boxed("A", "sky", CORRECT, PLANTS),
    boxed("C", "the sky", CORRECT, PLANTS),
    boxed("D", "sky", WRONG, PLANTS),
    boxed("C", "A", WRONG, PLANTS),
    Case("bare boxed letter", r"It is \boxed B", "B", CORRECT, BOXED, FRUITS),
    Case("letter and text", "The answer is (B) banana.", "B", CORRECT, PHRASE, FRUITS),
    Case("closing bracket", "Answer: B) banana", "B", CORRECT, PHRASE, FRUITS),
    Case("bold letter", "The answer is **B**. It is yellow.", "B", CORRECT, PHRASE, FRUITS),
    Case("bold pair", "**Answer: B) banana**", "B", CORRECT, PHRASE, FRUITS),
    Case("letter with reason", "The answer is B because it is.", "B", CORRECT, PHRASE, FRUITS),
    Case("A with reason", "The answer is A because it is.", "A", CORRECT, PHRASE, FRUITS),
    Case("option", "The correct answer is option B.", "B", CORRECT, PHRASE, FRUITS),
    Case("correct option", "The correct option is (B).", "B", CORRECT, PHRASE, FRUITS),
    Case("text", "The answer is banana.", "B", CORRECT, PHRASE, FRUITS),
    Case("text, reason", "The answer is banana, because it is.", "B", CORRECT, PHRASE, FRUITS),
    Case("text, sentence", "The answer is cherry pie. I like it.", "D", CORRECT, PHRASE, FRUITS),
    Case("article", "The answer is a dog.", "C", CORRECT, PHRASE, FRUITS),
    Case("article only", "The answer is a cat.", "A", NO_ANSWER, NOTHING, FRUITS),
    Case("unknown letter", "The answer is F.", "A", NO_ANSWER, NOTHING, FRUITS),
    Case("no option", "The answer is as follows.", "A", NO_ANSWER, NOTHING, FRUITS),
    Case("next line", "Answer:\n\nB) banana", "B", CORRECT, PHRASE, FRUITS),
    Case("hashes", "#### B", "B", CORRECT, PHRASE, FRUITS),
    Case("hashes, heading", "#### A. First look\nHm.", "A", NO_ANSWER, NOTHING, FRUITS),
    Case("either of two", "The answer is either A or B.", "B", WRONG, PHRASE, FRUITS, True),
    Case("last in brackets", "I choose (B) here.", "B", CORRECT, LAST, FRUITS, True),
    Case("last half bracket", "I choose B) here.", "B", CORRECT, LAST, FRUITS, True),
    Case("last at the end", "Hence I choose B.", "B", CORRECT, LAST, FRUITS, True),
    Case("last option", "So option b fits.", "B", CORRECT, LAST, FRUITS, True),
    Case("last lone line", "Done.\n\nB", "B", CORRECT, LAST, FRUITS, True),
    Case("last bold line", "Done.\n**B**\n", "B", CORRECT, LAST, FRUITS, True),
    Case("last text", "So it must be the banana we saw.", "B", CORRECT, LAST, FRUITS, True),
    Case("last of two", "Not an apple but a banana then", "B", CORRECT, LAST, FRUITS, True),
    Case("last article", "A cat is here, a cat.", "A", NO_ANSWER, NOTHING, FRUITS, True),
    Case("last part of word", "pineapples and apples", "A", NO_ANSWER, NOTHING, FRUITS, True),
    Case("last plural", "It is the apple(s) (B) then", "B", CORRECT, LAST, FRUITS, True),
    Case("last, cut", "I choose (B)", "B", TRUNCATED, NOTHING, FRUITS, True, False),
    Case("letter beyond options", r"\boxed{A}", "E", ERROR, BOXED, FRUITS),
    Case("no options", r"\boxed{A}", "A", ERROR, BOXED),
]

BOOLEAN_CASES = [
    boxed("yes", "yes", CORRECT),
    boxed("yes", "True", CORRECT),
    boxed("yes", "TRUE.", CORRECT),
    boxed("yes", r"\text{Yes}", CORRECT),
    boxed("yes", "Yes, because it is", CORRECT),
    boxed("yes", "It is true", CORRECT),
    boxed("yes", "No", WRONG),
    boxed("yes", "not true", WRONG),
    boxed("yes", "maybe", WRONG),
    boxed("yes", "Yes/No", WRONG),
    boxed("no", "False", CORRECT),
    boxed("no", "True and False = False", CORRECT),
    boxed("no", "no", CORRECT),
    boxed("no", "None", WRONG),
    Case("phrase", "The answer is yes.", "yes", CORRECT, PHRASE),
    Case("bold phrase", "**Answer:** **No**, it sank.", "no", CORRECT, PHRASE),
    Case("filler", "The answer is most likely true.", "yes", CORRECT, PHRASE),
    Case("no value", "The answer is hard to know.", "no", NO_ANSWER, NOTHING),
    Case("determiner", "The answer is that no ship sank.", "no", NO_ANSWER, NOTHING),
    Case("last", "So yes, it could. Good.", "yes", CORRECT, LAST, (), True),
    Case("last of two", "True is out, so it is False", "no", CORRECT, LAST, (), True),
    Case("last determiner", "Yes.\nThere is no evidence.", "yes", CORRECT, LAST, (), True),
    Case("last in a word", "I know nothing of yesterday.", "no", NO_ANSWER, NOTHING, (), True),
    Case("last, cut", "So yes", "yes", TRUNCATED, NOTHING, (), True, False),
    Case("no truth", r"\boxed{yes}", "maybe", ERROR, BOXED),
]

TEXT_CASES = [
    boxed("June", "June", CORRECT),
    boxed("June", "june", CORRECT),
    boxed("June", r"\text{June}", CORRECT),
    boxed("June", '"June".', CORRECT),
    boxed("June", "**June**", CORRECT),
    boxed("June", "July", WRONG),
    boxed("June", "June or July", WRONG),
    boxed("Mrs. Hilt", "Mrs Hilt", CORRECT),
    boxed("the cat", "a  cat", CORRECT),
    boxed("26; 18; 16", "26;18; 16", CORRECT),
    boxed("3:4", "3 : 4", CORRECT),
    boxed("3", "3:4", WRONG),
    boxed("0.5", r"\frac{1}{2}", CORRECT),
    boxed(r"\frac{1}{4}", r"\dfrac{1}{4}", CORRECT),
    boxed(r"90^\circ", "90", CORRECT),
    boxed(r"8 \pi", "8", WRONG),
    boxed("p - q", "p-q", CORRECT),
    boxed("5", "y = 5", CORRECT),
    boxed("(2,5)", "[2,5]", WRONG),
    boxed("beth kenya", "bethkenya", WRONG),
    Case("phrase", "The answer is June.", "June", CORRECT, PHRASE),
    Case("title", "The answer is Mrs. Hilt.", "Mrs. Hilt", CORRECT, PHRASE),
    Case("reason", "The answer is June because it is warm.", "June", CORRECT, PHRASE),
    Case("last line", "Answer:\n\n**June**", "June", CORRECT, PHRASE),
    Case("pointer", "The answer is as follows.", "June", NO_ANSWER, NOTHING),
    Case("derivation", "Answer:\nIt was spring.\nThen June", "June", NO_ANSWER, NOTHING),
    Case("never the last", "It was June", "June", NO_ANSWER, NOTHING, (), True),
    Case("brackets", "The answer is ] ) }", "] ) }", CORRECT, PHRASE),
    Case("brackets boxed", r"\boxed{] ) \}}", "] ) }", CORRECT, BOXED),
]


@pytest.mark.parametrize("case", named(NUMBER_BOXES + NUMBER_TEXTS))
def test_grade_number_text_is_read_and_judged(case: Case) -> None:
    check(case, "number")


@pytest.mark.parametrize("case", named(CHOICE_CASES))
def test_grade_choice_text_is_read_and_judged(case: Case) -> None:
    check(case, "choice")


@pytest.mark.parametrize("case", named(BOOLEAN_CASES))
def test_grade_boolean_text_is_read_and_judged(case: Case) -> None:
    check(case, "boolean")


@pytest.mark.parametrize("case", named(TEXT_CASES))
def test_grade_free_text_is_read_and_judged(case: Case) -> None:
    check(case, "text")


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
    assert grade(r"\boxed{7}", question_of(""), read_last=False) == Grade("7", ERROR, BOXED)


@pytest.mark.parametrize(
    ("answer", "answer_type", "choices", "canonical"),
    [
        ("72", "number", (), "72"),
        (" 1,000.50 ", "number", (), "1000.5"),
        ("$-3", "number", (), "-3"),
        (r"\frac{1}{4}", "number", (), "0.25"),
        ("50%", "number", (), "50"),
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
    ("answer", "answer_type", "choices", "mend"),
    [
        ("twelve apples", "number", (), "write digits only"),
        ("3 to 4", "number", (), "write digits only"),
        ("1/0", "number", (), "write digits only"),
        ("9" * (MAX_NUMBER_LENGTH + 1), "number", (), "write digits only"),
        ("1/3", "number", (), "answer_type 'text'"),
        ("E", "choice", FRUITS, "write its letter"),
        ("sky", "choice", PLANTS, "write its letter"),
        ("A", "choice", (), "write its letter"),
        ("maybe", "boolean", (), "write yes, no"),
        ("", "text", (), "every question"),
        ("  ", "number", (), "every question"),
    ],
)
def test_canonical_answer_of_another_type_is_refused_with_a_mend(
    answer: str, answer_type: AnswerType, choices: tuple[str, ...], mend: str
) -> None:
    with pytest.raises(ValueError, match=mend):
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
    assert boxed_answer(question) == box
    assert grade(box, question, read_last=False).verdict == CORRECT


QUESTIONS = [
    question_of("5"),
    question_of("B", "choice", FRUITS),
    question_of("yes", "boolean"),
    question_of("} ] June", "text"),
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


def test_grade_random_text_never_raises_and_keeps_its_invariants() -> None:
    for text in random_texts(3_000):
        for question in QUESTIONS:
            for finished in (True, False):
                result = grade(text, question, read_last=True, finished=finished)
                assert (result.read_as == NOTHING) == (result.predicted is None)
                assert (result.read_as == NOTHING) == (result.verdict in (NO_ANSWER, TRUNCATED))
                assert finished or result.read_as != LAST


def test_boxed_answer_of_random_text_is_graded_correct() -> None:
    for text in random_texts(2_000):
        # Escaping a loose brace unmakes a LaTeX command, and a box is no answer within a box.
        if "think>" in text or "box" in text or r"\text" in text or not re.search(r"\w\w", text):
            continue
        question = question_of(text, "text")
        result = grade(boxed_answer(question), question, read_last=False)
        assert result.verdict == CORRECT, text


@pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmark files are not here")
@pytest.mark.parametrize("path", sorted(SHARED.glob("*.jsonl")), ids=lambda path: path.stem)
def test_boxed_answer_of_every_benchmark_row_is_graded_correct(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").strip().split("\n"):
        row = json.loads(line)
        choices = tuple(row["choices"] or ())
        question = question_of(row["answer"], row["answer_type"], choices)
        assert canonical_answer(row["answer"], row["answer_type"], choices) == row["answer"].strip()
        result = grade(boxed_answer(question), question, read_last=False)
        assert (result.verdict, result.read_as) == (CORRECT, BOXED), row["id"]
