"""Grades per second on one core: answers of each type, alone and after 4,600 characters.

    python -m benchmarks.grading [--json]

4,600 characters correspond to 1,000 tokens of a worked solution. The texts contain numbers,
equations and the word "box", as real ones do, and math-verify is not used. It prints the median of
five rounds for each type, by processor time; with `--json` the last line is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

from benchmarks.machine import machine_facts
from evaluation.grader import Verdict, grade
from evaluation.question import Question

ROUNDS = 5
GRADES = 2_000
LENGTH = 4_600
SENTENCES = (
    "First we note that each box holds 12 clips, and there are 4 boxes, so 12 * 4 = 48 clips. "
    "Then she gives away a third of them, which leaves $48 - 16 = 32$ clips.\n"
)


def _question(answer: str, kind: str, *choices: str) -> Question:
    return Question.from_row(
        {
            "question_id": "q",
            "dataset": "d",
            "split": "test",
            "domain": "in_domain",
            "question": "?",
            "answer": answer,
            "answer_type": kind,
            "choices": choices,
        }
    )


CASES = {
    "number, boxed": (_question("72", "number"), "She sold 24 + 48 = 72. \\boxed{72}"),
    "number, phrase": (_question("72", "number"), "So the final answer is 72 clips."),
    "number, last": (_question("72", "number"), "24 and 48 make 72"),
    "choice, boxed": (_question("B", "choice", "ice", "fire"), "Fire is hot: \\boxed{B}"),
    "yes or no, phrase": (_question("yes", "boolean"), "Therefore the answer is yes."),
    "LaTeX, phrase": (_question("2\\pi", "math"), "So the final answer is $2\\pi$."),
    "text, phrase": (_question("June", "text"), "So the answer is June."),
}
LONG = (SENTENCES * (LENGTH // len(SENTENCES) + 1))[:LENGTH]
CASES |= {
    f"{name}, {LENGTH}": (question, f"{LONG}\n{text}") for name, (question, text) in CASES.items()
}


def rate(question: Question, text: str) -> float:
    """Grades per second in one round; every grade has to be correct."""
    began = time.process_time()
    for _ in range(GRADES):
        verdict = grade(text, question, read_last=True).verdict
    assert verdict == Verdict.CORRECT, text
    return GRADES / (time.process_time() - began)


def main(argv: list[str]) -> None:
    rates: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, (question, text) in CASES.items():
            rates[name].append(rate(question, text))
    medians = {name: round(statistics.median(values)) for name, values in rates.items()}
    for name, median in medians.items():
        print(f"{name:26} {median:>8} grades/s")
    if "--json" in argv:
        print(json.dumps({"grades_per_s": medians, "machine": machine_facts()}))


if __name__ == "__main__":
    main(sys.argv[1:])
