r"""Agreement of the grader with math-verify on numbers and LaTeX, and every difference explained.

    python -m benchmarks.agreement FOLDER [--limit N] [--json]

FOLDER holds question files in JSONL (`answer`, `answer_type`). Each truth is graded against itself
written differently, against another truth of the same file, and, where it is a number, against
numbers near it. math-verify is asked with its own defaults. Where the two disagree, the difference
has to be one of `EXPLANATIONS`; what is left is printed line by line.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from evaluation.answers.number import exact_number
from evaluation.answers.plain import plain_text
from evaluation.grader import Verdict, grade
from evaluation.question import AnswerType, Question


class Pair(NamedTuple):
    """A truth, a boxed answer, and the two judgements."""

    kind: AnswerType
    truth: str
    found: str
    ours: bool
    theirs: bool


EXPLANATIONS = {
    "rounded": "math-verify rounds to 6 decimals where one side is a decimal; we compare exactly",
    "percent": "we take 50% for 50 and for 0.5, math-verify for 0.5 only",
    "words": "a name or a text: we compare words without case, math-verify products of letters",
    "base": "52_8: we compare digits and base, math-verify drops or reads the subscript its way",
    "grouping": "a comma or space within a number that only one of the two takes for grouping",
    "units": "a unit or degrees that only one of the two strips",
    "computed": "the number type reads numbers and does not compute: \\sqrt{1} is no answer for 1",
    "cut": "an answer whose last bracket is missing, which math-verify completes",
    "bracketed": "a pair, a set or an interval that math-verify takes for one another",
}


def explanation(pair: Pair) -> str | None:
    """Which of `EXPLANATIONS` a difference is, None if it is none of them."""
    truth, found = pair.truth, pair.found
    both = f"{truth} {found}"
    if pair.kind == "number" and "\\sqrt" in found:
        return "computed"
    if found.count("{") != found.count("}") or found.count("(") > found.count(")"):
        return "cut"
    if "%" in both:
        return "percent"
    if re.search(r"[0-9]_", both):
        return "base"
    if re.search(r"[0-9][, ](?:\\!)? ?[0-9]{3}", both):
        return "grouping"
    if re.search(r"\\(?:text|mbox|circ)|degrees", both):
        return "words" if re.search(r"\\text\{\(?[A-Za-z]+\)?\}", both) else "units"
    if re.fullmatch(r"[A-Za-z ]+", truth):
        return "words"
    values = [exact_number(plain_text(text)) for text in (truth, found)]
    if all(values) and not pair.ours and ("." in both or "e" in both):
        return "rounded"
    if truth[:1] in "([\\" and found[:1] in "([\\" and "," in truth and not pair.ours:
        return "bracketed"
    return None


def pairs(folder: Path, limit: int | None) -> Iterator[Pair]:
    """Every pair of every file, at most `limit` truths a file."""
    for path in sorted(folder.glob("*.jsonl")):
        truths = list(_truths(path))
        random.Random(0).shuffle(truths)
        for index, (kind, truth) in enumerate(truths[:limit]):
            other = truths[index - 1][1]
            for found in dict.fromkeys([*_rewritten(truth), *_near(truth), other]):
                yield Pair(kind, truth, found, _ours(kind, truth, found), _theirs(truth, found))


def _truths(path: Path) -> Iterator[tuple[AnswerType, str]]:
    for line in path.read_text(encoding="utf-8").strip().split("\n"):
        row = json.loads(line)
        if row["answer_type"] == "number":
            yield "number", row["answer"]
        elif path.stem.startswith("math") and row["answer_type"] in ("text", "math"):
            yield "math", row["answer"]


def _rewritten(truth: str) -> list[str]:
    """The truth in other writings that mean the same."""
    forms = [truth, f" {truth} ", rf"\displaystyle {truth}"]
    if re.fullmatch(r"-?[0-9]+", truth):
        forms += [
            f"{int(truth):,}",
            f"{truth}.0",
            rf"\frac{{{2 * int(truth)}}}{{2}}",
            f"x = {truth}",
        ]
    elif re.fullmatch(r"-?[0-9]+\.[0-9]+", truth):
        forms += [f"{truth}0", f"{truth}00"]
    if r"\frac" in truth:
        forms.append(truth.replace(r"\frac", r"\dfrac"))
    if "+" in truth and re.fullmatch(r"[0-9a-z+^ \\]+", truth):
        forms.append(" + ".join(reversed(truth.split("+"))))
    if r"\sqrt" in truth and not re.search(r"[,=]", truth):
        forms.append(rf"\frac{{2({truth})}}{{2}}")
    return forms


def _near(truth: str) -> list[str]:
    """Answers that are wrong though they look like the truth."""
    if re.fullmatch(r"-?[0-9]+(?:\.[0-9]+)?", truth):
        return [f"{truth}1", f"-{truth}".replace("--", ""), f"{truth} + 1", rf"\sqrt{{{truth}}}"]
    return [f"{truth} + 1", f"2 {truth}", truth[:-1]]


def _ours(kind: AnswerType, truth: str, found: str) -> bool:
    question = Question("q", "d", "test", "in_domain", "?", truth, kind)
    return grade(rf"\boxed{{{found}}}", question, read_last=False).verdict == Verdict.CORRECT


def _theirs(truth: str, found: str) -> bool:
    from math_verify import parse, verify

    gold = parse(f"${truth}$", parsing_timeout=None)
    target = parse(rf"\boxed{{{found}}}", parsing_timeout=None)
    return bool(verify(gold, target, timeout_seconds=None))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, help="truths a file at most")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)
    judged = list(pairs(arguments.folder, arguments.limit))
    different = [pair for pair in judged if pair.ours != pair.theirs]
    reasons = Counter(explanation(pair) or "unexplained" for pair in different)
    for pair in different:
        if explanation(pair) is None:
            print(f"unexplained: truth {pair.truth!r}, answer {pair.found!r}: ours {pair.ours}")
    share = 1 - len(different) / max(len(judged), 1)
    print(f"{len(judged)} pairs, {100 * share:.2f} % agree")
    for name, count in reasons.most_common():
        print(f"{count:6} {name}: {EXPLANATIONS.get(name, '')}")
    if arguments.json:
        print(json.dumps({"pairs": len(judged), "agreement": share, "differences": reasons}))


if __name__ == "__main__":
    main(sys.argv[1:])
