"""Grades a second on one core: short texts as a small model writes them, one of each kind.

    python -m benchmarks.grading [--json]

Prints the median of five rounds for each kind, by processor time;
with `--json` the last line is one JSON object.
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
GRADES = 5_000


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
}


def rate(question: Question, text: str) -> float:
    """Grades a second over one round; every grade has to be right."""
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
        print(f"{name:20} {median:>8} grades/s")
    if "--json" in argv:
        print(json.dumps({"grades_per_s": medians, "machine": machine_facts()}))


if __name__ == "__main__":
    main(sys.argv[1:])
